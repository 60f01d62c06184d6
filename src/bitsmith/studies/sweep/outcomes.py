"""What a sweep gave: outcomes beside the float network, the front, and single choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, final

from torch import Tensor

from bitsmith.insight.measure import paired_difference, wilson_interval
from bitsmith.studies.sweep.variants import Variant
from bitsmith.studies.sweep.work import right_of

__all__ = ["Choice", "Difference", "Outcome", "choices", "front", "outcomes"]


@final
@dataclass(frozen=True)
class Difference:
    """Two networks on the same samples: points of accuracy, and their 95 % interval."""

    delta: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1: better, −1: worse, 0: not distinguishable."""
        return (self.low > 0) - (self.high < 0)


@final
@dataclass(frozen=True, eq=False)
class Outcome:
    """One variant that was measured.

    Attributes:
        variant: which.
        right: whether each test sample was right, bool [N].
        bytes: of codes, scales, tables and whatever stays float.
        against: less the float network, paired; None: it is the float network.
    """

    variant: Variant
    right: Tensor
    bytes: int
    against: Difference | None

    @property
    def n(self) -> int:
        """Test samples."""
        return len(self.right)

    @property
    def accuracy(self) -> float:
        """In per cent."""
        return 100 * float(self.right.double().mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy."""
        return wilson_interval(int(self.right.sum()), self.n)


@final
@dataclass(frozen=True, eq=False)
class Choice:
    """Two outcomes whose variants differ in one axis, and ``second − first``."""

    axis: str
    first: Outcome
    second: Outcome
    difference: Difference


def outcomes(
    variants: Sequence[Variant], answers: Sequence[Mapping[str, Any]]
) -> tuple[list[Outcome], list[tuple[Variant, str]]]:
    """Return what was measured, and what was refused with the reason."""
    refused = [(v, str(a["refused"])) for v, a in zip(variants, answers, strict=True) if _no(a)]
    done = [(v, a) for v, a in zip(variants, answers, strict=True) if not _no(a)]
    floats = {v.model: right_of(a) for v, a in done if v.method == "float"}
    found = []
    for variant, answer in done:
        right = right_of(answer)
        against = None
        if variant.method != "float" and variant.model in floats:
            against = Difference(*paired_difference(right, floats[variant.model]))
        found.append(Outcome(variant, right, int(answer["bytes"]), against))
    return found, refused


def _no(answer: Mapping[str, Any]) -> bool:
    return "refused" in answer


def front(found: Sequence[Outcome]) -> list[Outcome]:
    """Return the outcomes of one network that no other betters in bytes and in accuracy.

    Sorted by bytes; of equals the first.
    """
    kept: list[Outcome] = []
    for o in sorted(found, key=lambda o: (o.bytes, -o.accuracy)):
        if not kept or o.accuracy > kept[-1].accuracy:
            kept.append(o)
    return kept


def choices(found: Sequence[Outcome]) -> list[Choice]:
    """Return every pair of quantized outcomes that differ in one axis other than bits."""
    pairs = []
    plain = [o for o in found if o.variant.method != "float"]
    for i, first in enumerate(plain):
        for second in plain[i + 1 :]:
            axes = [
                f.name
                for f in fields(Variant)
                if getattr(first.variant, f.name) != getattr(second.variant, f.name)
            ]
            if len(axes) == 1 and axes[0] not in ("model", "bits", "activations"):
                d = Difference(*paired_difference(second.right, first.right))
                pairs.append(Choice(axes[0], first, second, d))
    return pairs
