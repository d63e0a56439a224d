"""`autopeft.train`: train an exported configuration at full budget."""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from autopeft import counting
from autopeft.api.importance_need import configuration_needs_importance, settings_needed
from autopeft.api.measuring import ensure_importance, with_importance
from autopeft.api.place import output_folder
from autopeft.api.problem import registered
from autopeft.errors import Fault, InputError, TrialError
from autopeft.execution.fitting import fitted_settings
from autopeft.execution.heap import tensors_apart
from autopeft.export.adapter import CONFIGURATION, Adapter, save_adapter
from autopeft.export.configuration_file import ConfigurationFile, load_configuration_file
from autopeft.export.deciding import decided
from autopeft.methods import registry
from autopeft.study.configuration_check import check_configuration
from autopeft.study.configuration_form import complete_configuration
from autopeft.study.metrics import DEFAULT_QUALITY, DENSITY, METRICS
from autopeft.study.progress import Listener, Progress, Silent
from autopeft.training.lanes.pack import Lane
from autopeft.training.setup import (
    Materials,
    device_name,
    load_materials,
    with_settings,
)


def train(
    config: Path | str,
    output: Path | str,
    *,
    listener: Listener | None = None,
    rescore: bool = False,
) -> dict[str, Any]:
    """Train a configuration file and write the adapter; see `autopeft.export.adapter`.

    On the same data, backbone, seed and machine this repeats the search's trial. Converted data
    are kept in (and taken from) the study's own output folder.

    Args:
        config: A file that `autopeft export` wrote.
        output: A folder: new, empty, or an adapter to be replaced.
        listener: Watches the training.
        rescore: Whether what importance scores decided is left alone, and the scores are measured
            again where the configuration needs any.

    Returns:
        The content of `metrics.json`, and the `forms` that were written.

    Raises:
        InputError: Faults of the file, its model or its data.
        TrialError: The training diverged or ran out of memory.
    """
    listener = listener or Silent()
    where, folder = str(config), _checked_folder(Path(output))
    file = load_configuration_file(Path(config), rescore=rescore)
    listener.on_progress(Progress(where, "loading", 0, 1))
    materials = _materials(file)
    file = _completed(file, materials, where)
    materials = _scored(materials, file, listener)
    file = _checked(file, materials, where)
    _note_changes(file, materials, listener)
    if file.decision is None:
        file = replace(file, decision=decided(file.configuration, materials.backbone.anatomy))
    materials = _fitted(materials, file)
    began = time.perf_counter()
    chosen = {0: file.decision.fixed()} if file.decision else None
    run = materials.trainer.start([Lane(0, file.trained)], chosen=chosen)
    run.train(materials.total_steps, on_step=_telling(listener, where, materials))
    evaluation = run.evaluate()[0]
    if evaluation.diverged:
        raise TrialError(
            f"{where}: the training diverged (weights or predictions are not finite)",
            cause="diverged",
            hint="lower training.learning_rate",
        )
    seconds = time.perf_counter() - began
    adapter = Adapter(
        _with_fingerprints(file, materials),
        run.states()[0].kept(),
        materials.data.label_names,
        _metrics(file, materials, evaluation.values, seconds),
    )
    forms = save_adapter(adapter, folder, materials.backbone, materials.trainer.recipe)
    return {**adapter.metrics, "forms": list(forms)}


def _materials(file: ConfigurationFile) -> Materials:
    return load_materials(
        file.model,
        file.data,
        file.training,
        quality=_quality(file),
        seed=file.seed,
        device=device_name("auto"),
        output_dir=output_folder(_study(file)),
    )


def _study(file: ConfigurationFile) -> str:
    """The study that it came from, as a folder's name."""
    return re.sub(r"[^A-Za-z0-9._-]+|^\.+", "-", str(file.origin.get("study", "train")))


def _scored(materials: Materials, file: ConfigurationFile, listener: Listener) -> Materials:
    """The materials; with a map of what the configuration needs, where scores are to decide."""
    if file.decision is None and configuration_needs_importance(file.configuration.to_dict()):
        anatomy = materials.backbone.anatomy
        settings = settings_needed(file.configuration, anatomy, file.decided_before)
        measured = ensure_importance(
            materials, None, settings=settings, study=_study(file), listener=listener
        )
        materials = with_importance(materials, measured.importance, seed=file.seed)
    return materials


def _fitted(materials: Materials, file: ConfigurationFile) -> Materials:
    """The materials, with the settings that fit the device's memory."""
    fitted = fitted_settings(
        materials.trainer, file.trained, file.training, lanes=1, in_process=True
    )
    if fitted.gradient_checkpointing and materials.trainer.device.type == "cpu":
        tensors_apart()
    return with_settings(
        materials,
        gradient_checkpointing=fitted.gradient_checkpointing,
        micro_batch_size=fitted.micro_batch_size,
        density=DENSITY in file.results,
    )


def _telling(listener: Listener, where: str, materials: Materials) -> Callable[[int], bool]:
    def on_step(step: int) -> bool:
        total = materials.total_steps
        listener.on_progress(Progress(where, "training", 0, 1, (0,), step, total))
        return True

    return on_step


def _metrics(
    file: ConfigurationFile, materials: Materials, values: Mapping[str, float], seconds: float
) -> dict[str, Any]:
    """The content of `metrics.json`."""
    anatomy = materials.backbone.anatomy
    return {
        "validation": dict(values),
        "trainable_params": counting.trainable_params(file.trained, anatomy),
        "head_params": materials.head_params,
        "optimizer_steps": materials.total_steps,
        "train_seconds": round(seconds, 3),
        "n_train": len(materials.data.train),
        "n_validation": len(materials.data.validation),
        "configuration": file.configuration.hash,
        "seed": file.seed,
    }


def _checked_folder(folder: Path) -> Path:
    if folder.exists() and not folder.is_dir():
        raise InputError(Fault("-o", "", str(folder), "a folder"))
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIGURATION).exists():
        raise InputError(
            Fault("-o", "", f"{folder}, which holds other files", "a new or empty folder")
        )
    return folder.absolute()


def _quality(file: ConfigurationFile) -> str:
    """The metric that the search optimised, as the file's results name it."""
    for name in file.results:
        if name in METRICS and METRICS[name].kind == "quality":
            return name
    return DEFAULT_QUALITY[file.model.task]


def _completed(file: ConfigurationFile, materials: Materials, where: str) -> ConfigurationFile:
    """The file, with what it leaves out at its default.

    Raises:
        InputError: All faults of its configuration that need no scores to be seen.
    """
    anatomy = materials.backbone.anatomy
    plain = {k: v for k, v in file.configuration.to_dict().items() if k != "training"}
    shape = anatomy.shape(registry.carried_by(anatomy))
    if faults := check_configuration(plain, shape=shape, where=where, **registered()):
        raise InputError(faults)
    training = dict(file.configuration.training)
    return replace(
        file, configuration=complete_configuration(plain, training=training, **registered())
    )


def _checked(file: ConfigurationFile, materials: Materials, where: str) -> ConfigurationFile:
    """The file; InputError with why it cannot be built, or that its scores are not of here."""
    anatomy = materials.backbone.anatomy
    faults = [
        Fault(where, f"configuration.{each.key}".rstrip("."), each.given, each.allowed, each.hint)
        for each in (
            *counting.faults(file.trained, anatomy),
            *counting.option_faults(file.trained, anatomy),
        )
    ]
    now = materials.backbone.fingerprint
    if file.decision and file.model_fingerprint != now:
        given = f"{now[:12]}, the backbone found now, for which scores decided nothing"
        allowed = f"{str(file.model_fingerprint)[:12]}, the one they were measured on"
        hint = "train with --rescore, which measures the scores again and decides anew"
        faults = [*faults, Fault(where, "model.fingerprint", given, allowed, hint)]
    if faults:
        raise InputError(faults)
    return file


def _note_changes(file: ConfigurationFile, materials: Materials, listener: Listener) -> None:
    for what, before, now in (
        ("backbone", file.model_fingerprint, materials.backbone.fingerprint),
        ("data", file.data_fingerprint, materials.data.fingerprint),
    ):
        if before is not None and before != now:
            listener.on_event(
                f"note: the {what} is not the one this configuration was found on "
                f"({before[:12]} then, {now[:12]} now); results will differ"
            )


def _with_fingerprints(file: ConfigurationFile, materials: Materials) -> ConfigurationFile:
    return replace(
        file,
        model_fingerprint=materials.backbone.fingerprint,
        data_fingerprint=materials.data.fingerprint,
    )
