"""The whole decision as data: which layer, which schemes, which calibrator.

A recipe is an ordered list of rules; for every layer the first rule that matches wins, and a rule
that matches nothing is an error. Presets have names (:mod:`bitsmith.model.presets`); a recipe is
also plain JSON, both ways.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, final

from bitsmith.errors import RecipeError
from bitsmith.numbers.calibrators import make_calibrator
from bitsmith.numbers.formats.integer import int1, int8, integer_format, ternary
from bitsmith.numbers.scheme import Granularity, PerChannel, PerTensor, PerToken, Scheme

__all__ = ["Lane", "Recipe", "Rule", "weight_scheme", "with_bits"]

Lane = Literal["static", "module"]
_CORRECTIONS = ("equalize", "correct_bias")
_CHANNELS = PerChannel(0)


@final
@dataclass(frozen=True)
class Rule:
    """What happens to the layers a pattern matches.

    Attributes:
        match: shell-style pattern on the layer's name (``layer1.*``), or ``op:conv`` for every
            layer of one operator.
        weight: scheme of the weight; None keeps the layer in float.
        optional: may match nothing, as a preset's rule for embeddings in a network without.
        table_bits: the codes of a layer take at most ``2^table_bits`` distinct values, a table of
            its own (static lane; ``weight`` is the scheme of the table's 8-bit entries). None:
            every code of the scheme.

    Raises:
        RecipeError: a table that its entries' scheme cannot hold.
    """

    match: str
    weight: Scheme | None
    optional: bool = False
    table_bits: int | None = None

    def __post_init__(self) -> None:
        if self.table_bits is None:
            return
        entries = self.weight is not None and self.weight.format == int8 and self.weight.symmetric
        if self.table_bits not in range(1, 8) or not entries:
            raise RecipeError(
                f"rule {self.match!r}: a table has 2^1 to 2^7 entries of symmetric int8, not "
                f"2^{self.table_bits} of {self.weight and self.weight.format}"
            )

    def matches(self, name: str, op: str) -> bool:
        """Whether the rule applies to the layer ``name`` with operator ``op``."""
        if self.match.startswith("op:"):
            return fnmatchcase(op, self.match[3:])
        return fnmatchcase(name, self.match)


@final
@dataclass(frozen=True)
class Recipe:
    """Rules for weights, one scheme and one calibrator for activations, and corrections.

    Attributes:
        name: what reports call it.
        rules: ordered; the first that matches wins.
        activation: scheme of what layers and products of activations read. One range for a
            tensor, calibrated: the static lane (a captured graph in integers); what joining
            operators read (sums, concatenations, pools) then has 8 bits. One range for each
            token, found when the layer runs, or None (activations stay float): the module lane.
        calibrator: short form of a calibrator, ``mse`` or ``percentile:99.99``; static lane.
        edge_bits: bits of the weight and of the input of the first and the last layer; None: like
            the others.
        equalize: channels of layers that follow each other get like ranges before anything is
            quantized (:func:`bitsmith.model.equalize.equalize`); static lane. None: where a weight
            has one scale for all channels, because only then there is something to win.
        correct_bias: biases take back the mean error of each output channel; static lane. None:
            where a weight or an activation has fewer than 8 bits, or a weight a table or one scale
            for all channels.

    Raises:
        RecipeError: a part that cannot be.
    """

    name: str
    rules: tuple[Rule, ...]
    activation: Scheme | None
    calibrator: str = "mse"
    edge_bits: int | None = None
    equalize: bool | None = None
    correct_bias: bool | None = None

    def __post_init__(self) -> None:
        if not self.rules:
            raise RecipeError(f"recipe {self.name!r} has no rules")
        if self.activation is not None and self.activation.granularity not in (
            PerTensor(),
            PerToken(),
        ):
            raise RecipeError(
                f"recipe {self.name!r}: activations have one range per tensor (static) or per "
                f"token (dynamic), not {self.activation.granularity}"
            )
        if self.lane == "static" and not 2 <= self.static_activation.integer.bits <= 8:
            raise RecipeError(
                f"recipe {self.name!r}: static activations have 2 to 8 bits, not "
                f"{self.static_activation.format}"
            )
        if self.lane == "module" and any(r.table_bits is not None for r in self.rules):
            raise RecipeError(f"recipe {self.name!r}: tables of int8 entries are static only")
        if self.edge_bits is not None and self.edge_bits not in range(2, 9):
            raise RecipeError(f"recipe {self.name!r}: edges have 2 to 8 bits, not {self.edge_bits}")
        if self.lane == "module" and not (self.equalize is self.correct_bias is None):
            raise RecipeError(
                f"recipe {self.name!r}: equalize and correct_bias are static only; the module "
                "lane has transforms (transform=…)"
            )
        if self.lane == "static" and (wrong := [r.match for r in self.rules if not _fits(r)]):
            raise RecipeError(
                f"recipe {self.name!r}: weights of the static lane are symmetric, with a scale for "
                "each output channel or, of 2 bits and more and without tables, one for all; not "
                f"those of the rules {', '.join(wrong)}"
            )
        make_calibrator(self.calibrator)

    @property
    def lane(self) -> Lane:
        """``static``: a captured graph in integers; ``module``: layers are swapped."""
        static = self.activation is not None and self.activation.granularity == PerTensor()
        return "static" if static else "module"

    @property
    def static_activation(self) -> Scheme:
        """The scheme of what layers read, in the static lane.

        Raises:
            RecipeError: the recipe is one of the module lane.
        """
        if self.activation is None or self.lane != "static":
            raise RecipeError(f"recipe {self.name!r} has no static activations")
        return self.activation

    @property
    def edge_activation(self) -> Scheme:
        """The scheme of what the first and the last layer read, in the static lane."""
        if self.edge_bits is None:
            return self.static_activation
        return with_bits(self.static_activation, self.edge_bits)

    @property
    def joining_activation(self) -> Scheme:
        """The scheme of what every other operator reads, in the static lane: 8 bits."""
        return with_bits(self.static_activation, 8)

    def edges(self, layers: Iterable[tuple[str, str]]) -> frozenset[str]:
        """Return the names of the layers that ``edge_bits`` speaks of: the first and the last."""
        names = [name for name, _ in layers]
        return frozenset({names[0], names[-1]} if names and self.edge_bits is not None else ())

    def tables(self, layers: Iterable[tuple[str, str]]) -> dict[str, int]:
        """Return layer name → bits of an index into its table, where a rule gives one."""
        pairs = list(layers)
        edges = self.edges(pairs)
        found = {
            name: next((r.table_bits for r in self.rules if r.matches(name, op)), None)
            for name, op in pairs
            if name not in edges
        }
        return {name: bits for name, bits in found.items() if bits is not None}

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
        if unused := [r.match for r in self.rules if r.match not in used and not r.optional]:
            raise RecipeError(
                f"recipe {self.name!r}: rules that match no layer: {', '.join(unused)}; "
                f"layers are {', '.join(n for n, _ in pairs) or 'none'}"
            )
        if self.edge_bits is not None:
            for name in self.edges(pairs):
                if (scheme := chosen.get(name)) is not None:
                    chosen[name] = weight_scheme(self.edge_bits, scheme.granularity)
        return chosen

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as plain data, the inverse of :meth:`from_json`."""
        return {
            "version": 1,
            "name": self.name,
            "lane": self.lane,
            "rules": [
                {"match": r.match, "weight": None if r.weight is None else r.weight.to_json()}
                | ({"optional": True} if r.optional else {})
                | ({} if r.table_bits is None else {"table_bits": r.table_bits})
                for r in self.rules
            ],
            "activation": None if self.activation is None else self.activation.to_json(),
            "calibrator": self.calibrator,
            "edge_bits": self.edge_bits,
            **{k: v for k in _CORRECTIONS if (v := getattr(self, k)) is not None},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        """Return the recipe that :meth:`to_json` wrote; unknown keys are an error."""
        if not isinstance(data, Mapping):
            raise RecipeError(f"a recipe is a JSON object, not {type(data).__name__}")
        known = {"version", "name", "lane", "rules", "activation", "calibrator", "edge_bits"}
        known |= set(_CORRECTIONS)
        if unknown := sorted(set(data) - known):
            raise RecipeError(
                f"a recipe has no {', '.join(unknown)}; it has {', '.join(sorted(known))}"
            )
        if data.get("version", 1) != 1:
            raise RecipeError(f"recipe version {data['version']!r} is not known here; known: 1")
        try:
            rules = tuple(
                Rule(
                    _text(r["match"]),
                    None if r["weight"] is None else Scheme.from_json(r["weight"]),
                    bool(r.get("optional", False)),
                    r.get("table_bits"),
                )
                for r in data["rules"]
            )
            given = data["activation"]
            recipe = cls(
                name=_text(data["name"]),
                rules=rules,
                activation=None if given is None else Scheme.from_json(given),
                calibrator=data.get("calibrator", "mse"),
                edge_bits=data.get("edge_bits"),
                **{key: _choice(key, data.get(key)) for key in _CORRECTIONS},
            )
            if data.get("lane", recipe.lane) != recipe.lane:
                raise RecipeError(
                    f"recipe lane {data['lane']!r} is not known here, or not that of its "
                    f"activations: they make it {recipe.lane!r}"
                )
            return recipe
        except (KeyError, TypeError, AttributeError) as error:
            raise RecipeError(f"a recipe needs name, rules and activation: {error!r}") from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a name is text, not {value!r}")
    return value


def _choice(key: str, value: Any) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"{key} is true, false or absent, not {value!r}")
    return value


def _fits(rule: Rule) -> bool:
    """Whether the static lane has integers for the weights of a rule."""
    scheme = rule.weight
    if scheme is None or (scheme.symmetric and scheme.granularity == PerChannel(0)):
        return True
    several = scheme.format not in (int1, ternary) and rule.table_bits is None
    return scheme.symmetric and scheme.granularity == PerTensor() and several


def weight_scheme(bits: int, granularity: Granularity = _CHANNELS) -> Scheme:
    """Return the weight scheme of the static lane: symmetric, mostly per output channel."""
    return Scheme(integer_format(bits, signed=True), granularity=granularity)


def with_bits(scheme: Scheme, bits: int) -> Scheme:
    """Return an integer scheme with another number of bits.

    >>> with_bits(Scheme(integer_format(4, signed=False), symmetric=False), 8).format
    uint8
    """
    if bits == scheme.integer.bits:
        return scheme
    number = integer_format(bits, signed=scheme.integer.signed)
    return replace(scheme, format=number, narrow_range=None)
