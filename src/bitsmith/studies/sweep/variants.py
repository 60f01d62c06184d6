"""What a sweep consists of: variants, each a recipe and a way to find its numbers."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

from bitsmith.errors import InputError, RecipeError, UnknownNameError
from bitsmith.insight.measure import METHODS
from bitsmith.model.recipe import Recipe, Rule, weight_scheme
from bitsmith.numbers.calibrators import make_calibrator
from bitsmith.numbers.formats.codebook import LearnedFormat
from bitsmith.numbers.formats.integer import int8, integer_format
from bitsmith.numbers.formats.minifloat import fp16
from bitsmith.numbers.granularity import Granularity, PerChannel, PerGroup, PerTensor
from bitsmith.numbers.scheme import Scheme
from bitsmith.studies.sweep.algorithms import check_algorithm, flag
from bitsmith.zoo.models import zoo_models

__all__ = ["AXES", "FLOAT", "Variant", "chosen_variants"]

FLOAT = 32
_GROUP = re.compile(r"group([1-9]\d*)")


@final
@dataclass(frozen=True)
class Variant:
    """One way to quantize one network.

    Attributes:
        model: name in the zoo.
        method: ``float``, ``ptq``, ``ptq+finetune``, ``qat`` or ``codebook``.
        bits: of a weight's code; of an index where the method is ``codebook``.
        activations: bits of what layers read; 32: float, only weights are quantized.
        scheme: ``symmetric`` or ``asymmetric`` weights.
        granularity: ``tensor``, ``channel`` or ``group<size>``: who shares a scale.
        calibrator: of the ranges of activations, ``mse`` …; ``-`` where they are float.
        algorithm: of the weights: ``auto`` is what bitsmith does unless told otherwise; or the
            name of a rounding, with ``+equalize`` and ``+bias``.
    """

    model: str
    method: str = "ptq"
    bits: int = 8
    activations: int = 8
    scheme: str = "symmetric"
    granularity: str = "channel"
    calibrator: str = "mse"
    algorithm: str = "auto"

    @property
    def static(self) -> bool:
        """Whether activations have codes, ranges and integer sums."""
        return self.activations != FLOAT

    @property
    def name(self) -> str:
        """Bits of weights and activations, ``W4A8``; ``float`` for the float network."""
        if self.method == "float":
            return "float"
        table = "C" if self.method == "codebook" else "W"
        return f"{table}{self.bits}" + (f"A{self.activations}" if self.static else "")

    @property
    def label(self) -> str:
        """A line that tells it from every other of its network."""
        if self.method == "float":
            return "float"
        own = [self.name, self.method.upper() if self.method == "qat" else self.method]
        own += [self.scheme, self.granularity, self.calibrator, self.algorithm]
        return " ".join(own)

    def recipe(self) -> Recipe:
        """Return its recipe.

        Raises:
            RecipeError, SchemeError: there is none; the message says why.
        """
        table = self.method == "codebook"
        if not self.static:
            if table and self.scheme == "asymmetric":
                raise RecipeError(
                    "a learned table has the values it has: it is neither symmetric nor not"
                )
            return Recipe(self.name, _rules(self._scheme()), None)
        if table and self.scheme == "asymmetric":
            raise RecipeError("tables of the static lane hold symmetric int8 codes")
        return Recipe(
            self.name,
            self._tables() if table else _rules(self._scheme()),
            Scheme(integer_format(self.activations, signed=False), symmetric=False),
            self.calibrator,
            equalize=flag(self.algorithm, "equalize"),
            correct_bias=flag(self.algorithm, "bias"),
        )

    def _tables(self) -> tuple[Rule, ...]:
        entries = Scheme(int8, granularity=self._granularity())
        return _EMBEDDING, Rule("*", entries, table_bits=self.bits)

    def _granularity(self) -> Granularity:
        if found := _GROUP.fullmatch(self.granularity):
            return PerGroup(int(found[1]))
        return PerTensor() if self.granularity == "tensor" else PerChannel(0)

    def _scheme(self) -> Scheme:
        granularity = self._granularity()
        half = fp16 if isinstance(granularity, PerGroup) else None
        if self.method == "codebook":
            return Scheme(LearnedFormat(self.bits), granularity=granularity, scale_format=fp16)
        symmetric = self.scheme == "symmetric"
        number = integer_format(self.bits, signed=symmetric)
        return Scheme(number, symmetric, granularity, scale_format=half)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


_EMBEDDING = Rule("op:embedding", weight_scheme(8), optional=True)


def _rules(scheme: Scheme) -> tuple[Rule, ...]:
    return _EMBEDDING, Rule("*", scheme)


#: Axis → what it is unless told otherwise, where any axis is told.
AXES: dict[str, str] = {
    "model": "cifar-resnet20", "method": "ptq", "bits": "8", "activations": "8",
    "scheme": "symmetric", "granularity": "channel", "calibrator": "mse", "algorithm": "auto",
}  # fmt: skip


def chosen_variants(
    given: Mapping[str, str], default: str, *, quick: bool = False
) -> list[Variant]:
    """Return the float networks and every combination of the axes that are given.

    Args:
        given: axis → values with commas between them; an empty text: not given. Without any axis
            but ``model`` the default sweep.
        default: the network where none is given.
        quick: the default sweep is a short one.

    Raises:
        InputError, UnknownNameError: a value that no axis has; all of them are listed.
    """
    axes = {axis: _values(axis, given.get(axis, "")) for axis in AXES}
    models = axes["model"] or [default]
    faults = [fault for axis, values in axes.items() for fault in _faults(axis, values)]
    if faults:
        raise InputError("; ".join(faults))
    floats = [Variant(model, "float", FLOAT, FLOAT) for model in models]
    if not any(values for axis, values in axes.items() if axis != "model"):
        return floats + [v for model in models for v in (_quick if quick else _default)(model)]
    asked = {axis: values or [AXES[axis]] for axis, values in axes.items()} | {"model": models}
    product = (dict(zip(asked, parts, strict=True)) for parts in itertools.product(*asked.values()))
    return floats + list(dict.fromkeys(_variant(parts) for parts in product))


def _variant(parts: Mapping[str, str]) -> Variant:
    static = int(parts["activations"]) != FLOAT
    return Variant(
        parts["model"], parts["method"], int(parts["bits"]), int(parts["activations"]),
        parts["scheme"], parts["granularity"], parts["calibrator"] if static else "-",
        parts["algorithm"],
    )  # fmt: skip


def _values(axis: str, text: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _faults(axis: str, values: list[str]) -> list[str]:
    """Return what is wrong with the values of one axis."""
    if axis == "model":
        wrong = [v for v in values if v not in set(zoo_models)]
        for name in wrong[:1]:
            raise UnknownNameError("model", name, zoo_models)
    faults = []
    for value in values:
        try:
            _check(axis, value)
        except InputError as error:
            faults.append(f"{axis} {value!r}: {error}")
    return faults


def _check(axis: str, value: str) -> None:
    allowed: dict[str, tuple[str, ...]] = {
        "method": METHODS[1:],
        "bits": tuple(map(str, range(1, 9))),
        "activations": (*map(str, range(2, 9)), str(FLOAT)),
        "scheme": ("symmetric", "asymmetric"),
    }
    if axis in allowed and value not in allowed[axis]:
        raise InputError(f"known are {', '.join(allowed[axis])}")
    if axis == "granularity" and value not in ("tensor", "channel") and not _GROUP.fullmatch(value):
        raise InputError("known are tensor, channel and group<size>, as in group32")
    if axis == "calibrator":
        make_calibrator(value)
    if axis == "algorithm":
        check_algorithm(value)


def _default(model: str) -> list[Variant]:
    """Return the default sweep of a network: widths, then one axis after the other."""
    integers = [(8, 8), (6, 8), (4, 8), (3, 8), (2, 8), (6, 6), (4, 4), (3, 3)]
    found = [Variant(model, "ptq", w, a) for w, a in integers]
    found += [
        Variant(model, "ptq", 8, 8, granularity="tensor", algorithm="nearest"),
        Variant(model, "ptq", 4, 8, granularity="tensor"),
        Variant(model, "ptq", 4, 8, algorithm="nearest"),
        Variant(model, "ptq", 4, 8, algorithm="nearest+bias"),
        Variant(model, "ptq", 4, 4, calibrator="minmax"),
        Variant(model, "ptq", 4, 4, calibrator="percentile:99.9"),
    ]
    only = [(4, "symmetric", "channel"), (4, "asymmetric", "group32"), (3, "asymmetric", "group32")]
    only += [(2, "asymmetric", "group32")]
    found += [Variant(model, "ptq", b, FLOAT, s, g, "-") for b, s, g in only]
    found += [Variant(model, "codebook", b, 8) for b in (4, 3, 2)]
    found += [Variant(model, m, *wa) for wa in ((3, 3), (2, 8)) for m in ("ptq+finetune", "qat")]
    return found


def _quick(model: str) -> list[Variant]:
    """Return a few variants that take a second each, of every method, one of them impossible."""
    return [
        Variant(model, "ptq", 8, 8),
        Variant(model, "ptq", 8, 8, granularity="tensor", algorithm="nearest"),
        Variant(model, "ptq", 8, 8, scheme="asymmetric"),
        Variant(model, "ptq", 8, 4),
        Variant(model, "ptq", 4, FLOAT, "asymmetric", "group32", "-", "nearest"),
        Variant(model, "codebook", 4, FLOAT, calibrator="-"),
        Variant(model, "qat", 8, 4),
    ]
