"""What `deploy` takes out of a space, and why: so that nobody wonders where a method went."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from autopeft import counting
from autopeft.backbone.anatomy import Anatomy
from autopeft.configuration import Configuration
from autopeft.errors import BackboneError, Fault
from autopeft.export.peft_config import peft_faults
from autopeft.export.peft_passed import language_model_faults
from autopeft.export.peft_prompt import classifier_faults


def undeployable(configuration: Configuration, anatomy: Anatomy, *, causal: bool) -> list[Fault]:
    """Why HF `peft` cannot hold what a configuration comes to; [] where it can.

    Args:
        configuration: Of the space.
        anatomy: The backbone.
        causal: Whether the task is language modelling.
    """
    try:
        faults = peft_faults(counting.resolved(configuration, anatomy), anatomy)
        held_elsewhere = language_model_faults if causal else classifier_faults
        return faults or held_elsewhere(configuration)
    except BackboneError as error:
        return list(error.faults)


def left_out(
    configurations: Sequence[Configuration], anatomy: Anatomy, *, causal: bool
) -> Mapping[str, str]:
    """What `deploy: [peft]` never proposes of a space, with the reason, by method.

    Args:
        configurations: Of the space, many of them.
        anatomy: The backbone.
        causal: Whether the task is language modelling.

    Returns:
        A method that no configuration can have, or "a mixture of A and B" where each can be had
        alone, or a method followed by how much of it goes.
    """
    reasons: dict[str, list[str]] = {}
    mixed: dict[str, str] = {}
    for configuration in configurations:
        alone = {
            method: undeployable(_only(configuration, method), anatomy, causal=causal)
            for method in configuration.methods
        }
        for method, faults in alone.items():
            reasons.setdefault(method, []).append(_told(faults[0]) if faults else "")
        together = undeployable(configuration.without_rule(), anatomy, causal=causal)
        if together and not any(alone.values()):
            mixed.setdefault(f"a mixture of {' and '.join(alone)}", _told(together[0]))
    told = {}
    for method, found in sorted(reasons.items()):
        why = next((reason for reason in found if reason), "")
        if why and all(found):
            told[method] = why
        elif why:
            told[f"{method}, {sum(map(bool, found)) / len(found):.0%} of it"] = why
    return told | mixed


def _only(configuration: Configuration, method: str) -> Configuration:
    groups = tuple(group for group in configuration.groups if group.method == method)
    return replace(configuration.without_rule(), groups=groups)


def _told(fault: Fault) -> str:
    place = f"{fault.key} " if fault.key else ""
    return f"{place}{fault.given}; allowed: {fault.allowed}"
