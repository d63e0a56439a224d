"""How trials are run on this machine: what memory asks for, what a short run finds."""

from typing import TYPE_CHECKING

from autopeft.api.executors import IN_PROCESS
from autopeft.configuration import Configuration
from autopeft.study.definition import StudyDefinition
from autopeft.study.progress import Listener
from autopeft.study.sitting import NOT_STORED, Sitting

if TYPE_CHECKING:
    from autopeft.execution.calibration import Calibration, Question
    from autopeft.training.setup import Materials


def fitted(
    materials: "Materials",
    definition: StudyDefinition,
    largest: Configuration,
    listener: Listener,
) -> "Materials":
    """The materials, with layers recomputed and fewer rows at once where memory asks.

    Args:
        materials: Backbone and data.
        definition: The study.
        largest: The configuration of its space that needs most memory.
        listener: Told where they are not as they were.
    """
    from autopeft.execution.calibration import LEAST_PACK
    from autopeft.execution.fitting import fitted_settings
    from autopeft.training.setup import with_settings

    pack, trainer = definition.search.pack, materials.trainer
    lanes = LEAST_PACK if pack == "auto" else int(pack)
    lanes = lanes if materials.backbone.anatomy.packable else 1
    found = fitted_settings(
        trainer,
        largest,
        definition.training,
        lanes=lanes,
        in_process=definition.execution.executor == IN_PROCESS,
    )
    if found == trainer.settings:
        return materials
    recomputed = "layers recomputed, " if found.gradient_checkpointing else ""
    listener.on_event(
        f"{recomputed}{found.micro_batch_size} of {found.batch_size} rows at once: "
        f"{lanes} lanes of the space's largest configuration fit into memory no other way"
    )
    return with_settings(
        materials,
        gradient_checkpointing=found.gradient_checkpointing,
        micro_batch_size=found.micro_batch_size,
    )


def calibrated(
    materials: "Materials",
    definition: StudyDefinition,
    *,
    largest: Configuration,
    probe: Configuration,
    listener: Listener,
    sitting: Sitting,
    timed: bool,
) -> "Calibration":
    """Pack size and precision: the study's own, else what a short run on this machine finds.

    Args:
        materials: Backbone and data.
        definition: The study.
        largest: The configuration of its space that needs most memory.
        probe: What the lanes of the run train.
        listener: Told what was found.
        sitting: Asks for an early end, and counts what it takes.
        timed: Whether packs are timed even where the study says their size.

    Raises:
        InterruptedStudyError: Asked to stop meanwhile; nothing is stored yet.
    """
    from autopeft.execution.calibration import MOST_LANES, Calibration, calibrate

    question = _question(materials, definition, largest, MOST_LANES)
    if question.pack is not None and question.pack > max(question.largest, 1):
        listener.on_event(
            f"packs of {question.pack} may need more memory than is free: {question.largest} "
            "of the space's largest configurations fit; a pack that does not is halved"
        )
    if not question.open and not timed:
        pack, precision = question.pack or 1, question.precision or "fp32"
        return Calibration(pack, precision, largest=question.largest)
    listener.on_event("calibrating: pack size and precision for this machine, once")
    with sitting.on_device():
        found = calibrate(
            materials.trainer,
            materials.data,
            probe,
            question,
            go_on=lambda: not sitting.stopping(),
            timed=timed,
        )
    sitting.heed(definition.study.name, NOT_STORED)
    listener.on_event(found.sentence())
    return found


def _question(
    materials: "Materials", definition: StudyDefinition, largest: Configuration, most: int
) -> "Question":
    """What the study leaves to calibration; sizes that memory forbids are not tried."""
    from autopeft.execution.calibration import Question
    from autopeft.execution.fitting import lanes_that_fit

    given, precision = definition.search.pack, definition.training.precision
    in_process = definition.execution.executor == IN_PROCESS
    fitting = lanes_that_fit(largest, materials.trainer, in_process=in_process)
    packable = materials.backbone.anatomy.packable
    pack = (None if given == "auto" else int(given)) if packable else 1
    return Question(
        pack,
        None if precision == "auto" else precision,
        most if fitting is None else max(1, fitting),
    )
