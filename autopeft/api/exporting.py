"""A trial as a file that trains elsewhere."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from autopeft.api.versions import package_versions
from autopeft.backbone.importance import ImportanceMap
from autopeft.errors import ExportError, Fault
from autopeft.export.configuration_file import (
    ConfigurationFile,
    save_configuration,
    write_configuration,
)
from autopeft.export.decision import Decision, names_scores
from autopeft.study.confirmation import Confirmation, Seen
from autopeft.study.definition import parse_definition
from autopeft.study.records import StudyRecord, TrialRecord

FORMATS = ("yaml", "peft", "axolotl", "llama-factory")


def configuration_file(
    record: StudyRecord,
    trial: TrialRecord,
    *,
    how: str,
    confirmation: Confirmation | None = None,
) -> ConfigurationFile:
    """All it takes to train a trial's configuration on another machine.

    Args:
        record: The study.
        trial: The trial.
        how: How it was chosen (`knee`, `trial 17`).
        confirmation: What other seeds said of the study's trials.
    """
    definition = parse_definition(record.definition, where=f"study {record.name}", base=None)
    results: dict[str, Any] = {
        name: {"value": value, "rung": trial.rung, "seed": trial.seed}
        for name, value in trial.objectives.items()
        if name not in ("trainable_params", "head_params")
    }
    if confirmation is not None and confirmation.frame.name in results:
        results[confirmation.frame.name] |= _confirmed(confirmation, trial.number)
    return ConfigurationFile(
        model=definition.model,
        data=definition.data,
        training=definition.training.model_copy(update=_resolved(record)),
        seed=trial.seed,
        configuration=trial.configuration,
        model_fingerprint=record.fingerprints["backbone"],
        data_fingerprint=record.fingerprints["data"],
        results={
            **results,
            "trainable_params": trial.trainable_params,
            "head_params": trial.head_params,
        },
        origin={
            "study": record.name,
            "trial": trial.number,
            "pick": how,
            "hash": trial.hash,
            "versions": package_versions(),
            **_openings(confirmation),
        },
    )


def _confirmed(confirmation: Confirmation, number: int) -> dict[str, Any]:
    """Mean, interval and seeds of a trial beside the value that chose it."""
    own = confirmation.trials.get(number)
    if own is None or own.validation is None:
        return {}
    plain = {"seeds": list(own.seeds), **_seen(own.validation, confirmation)}
    return plain if own.test is None else {**plain, "test": _seen(own.test, confirmation)}


def _seen(seen: Seen, confirmation: Confirmation) -> dict[str, Any]:
    plain = seen.over.to_dict()
    if seen.difference is None:
        return plain
    versus = f"baseline, trial {confirmation.reference}"
    return {**plain, "difference": {"from": versus, **seen.difference.to_dict()}}


def _openings(confirmation: Confirmation | None) -> dict[str, Any]:
    """When the test split was opened; who did so stays in the study's own database."""
    if confirmation is None or not confirmation.openings:
        return {}
    opened = [
        {"at": opening.at.isoformat(), "trials": len(opening.trials), "again": opening.again}
        for opening in confirmation.openings
    ]
    return {"test_openings": opened}


def _resolved(record: StudyRecord) -> dict[str, object]:
    """What the study found for `auto`, and trained with."""
    auto = record.definition["training"].get("precision", "auto") == "auto"
    return {"precision": record.facts["precision"]} if auto and "precision" in record.facts else {}


def export_trial(
    record: StudyRecord,
    trial: TrialRecord,
    *,
    how: str,
    format: str,  # noqa: A002
    output: Path | None,
    importance: Callable[[], ImportanceMap] | None = None,
    confirmation: Confirmation | None = None,
) -> str:
    """Write a trial in a format; see `Study.export`.

    Args:
        record: The study.
        trial: The trial.
        how: How it was chosen.
        format: One of `FORMATS`.
        output: Where it goes, or None to write nothing.
        importance: Gives the study's importance map, where there is one.
        confirmation: What other seeds said of the study's trials.

    Raises:
        ExportError: An unknown format, or one that cannot carry the configuration.
    """
    if format not in FORMATS:
        hint = "optuna holds a whole study: Study.export_study" if format == "optuna" else ""
        raise ExportError(Fault("--format", "", format, ", ".join(FORMATS), hint))
    if format == "peft":
        return _peft(record, trial, output)
    file = configuration_file(record, trial, how=how, confirmation=confirmation)
    if format in ("axolotl", "llama-factory"):
        return _for_trainer(file, format, output)
    if names_scores(trial.configuration):
        file = replace(file, decision=_decision(file, lambda: _found(importance, record)))
    return write_configuration(file) if output is None else save_configuration(file, output)


def _decision(file: ConfigurationFile, importance: Callable[[], ImportanceMap]) -> Decision | None:
    """What the map decided of the file's configuration, by the backbone's `config.json` alone."""
    from autopeft.backbone.skeleton import config_anatomy
    from autopeft.export.deciding import decided, used_scores
    from autopeft.training.setup import backbone_request

    if not used_scores(file.configuration):
        return None
    anatomy = config_anatomy(backbone_request(file.model))
    return decided(file.configuration, replace(anatomy, importance=importance()))


def _found(importance: Callable[[], ImportanceMap] | None, record: StudyRecord) -> ImportanceMap:
    if importance is None:
        given = "a configuration that scores decide, without the study's importance map"
        hint = "`autopeft importance STUDY.yaml` measures it"
        raise ExportError(Fault(f"study {record.name}", "importance", given, "the map", hint))
    return importance()


def _for_trainer(file: ConfigurationFile, format: str, output: Path | None) -> str:  # noqa: A002
    """For another trainer; reads `config.json` of the backbone, no weights."""
    from autopeft.backbone.skeleton import config_anatomy
    from autopeft.export.axolotl import axolotl_text
    from autopeft.export.llama_factory import TRAIN, llama_factory_files
    from autopeft.training.setup import backbone_request

    anatomy = config_anatomy(backbone_request(file.model))
    if format == "axolotl":
        text = axolotl_text(file, file.configuration, anatomy)
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(text, encoding="utf-8")
        return text
    files = llama_factory_files(file, file.configuration, anatomy)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (output / name).write_text(content, encoding="utf-8")
        return files[TRAIN]
    return "\n".join(f"# -- {name}\n{content}" for name, content in files.items())


def _peft(record: StudyRecord, trial: TrialRecord, output: Path | None) -> str:
    from autopeft.backbone.loading import load_backbone
    from autopeft.export.peft_config import peft_config
    from autopeft.training.setup import backbone_request

    definition = parse_definition(record.definition, where=f"study {record.name}", base=None)
    backbone = load_backbone(backbone_request(definition.model))
    head = backbone.recipe(len(record.facts["label_names"]) or 1)
    plain = peft_config(
        trial.configuration,
        backbone.anatomy,
        head,
        base_model=definition.model.name_or_path,
    )
    text = json.dumps(plain, indent=2, sort_keys=True) + "\n"
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "adapter_config.json").write_text(text, encoding="utf-8")
    return text
