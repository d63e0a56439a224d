"""The Python face of autopeft: what the command line does, and no less.

    import autopeft
    study = autopeft.search("study.yaml")
    trial, why = study.pick("knee")
    study.export(Path("best.yaml"), trial=trial.number)
    autopeft.train(Path("best.yaml"), Path("adapter"))
    model = autopeft.load(Path("adapter"))

Names are loaded on first use, so that importing this package imports neither torch nor a database.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autopeft.api.catalogue import absent_methods, methods, passed_types
    from autopeft.api.checking import fetch, init, load_configuration, render, sites, validate
    from autopeft.api.confirming import confirm
    from autopeft.api.environment import doctor
    from autopeft.api.importance import importance_map
    from autopeft.api.loading import (
        copy_studies,
        delete,
        list_studies,
        load_study,
        stop,
        upgrade_storage,
    )
    from autopeft.api.peft_loading import load_adapter
    from autopeft.api.peft_registration import register_with_peft
    from autopeft.api.place import shown_storage, storage_url
    from autopeft.api.planning import plan
    from autopeft.api.searching import search
    from autopeft.api.sources import preset_sources
    from autopeft.api.study import Study
    from autopeft.api.trained import TrainedModel, load
    from autopeft.api.training import train

_HOME = {
    "Study": "study",
    "TrainedModel": "trained",
    "absent_methods": "catalogue",
    "copy_studies": "loading",
    "confirm": "confirming",
    "delete": "loading",
    "doctor": "environment",
    "fetch": "checking",
    "importance_map": "importance",
    "init": "checking",
    "list_studies": "loading",
    "load": "trained",
    "load_adapter": "peft_loading",
    "load_configuration": "checking",
    "load_study": "loading",
    "methods": "catalogue",
    "passed_types": "catalogue",
    "plan": "planning",
    "preset_sources": "sources",
    "register_with_peft": "peft_registration",
    "render": "checking",
    "search": "searching",
    "shown_storage": "place",
    "sites": "checking",
    "stop": "loading",
    "storage_url": "place",
    "train": "training",
    "upgrade_storage": "loading",
    "validate": "checking",
}

__all__ = [
    "Study",
    "TrainedModel",
    "absent_methods",
    "confirm",
    "copy_studies",
    "delete",
    "doctor",
    "fetch",
    "importance_map",
    "init",
    "list_studies",
    "load",
    "load_adapter",
    "load_configuration",
    "load_study",
    "methods",
    "passed_types",
    "plan",
    "preset_sources",
    "register_with_peft",
    "render",
    "search",
    "shown_storage",
    "sites",
    "stop",
    "storage_url",
    "train",
    "upgrade_storage",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
