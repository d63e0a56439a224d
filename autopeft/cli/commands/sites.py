"""`autopeft sites`: the layers and sites of a model, from its configuration alone."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autopeft.cli.options import JsonOption
from autopeft.cli.streams import console, print_json
from autopeft.errors import Fault, InputError

if TYPE_CHECKING:
    from autopeft.backbone.anatomy import Anatomy, Layer, Site


def sites(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A hub id or a folder.", show_default=False)
    ],
    revision: Annotated[
        str | None, typer.Option(metavar="REVISION", help="A branch, tag or commit.")
    ] = None,
    declared: Annotated[
        list[str] | None,
        typer.Option(
            "--site",
            metavar="ROLE=REGEX",
            help="Declares a role's modules, like model.sites in a study file; repeatable.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a model's layers and sites with module names.

    Read from the model's configuration alone; repeated layers are shown once.
    """
    from autopeft import api
    from autopeft.cli.tables import plain_table, print_table

    anatomy = api.sites(model, revision=revision, declared=_declared(declared or []) or None)
    if as_json:
        print_json(_plain(anatomy))
        return
    target = console()
    for line in _summary(anatomy):
        target.print(line, soft_wrap=True)
    table = plain_table("layers", "role", "module", "in", "out", "", right=("in", "out"))
    for layers in _runs(anatomy.layers):
        numbers = _numbers(layers)
        for role, site in layers[0].sites.items():
            module = _module(layers, site)
            table.add_row(
                numbers, role, module, str(site.in_features), str(site.out_features), _notes(site)
            )
            numbers = ""
    print_table(target, table)


def _declared(texts: Sequence[str]) -> dict[str, str]:
    """Roles and their regular expressions."""
    pairs = [text.partition("=") for text in texts]
    faults = [
        Fault("--site", "", text, "ROLE=REGEX")
        for text, (role, _, regex) in zip(texts, pairs, strict=True)
        if not role or not regex
    ]
    if faults:
        raise InputError(faults)
    return {role: regex for role, _, regex in pairs}


def _plain(anatomy: "Anatomy") -> dict[str, Any]:
    plain = asdict(anatomy)
    return plain | {
        "roles": list(anatomy.roles),
        "sublayers": list(anatomy.sublayers),
        "carries_prefix": anatomy.carries_prefix,
    }


def _summary(anatomy: "Anatomy") -> Iterator[str]:
    yield (
        f"{anatomy.architecture}: {len(anatomy.layers)} layers, hidden {anatomy.hidden_size}, "
        f"FFN {anatomy.intermediate_size}, {anatomy.n_heads} heads of {anatomy.head_dim} "
        f"({anatomy.n_kv_heads} key/value), {anatomy.n_params:,} parameters, {anatomy.modality}"
        f"{', causal' if anatomy.causal else ''}"
    )
    yield f"sub-layers: {', '.join(anatomy.sublayers) or 'none'}"
    yield f"prefix: {'yes' if anatomy.carries_prefix else 'no'}"
    lanes = "trained together" if anatomy.packable else f"in packs of one: {anatomy.why_not}"
    yield f"lanes: {lanes}"


def _runs(layers: Sequence["Layer"]) -> Iterator[list["Layer"]]:
    """Neighbouring layers that look alike but for their index."""
    for _, run in groupby(layers, key=_look):
        yield list(run)


def _look(layer: "Layer") -> tuple[Any, ...]:
    return tuple(
        (role, _within(layer, site), site.in_features, site.out_features, _notes(site))
        for role, site in layer.sites.items()
    )


def _within(layer: "Layer", site: "Site") -> str:
    """A site's module name, as seen from its layer."""
    return site.module.removeprefix(layer.module)


def _numbers(layers: Sequence["Layer"]) -> str:
    first, last = layers[0].index, layers[-1].index
    return str(first) if first == last else f"{first}-{last}"


def _module(layers: Sequence["Layer"], site: "Site") -> str:
    """The module's name, with the layers' numbers as a range where they are alike."""
    head, dot, number = layers[0].module.rpartition(".")
    if len(layers) == 1 or number != str(layers[0].index):
        return site.module
    return f"{head}{dot}{{{_numbers(layers)}}}{_within(layers[0], site)}"


def _notes(site: "Site") -> str:
    notes = []
    if site.fused:
        notes.append(f"rows {site.start}-{site.start + site.out_features - 1} of a fused map")
    if site.transposed:
        notes.append("stored as [in, out]")
    if not site.bias:
        notes.append("no bias")
    return ", ".join(notes)
