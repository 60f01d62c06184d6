"""``bitsmith list``: the names that the other commands understand."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from bitsmith.cli.options import Json
from bitsmith.cli.output import Output, json_path
from bitsmith.cli.staging import Staging
from bitsmith.cli.synthetic import ABOUT, SYNTHETIC
from bitsmith.errors import UnknownNameError
from bitsmith.registry import Registry

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
        output.table(["name", "kind", ""] if len(rows[0]) == 3 else ["name", ""], rows)
        records = [Record(**_fields(kind, *row[:-1]), reason=row[-1]) for row in rows]
        output.json(records, staging)


def _fields(kind: str, name: str, family: str | None = None) -> dict[str, Any]:
    """A name under its own key; where records have none (formats, exporters), as outcome."""
    if kind in _KEYS:
        return {_KEYS[kind]: name} | ({} if family is None else {"op": family})
    one = kind.removesuffix("s")
    return {"op": one if family is None else f"{family} {one}", "outcome": name}


def _summary(thing: Any) -> str:
    """The first sentence of an object's documentation, without its cross-references' markup."""
    text = " ".join((thing.__doc__ or "").split("\n\n")[0].split())
    text = re.sub(r":\w+:`~?([^`]*)`", r"\1", text)
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


def _algorithms() -> list[tuple[str, str, str]]:
    """Members of every family there is: of every class of ``algorithms`` with a registry."""
    from bitsmith import algorithms

    families: dict[str, Registry[Any]] = {}
    for leaf in pkgutil.iter_modules(algorithms.__path__, f"{algorithms.__name__}."):
        for thing in vars(importlib.import_module(leaf.name)).values():
            if isinstance(thing, type) and thing.__module__ == leaf.name:
                own = vars(thing).get("registry")
                if isinstance(own, Registry):
                    families[own.kind] = own
    return [(n, kind, _summary(own[n])) for kind, own in families.items() for n in own]


def _targets() -> list[tuple[str, str]]:
    from bitsmith.model.targets import targets

    return [
        (n, f"{_summary(targets[n])} --machine {'|'.join(targets[n].machines)}") for n in targets
    ]


def _exporters() -> list[tuple[str, str, str]]:
    from bitsmith.deploy.export import exporters, module_exporters

    families: dict[str, Registry[Any]] = {"graph": exporters, "module": module_exporters}
    return [
        (n, family, f"{_summary(members[n])} ({members[n].suffix or 'a folder'})")
        for family, members in families.items()
        for n in members
    ]


def _recipes() -> list[tuple[str, str]]:
    from bitsmith.model.presets import make_recipe, preset_names

    rows = []
    for name in preset_names():
        recipe = make_recipe(name)
        weight, table = recipe.rules[-1].weight, recipe.rules[-1].table_bits
        edge = f", first and last layer {recipe.edge_bits} bits" if recipe.edge_bits else ""
        what = "none" if weight is None else f"{weight.format} {weight.granularity}"
        what += "" if table is None else f" from {1 << table} values a layer"
        activation = "float" if recipe.activation is None else recipe.activation.format
        rows.append((name, f"{recipe.lane}: weights {what}, activations {activation}{edge}"))
    return rows


def _studies() -> list[tuple[str, str]]:
    from bitsmith.studies import studies

    rows = []
    for name in studies:
        own = [f"{key}={s.default} ({s.about})" for key, s in studies[name].settings.items()]
        rows.append((name, f"{studies[name].title}{'. --set ' if own else ''}{', '.join(own)}"))
    return rows


def _datasets() -> list[tuple[str, str]]:
    from bitsmith.data import datasets
    from bitsmith.data.texts import texts

    samples = [(n, _summary(datasets[n])) for n in datasets]
    samples += [(n, f"Text: {_summary(texts[n])}") for n in texts]
    return [*samples, (SYNTHETIC, ABOUT)]


def _models() -> list[tuple[str, str]]:
    from bitsmith.zoo import zoo_models

    return [(n, f"{_summary(zoo_models[n])} Data: {zoo_models[n].dataset}") for n in zoo_models]


def _runtimes() -> list[tuple[str, str]]:
    from bitsmith.deploy.runtimes import runtimes

    return [(n, _summary(runtimes[n])) for n in runtimes]


#: Rows of name and what it is; where a kind has several families, the family between them.
_KINDS: dict[str, Callable[[], Sequence[tuple[str, ...]]]] = {
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
