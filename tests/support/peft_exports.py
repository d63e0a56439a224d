"""What of every registered method plain HF `peft` holds once it is trained."""

from collections.abc import Iterator

import tiny_backbones as tiny
from method_cases import configuration, fits, variants

from autopeft.api.deploying import undeployable
from autopeft.backbone.anatomy import Anatomy
from autopeft.configuration import Configuration
from autopeft.methods import registry

HELD = [name for name in registry.names() if registry[name].peft_type]
"""Methods that say that some type of `peft` holds them."""
ARCHITECTURES = ("bert", "llama")


def exports(name: str, anatomy: Anatomy, *, causal: bool) -> Iterator[Configuration]:
    """Every variant of a method that `deploy: [peft]` lets a study propose.

    In layers apart, in all of them, or in the first, whichever `peft` holds.
    """
    for given in variants(name):
        for layers in ((), range(len(anatomy.layers)), (0,)):
            if not fits(name, anatomy, **given):
                continue
            found = configuration(name, anatomy, layers=layers, **given)
            if not undeployable(found, anatomy, causal=causal):
                yield found
                break


def is_exported(name: str, *, causal: bool) -> bool:
    """Whether `peft` holds a method on some backbone, for classification or language modelling."""
    anatomies = (tiny.tiny_backbone(architecture).anatomy for architecture in ARCHITECTURES)
    return any(any(exports(name, anatomy, causal=causal)) for anatomy in anatomies)
