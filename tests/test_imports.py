"""Importing is cheap: names are loaded on first use, and nothing shadows them."""

import subprocess
import sys
import types

import autopeft

HEAVY = "{'torch', 'transformers', 'datasets', 'botorch', 'sqlalchemy', 'streamlit', 'optuna'}"


def _loaded(statement: str) -> str:
    code = f"import sys; {statement}; print(sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_import_loads_nothing_heavy() -> None:
    assert _loaded("import autopeft, autopeft.api") == "[]"


def test_definitions_and_records_load_nothing_heavy() -> None:
    modules = "autopeft.study.definition, autopeft.configuration, autopeft.space.library"
    assert _loaded(f"import {modules}, autopeft.searchers.front") == "[]"


def test_explanations_load_nothing_heavy() -> None:
    explain = "from autopeft.searchers.explain import importances, outcomes, predictions, reasons"
    assert _loaded(explain) == "[]"


def test_every_public_name_is_there_and_search_is_a_function() -> None:
    for name in autopeft.__all__:
        assert getattr(autopeft, name) is not None
    assert isinstance(autopeft.search, types.FunctionType)
