"""The whole decision as data: which layer, which schemes, which calibrator.

A recipe is an ordered list of rules; for every layer the first rule that matches wins, and a rule
that matches nothing is an error. Presets follow the grammar
``W<bits>[G<group>][A<bits>][-dynamic][-edge8]``; a recipe is also plain JSON, both ways.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, final

from bitsmith.errors import RecipeError
from bitsmith.numbers.calibrators import make_calibrator
from bitsmith.numbers.formats.integer import integer_format
from bitsmith.numbers.scheme import PerChannel, Scheme

__all__ = ["Recipe", "Rule", "make_recipe", "preset_names"]

_GRAMMAR = re.compile(
    r"W(?P<w>[1-8])(?:G(?P<g>\d+))?(?:A(?P<a>[1-8]))?(?P<d>-dynamic)?(?P<e>-edge8)?"
)
_HELP = "presets read W<bits>[A<bits>][-edge8], for example W8A8 or W4A8-edge8; or give a JSON file"


@final
@dataclass(frozen=True)
class Rule:
    """What happens to the layers a pattern matches.

    Attributes:
        match: shell-style pattern on the layer's name (``layer1.*``), or ``op:conv`` for every
            layer of one operator.
        weight: scheme of the weight; None keeps the layer in float.
    """

    match: str
    weight: Scheme | None

    def matches(self, name: str, op: str) -> bool:
        """Whether the rule applies to the layer ``name`` with operator ``op``."""
        if self.match.startswith("op:"):
            return fnmatchcase(op, self.match[3:])
        return fnmatchcase(name, self.match)


@final
@dataclass(frozen=True)
class Recipe:
    """Rules for weights, one scheme and one calibrator for activations.

    Attributes:
        name: what reports call it.
        rules: ordered; the first that matches wins.
        activation: scheme of every quantized activation.
        calibrator: short form of a calibrator, ``mse`` or ``percentile:99.99``.
        edge_bits: weight bits of the first and the last layer; None: like the others.
    """

    name: str
    rules: tuple[Rule, ...]
    activation: Scheme
    calibrator: str = "mse"
    edge_bits: int | None = None
    lane: Literal["static"] = "static"

    def __post_init__(self) -> None:
        if not self.rules:
            raise RecipeError(f"recipe {self.name!r} has no rules")
        make_calibrator(self.calibrator)

    def weights(self, layers: Iterable[tuple[str, str]]) -> dict[str, Scheme | None]:
        """Return layer name → weight scheme (None: keep in float) for ``(name, operator)`` pairs.

        Raises:
            RecipeError: a rule matches no layer; every such rule is listed.
        """
        pairs = list(layers)
        chosen: dict[str, Scheme | None] = {}
        used: set[str] = set()
        for name, op in pairs:
            applicable = [r for r in self.rules if r.matches(name, op)]
            used.update(r.match for r in applicable)
            if applicable:
                chosen[name] = applicable[0].weight
        if unused := [r.match for r in self.rules if r.match not in used]:
            raise RecipeError(
                f"recipe {self.name!r}: rules that match no layer: {', '.join(unused)}; "
                f"layers are {', '.join(n for n, _ in pairs) or 'none'}"
            )
        if self.edge_bits is not None and pairs:
            for name in (pairs[0][0], pairs[-1][0]):
                if chosen.get(name) is not None:
                    chosen[name] = weight_scheme(self.edge_bits)
        return chosen

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as plain data, the inverse of :meth:`from_json`."""
        return {
            "version": 1,
            "name": self.name,
            "lane": self.lane,
            "rules": [
                {"match": r.match, "weight": None if r.weight is None else r.weight.to_json()}
                for r in self.rules
            ],
            "activation": self.activation.to_json(),
            "calibrator": self.calibrator,
            "edge_bits": self.edge_bits,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        """Return the recipe that :meth:`to_json` wrote; unknown keys are an error."""
        if not isinstance(data, Mapping):
            raise RecipeError(f"a recipe is a JSON object, not {type(data).__name__}")
        known = {"version", "name", "lane", "rules", "activation", "calibrator", "edge_bits"}
        if unknown := sorted(set(data) - known):
            raise RecipeError(
                f"a recipe has no {', '.join(unknown)}; it has {', '.join(sorted(known))}"
            )
        for key, only in (("version", 1), ("lane", "static")):
            if data.get(key, only) != only:
                raise RecipeError(f"recipe {key} {data[key]!r} is not known here; known: {only!r}")
        try:
            rules = tuple(
                Rule(
                    _text(r["match"]),
                    None if r["weight"] is None else Scheme.from_json(r["weight"]),
                )
                for r in data["rules"]
            )
            return cls(
                name=_text(data["name"]),
                rules=rules,
                activation=Scheme.from_json(data["activation"]),
                calibrator=data.get("calibrator", "mse"),
                edge_bits=data.get("edge_bits"),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise RecipeError(f"a recipe needs name, rules and activation: {error!r}") from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a name is text, not {value!r}")
    return value


def weight_scheme(bits: int) -> Scheme:
    """Return the weight scheme of the static lane: symmetric, per output channel."""
    return Scheme(integer_format(bits, signed=True), granularity=PerChannel(0))


def preset_names() -> list[str]:
    """Return the presets that the static lane offers."""
    plain = [f"W{bits}A8" for bits in range(8, 1, -1)]
    return plain + [f"{name}-edge8" for name in plain[1:]]


def make_recipe(spec: str | Path | Recipe) -> Recipe:
    """Return the recipe of a preset's name or of a JSON file.

    Raises:
        RecipeError: the name does not parse, or names what this version does not do; the
            message says which part.

    >>> make_recipe("W8A8").rules[0].weight.format
    int8
    """
    if isinstance(spec, Recipe):
        return spec
    text = str(spec)
    if text.endswith(".json"):
        try:
            return Recipe.from_json(json.loads(Path(text).read_text()))
        except OSError as error:
            raise RecipeError(f"recipe file {text} cannot be read: {error.strerror}") from error
        except json.JSONDecodeError as error:
            raise RecipeError(f"recipe file {text} is not JSON: {error}") from error
    return _preset(text)


def _preset(text: str) -> Recipe:
    found = _GRAMMAR.fullmatch(text)
    if found is None:
        close = difflib.get_close_matches(text.upper(), preset_names(), n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise RecipeError(f"unknown recipe {text!r}{hint} {_HELP}")
    refused = []
    if found["a"] is None or found["d"] or found["g"]:
        refused.append(
            "weight-only, grouped and dynamic recipes need the module lane, which is not built yet"
        )
    if found["a"] not in (None, "8"):
        refused.append(f"activations of {found['a']} bits: the onnxruntime target runs 8-bit codes")
    if found["w"] == "1":
        refused.append("1-bit weights need training")
    if refused:
        raise RecipeError(f"recipe {text!r} is not available: {'; '.join(refused)}. {_HELP}")
    return Recipe(
        name=text,
        rules=(Rule("*", weight_scheme(int(found["w"]))),),
        activation=Scheme(integer_format(8, signed=False), symmetric=False),
        edge_bits=8 if found["e"] else None,
    )
