"""``bitsmith list``: the names that the other commands understand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from bitsmith.cli.options import Json
from bitsmith.cli.output import Output, json_path
from bitsmith.cli.staging import Staging
from bitsmith.errors import UnknownNameError

__all__ = ["list_names"]

#: Where the objects of each kind go in a record.
_KEYS = {"calibrators": "calibrator", "algorithms": "algorithm", "targets": "target"}
_KEYS |= {
    "recipes": "recipe",
    "datasets": "dataset",
    "models": "model",
    "runtimes": "runtime",
    "studies": "study",
}


def list_names(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="formats, calibrators, algorithms, targets, exporters, recipes, studies, "
            "datasets, models or runtimes.",
        ),
    ],
    json: Json = None,
) -> None:
    """List the names of one kind, each with what it is."""
    output = Output("list", json)
    if kind not in _KINDS:
        raise UnknownNameError("kind", kind, _KINDS)
    with Staging([json_path(json)]) as staging:
        from bitsmith.insight.measure import Record

        rows = _KINDS[kind]()
        output.table(["name", ""], rows)
        records = [Record(**_fields(kind, name), reason=what) for name, what in rows]
        output.json(records, staging)


def _fields(kind: str, name: str) -> dict[str, Any]:
    """A name under its own key; where records have none (formats, exporters), as outcome."""
    if kind in _KEYS:
        return {_KEYS[kind]: name}
    return {"op": kind.removesuffix("s"), "outcome": name}


def _summary(thing: Any) -> str:
    """The first sentence of an object's documentation."""
    text = " ".join((thing.__doc__ or "").split("\n\n")[0].split())
    return text if len(text) <= 100 else text.split(". ")[0].rstrip(".") + "."


def _formats() -> list[tuple[str, str]]:
    from bitsmith.numbers.description import describe
    from bitsmith.numbers.formats import formats

    rows = []
    for name in formats:
        facts = describe(formats[name])
        what = f"{facts['family']}, {facts['bits']} bits"
        if facts["min"] is None:
            rows.append((name, f"{what}: {facts['values']} values, learned for each tensor"))
        else:
            rows.append((name, f"{what}, {facts['min']:g} to {facts['max']:g}"))
    return rows


def _calibrators() -> list[tuple[str, str]]:
    from bitsmith.numbers.calibrators import calibrators

    return [(n, _summary(calibrators[n])) for n in calibrators]


def _algorithms() -> list[tuple[str, str]]:
    from bitsmith.algorithms.rounding import Rounding

    return [(n, _summary(Rounding.registry[n])) for n in Rounding.registry]


def _targets() -> list[tuple[str, str]]:
    from bitsmith.model.targets import targets

    return [
        (n, f"{_summary(targets[n])} --machine {'|'.join(targets[n].machines)}") for n in targets
    ]


def _exporters() -> list[tuple[str, str]]:
    from bitsmith.deploy.export import exporters

    return [(n, f"{_summary(exporters[n])} ({exporters[n].suffix})") for n in exporters]


def _recipes() -> list[tuple[str, str]]:
    from bitsmith.model.presets import make_recipe, preset_names

    rows = []
    for name in preset_names():
        recipe = make_recipe(name)
        weight = recipe.rules[-1].weight
        edge = f", first and last layer {recipe.edge_bits} bits" if recipe.edge_bits else ""
        what = "none" if weight is None else f"{weight.format} {weight.granularity}"
        activation = "float" if recipe.activation is None else recipe.activation.format
        rows.append((name, f"{recipe.lane}: weights {what}, activations {activation}{edge}"))
    return rows


def _studies() -> list[tuple[str, str]]:
    from bitsmith.studies import studies

    return [(n, studies[n].title) for n in studies]


def _datasets() -> list[tuple[str, str]]:
    from bitsmith.data import datasets
    from bitsmith.data.texts import texts

    samples = [(n, _summary(datasets[n])) for n in datasets]
    return samples + [(n, f"Text: {_summary(texts[n])}") for n in texts]


def _models() -> list[tuple[str, str]]:
    from bitsmith.zoo import zoo_models

    return [(n, f"{_summary(zoo_models[n])} Data: {zoo_models[n].dataset}") for n in zoo_models]


def _runtimes() -> list[tuple[str, str]]:
    from bitsmith.deploy.runtimes import runtimes

    return [(n, _summary(runtimes[n])) for n in runtimes]


_KINDS: dict[str, Callable[[], list[tuple[str, str]]]] = {
    "formats": _formats,
    "calibrators": _calibrators,
    "algorithms": _algorithms,
    "targets": _targets,
    "exporters": _exporters,
    "recipes": _recipes,
    "studies": _studies,
    "datasets": _datasets,
    "models": _models,
    "runtimes": _runtimes,
}
