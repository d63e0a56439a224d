"""What can be searched over: the registered methods, as their files describe them."""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import getdoc
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autopeft.methods import Method

_PAPER = re.compile(r"\b\d{4}\.\d{4,5}\b")


@dataclass(frozen=True)
class MethodCard:
    """A method, told to whoever writes a space.

    Attributes:
        name: As in YAML.
        about: What it is, in a sentence.
        source: The paper or code that defines it.
        papers: arXiv numbers that it and its file name, in order.
        size: The parameter that is its size; "" where nothing of it scales.
        settings: All parameters and what each may be, in words.
        sites: Where it may sit; () where the method implies it.
        lanes: Whether its trials train together in a pack; else each is a pack of one.
        count: Trainable parameters at one place, as its file says it.
        modalities: Kinds of backbones that it is for.
        exports: Formats that can carry it, alone and on its usual sites; `peft-registered` is what
            `autopeft train` writes where plain `peft` holds nothing.
    """

    name: str
    about: str
    source: str
    papers: tuple[str, ...]
    size: str
    settings: Mapping[str, str]
    sites: tuple[str, ...]
    count: str
    modalities: tuple[str, ...]
    exports: tuple[str, ...]
    lanes: bool = True


def methods() -> tuple[MethodCard, ...]:
    """Every method with a file of its own, by name."""
    from autopeft.methods import registry

    return tuple(_card(registry[name]) for name in sorted(registry.names()))


def passed_types() -> tuple[MethodCard, ...]:
    """Every type of HF `peft` that is passed through as `peft:<TYPE>`; imports `peft`."""
    from autopeft.methods import registry
    from autopeft.methods.passed.about import ABOUT
    from autopeft.methods.passed.family import PassedType

    cards = []
    for name in registry.offered():
        method = registry[name]
        if isinstance(method, PassedType):
            about, papers = f"HF peft: {method.kind.about}", _numbers(method.source)
            told = ABOUT[method.kind.name].told()
            cards.append(_described(method, about, papers=papers, count=told, lanes=False))
    return tuple(cards)


def absent_methods() -> dict[str, str]:
    """Types of `peft` that a space may not name: name -> reason."""
    from autopeft.space import method_names

    return method_names.absent_methods()


def _card(method: "Method") -> MethodCard:
    text = sys.modules[type(method).__module__].__doc__ or ""
    about = _first_paragraph(text).partition(": ")[2].strip()
    return _described(method, about, papers=_numbers(f"{text} {method.source}"))


def _numbers(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_PAPER.findall(text)))


def _described(
    method: "Method",
    about: str,
    *,
    papers: tuple[str, ...],
    count: str = "",
    lanes: bool = True,
) -> MethodCard:
    schema = method.schema
    return MethodCard(
        name=schema.name,
        about=about,
        source=method.source,
        papers=papers,
        size=schema.size,
        settings={each.name: _legal(each) for each in schema.parameters},
        sites=schema.sites,
        count=count or _first_paragraph(getdoc(method.count) or "").rstrip("."),
        modalities=method.modalities,
        exports=_exports(method),
        lanes=lanes,
    )


def _first_paragraph(text: str) -> str:
    return text.split("\n\n", maxsplit=1)[0].replace("\n", " ").strip()


def _exports(method: "Method") -> tuple[str, ...]:
    from autopeft.export.adapter import REGISTERED
    from autopeft.export.peft_registered import holds
    from autopeft.export.trainers import CARRIED

    name = method.schema.name
    plain = ("peft",) if method.peft_type else ()
    ours = (REGISTERED,) if holds(name) else ()
    return ("yaml", *plain, *ours, *(("axolotl", "llama-factory") if name in CARRIED else ()))


def _legal(parameter: Any) -> str:
    if parameter.words:
        legal = " | ".join(parameter.words)
    elif parameter.kind in ("int", "float"):
        low, high = parameter.minimum, parameter.maximum
        legal = parameter.kind + (f" >= {low:g}" if low is not None else "")
        legal += f", <= {high:g}" if high is not None else ""
    else:
        legal = parameter.kind
    default = parameter.default
    if default is None:
        return legal
    return f"{legal}; default {str(default).lower() if isinstance(default, bool) else default}"
