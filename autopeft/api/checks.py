"""What a search would refuse, found before any weights are loaded.

Model, data, space, enqueued configurations and caps are each tried for themselves, so that a fault
of one hides none of another. A fault of what the study file itself says carries the file's name
and the dotted key within it; one of a data set or of a space's own file keeps that one's name.
"""

import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import datasets

from autopeft import counting
from autopeft.api import problem as problems
from autopeft.api.importance_need import study_chooses_by_scores
from autopeft.backbone.anatomy import EXIT, Anatomy
from autopeft.backbone.loading import config_anatomy
from autopeft.configuration import Configuration
from autopeft.errors import Fault, InputError
from autopeft.execution.peak_memory import MEASURABLE
from autopeft.searchers.baselines import baselines
from autopeft.space.library import load_space
from autopeft.space.schema import Scalar
from autopeft.space.space import BoundSpace
from autopeft.study.configuration_check import check_configuration
from autopeft.study.definition import StudyDefinition
from autopeft.study.metrics import DENSITY
from autopeft.study.paths import BUILTIN, resolve_source
from autopeft.training.data.text import load_text_data
from autopeft.training.setup import backbone_request, data_request, device_name

_T = TypeVar("_T")

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_BLOCKS = ("model", "space")
"""What code that knows no study file calls the block it judges."""


def study_faults(definition: StudyDefinition, *, where: str, output_dir: Path) -> list[Fault]:
    """All faults that show before weights are loaded: returned, not raised.

    Of the model, its configuration is read (from the hub where it is neither local nor cached).
    Of the data, train and validation are read as a search reads them; a hub data set only where
    `HF_HUB_OFFLINE` is set, out of the cache: checking never downloads data.

    Args:
        definition: The study.
        where: What the study is called in errors: its file.
        output_dir: The study's output directory, or a temporary one; converted data go there.

    Returns:
        Faults of the executor, model, data, space, search and caps, in this order.
    """
    faults = _executor_faults(definition, where)
    request = backbone_request(definition.model)
    anatomy = tried(lambda: config_anatomy(request), faults, where=where)
    faults += data_faults(definition, output_dir)
    if anatomy is None:
        return faults + written_faults(definition, where=where)
    unmeasured = tried(lambda: study_chooses_by_scores(definition), [], where=where)
    space = tried(lambda: problems.bind_space(definition, anatomy), faults, where=where)
    faults += _search_faults(definition, anatomy, where)
    faults += _probe_faults(definition, where)
    faults += _ffn_faults(definition, anatomy, space, where)
    if space is None:
        return faults
    unbuildable = problems.build_faults(problems.tried_faults(definition, anatomy, space))
    faults += _placed(unbuildable, where)
    if not unbuildable and not unmeasured:  # counts need scores: a search checks them then
        faults += _placed(problems.cap_faults(definition, anatomy, space), where)
    return faults


def written_faults(definition: StudyDefinition, *, where: str) -> list[Fault]:
    """Faults of the space and the enqueued configurations that show without their backbone."""
    known = problems.registered()
    faults = space_faults(definition.space, where=where)
    for index, plain in enumerate(definition.search.enqueue):
        key = f"search.enqueue.{index}"
        faults += check_configuration(plain, shape=None, where=where, key=key, **known)
    return faults


def space_faults(
    source: str | dict[str, Any], *, where: str, base: Path | None = None
) -> list[Fault]:
    """Faults of a study's `space` for itself alone; a relative path starts at `base`."""
    faults: list[Fault] = []
    tried(lambda: load_space(source, **problems.registered(), base=base), faults, where=where)
    return faults


def data_faults(definition: StudyDefinition, output_dir: Path) -> list[Fault]:
    """Faults of train and validation; none of a hub data set unless the hub is switched off."""
    if _on_hub(definition.data.source) and not datasets.config.HF_HUB_OFFLINE:
        return []
    request = data_request(definition.data, task=definition.model.task, seed=definition.study.seed)
    try:
        load_text_data(request, output_dir=output_dir)
    except InputError as error:
        return list(error.faults)
    return []


def tried(check: Callable[[], _T], faults: list[Fault], *, where: str) -> _T | None:
    """What `check` gives, or None where the input is at fault; then `faults` grows by why."""
    try:
        return check()
    except InputError as error:
        faults += _placed(error.faults, where)
    return None


def _search_faults(definition: StudyDefinition, anatomy: Anatomy, where: str) -> list[Fault]:
    training = problems.training_defaults(definition)
    faults: list[Fault] = []
    names = definition.search.baselines
    tried(lambda: baselines(names, anatomy, training=training), faults, where=where)
    tried(lambda: problems.enqueued(definition, anatomy), faults, where=where)
    return faults


def _executor_faults(definition: StudyDefinition, where: str) -> list[Fault]:
    """An executor that this machine lacks, and devices that it does not share out."""
    execution = definition.execution
    if execution.executor != "ray":
        return []
    faults = []
    if importlib.util.find_spec("ray") is None:
        hint = "pip install 'autopeft[ray]'"
        allowed = "an executor that is installed (local, in-process)"
        faults.append(Fault(where, "execution.executor", "ray", allowed, hint))
    if "," in execution.devices:
        hint = "this is where the search itself computes; execution.ray says how many train"
        allowed = "one device beside executor: ray"
        faults.append(Fault(where, "execution.devices", execution.devices, allowed, hint))
    return faults


def _probe_faults(definition: StudyDefinition, where: str) -> list[Fault]:
    """Measured costs that the study's device cannot tell."""
    device = device_name(definition.execution.devices).partition(":")[0]
    if device in MEASURABLE:
        return []
    named = {
        f"{block}.{index}.metric": entry.metric
        for block in ("objectives", "constraints")
        for index, entry in enumerate(getattr(definition, block))
    }
    hint = f"{device} does not tell the peak of one trial; execution.devices names the device"
    return [
        Fault(where, key, metric, f"on {' or '.join(MEASURABLE)} alone", hint)
        for key, metric in named.items()
        if metric == "peak_memory_bytes"
    ]


def _ffn_faults(
    definition: StudyDefinition, anatomy: Anatomy, space: BoundSpace | None, where: str
) -> list[Fault]:
    """Training options and costs of the FFN, where the backbone's cannot be reached."""
    given: dict[str, Scalar] = dict(problems.training_defaults(definition))
    tried_options = {"study": Configuration.of([], training=given)}
    if space is not None:  # its largest values: what is switched on by some configuration
        most = {each.parameter.name: each.largest for each in space.layout.training}
        tried_options["space"] = Configuration.of([], training=given | most)
    faults = [
        replace(fault, where=block)
        for block, configuration in tried_options.items()
        for fault in counting.option_faults(configuration, anatomy)
    ]
    if EXIT["ffn"] not in anatomy.roles and DENSITY in definition.reached:
        hint = "not every layer of this backbone has a known `down` map"
        faults.append(Fault("study", "objectives", DENSITY, "a cost it can be measured by", hint))
    return _placed(faults, where)


def _placed(faults: Sequence[Fault], where: str) -> list[Fault]:
    """Faults of a block or of the study as faults of the file that holds them."""
    placed = []
    for fault in faults:
        if fault.where in _BLOCKS:
            key = f"{fault.where}.{fault.key}".rstrip(".")
            placed.append(replace(fault, where=where, key=key))
        else:
            placed.append(replace(fault, where=where) if fault.where == "study" else fault)
    return placed


def _on_hub(source: str) -> bool:
    """Whether a data source is a hub id: no path, and a name that the hub allows."""
    resolved = resolve_source(source, Path.cwd())
    if source.startswith(BUILTIN) or Path(resolved).is_absolute():
        return False
    return _HUB_ID.fullmatch(source) is not None
