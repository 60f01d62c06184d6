"""What was measured: records, intervals, latency, memory, and the machine it was measured on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from importlib.metadata import version
from statistics import NormalDist, quantiles
from typing import Any, final

import torch
from torch import Tensor

from bitsmith.errors import DataError, InputError
from bitsmith.insight.host import machine, peak_rss_mb

__all__ = [
    "Latency",
    "Record",
    "envelope",
    "latency",
    "machine",
    "paired_difference",
    "peak_rss_mb",
    "wilson_interval",
]

_Z95 = NormalDist().inv_cdf(0.975)

METHODS = ("float", "ptq", "ptq+finetune", "qat", "codebook")


@final
@dataclass(frozen=True, kw_only=True)
class Record:
    """One measurement, flat: what was done, what was measured, what it costs.

    None means that a key does not apply; :meth:`to_json` leaves it out. Bit widths are integers
    (float32 is 32). ``metric`` ``accuracy`` is in per cent, ``spearman`` times 100, ``loss`` in
    nats, ``mae`` and ``mse`` in the tensor's units, ``sqnr`` in dB, ``max_lsb`` in codes,
    ``differing_codes`` a share, ``changed_predictions`` and ``executed_integer`` counts.
    ``delta`` is ``value − reference`` with its 95 % interval.

    Raises:
        InputError: on construction: numbers that are not finite (JSON has none), a ``method``
            that does not exist, or a value without a metric.

    >>> Record(metric="accuracy", value=91.5, n=10000).to_json()
    {'metric': 'accuracy', 'value': 91.5, 'n': 10000}
    """

    # what was done
    study: str | None = None
    model: str | None = None
    dataset: str | None = None
    split: str | None = None
    data_sha256: str | None = None
    seed: int | None = None
    recipe: str | None = None
    effort: str | None = None
    method: str | None = None
    weight_bits: int | None = None
    activation_bits: int | None = None
    granularity: str | None = None
    calibrator: str | None = None
    algorithm: str | None = None
    target: str | None = None
    machine_target: str | None = None
    runtime: str | None = None
    layer: str | None = None
    op: str | None = None
    outcome: str | None = None
    reason: str | None = None
    macs_share: float | None = None
    cause: str | None = None
    isolated: bool | None = None
    # what was measured
    metric: str | None = None
    value: float | None = None
    reference: float | None = None
    delta: float | None = None
    delta_low: float | None = None
    delta_high: float | None = None
    n: int | None = None
    # what it costs
    bytes: int | None = None
    bits_per_weight: float | None = None
    latency_ms: float | None = None
    quantize_seconds: float | None = None

    def __post_init__(self) -> None:
        given = self.to_json()
        endless = [k for k, v in given.items() if isinstance(v, float) and not math.isfinite(v)]
        faults = [f"{key} is {given[key]}, but JSON numbers are finite" for key in endless]
        if self.method is not None and self.method not in METHODS:
            faults.append(f"method is {self.method!r}, not one of {', '.join(METHODS)}")
        if self.value is not None and self.metric is None:
            faults.append(f"value is {self.value} without a metric that says what it is")
        if faults:
            raise InputError("record: " + "; ".join(faults))

    def to_json(self) -> dict[str, Any]:
        """Return the keys that apply, in the order of the class, ready for ``json.dumps``."""
        pairs = ((f.name, getattr(self, f.name)) for f in fields(self))
        return {key: value for key, value in pairs if value is not None}


@final
@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call: the median and the quartiles around it, over ``n`` calls."""

    median_ms: float
    low_ms: float
    high_ms: float
    n: int


def latency(
    call: Callable[[], object], *, repeats: int = 30, warmup: int = 3, seconds: float = 10.0
) -> Latency:
    """Return how long ``call()`` takes, from at least 3 timed calls.

    Args:
        call: what to time; it takes no arguments.
        repeats: timed calls at most.
        warmup: calls before, not timed.
        seconds: no new timed call starts after this time, once there are three.

    Raises:
        InputError: fewer than 3 repeats, or negative ``warmup``.
    """
    if repeats < 3 or warmup < 0:
        raise InputError(
            f"a latency needs at least 3 repeats and no negative warm-up, not {repeats} and "
            f"{warmup}"
        )
    for _ in range(warmup):
        call()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < repeats and (len(times) < 3 or time.perf_counter() - begin < seconds):
        start = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - start) / 1e6)
    low, median, high = quantiles(times, n=4, method="inclusive")
    return Latency(median, low, high, len(times))


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of one share in per cent, for ``successes`` of ``n``.

    The score interval: ``(p + z²/2n ± z·sqrt(p(1−p)/n + z²/4n²)) / (1 + z²/n)``. Source:
    Wilson, J. Am. Stat. Assoc. 22 (1927) 209.

    Raises:
        DataError: ``n`` below 1, or ``successes`` outside [0, n].

    >>> low, high = wilson_interval(9173, 10000)
    >>> round(low, 2), round(high, 2)
    (91.17, 92.25)
    """
    if n < 1 or not 0 <= successes <= n:
        raise DataError(f"a share is of at least 1 sample, not {successes} of {n}")
    p, z2 = successes / n, _Z95**2
    centre = p + z2 / (2 * n)
    half = _Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = (centre - half) / (1 + z2 / n), (centre + half) / (1 + z2 / n)
    # Exact at the ends, where rounding would leave 1e-17.
    return (0.0 if successes == 0 else 100 * low), (100.0 if successes == n else 100 * high)


def paired_difference(correct_a: Tensor, correct_b: Tensor) -> tuple[float, float, float]:
    """Return ``accuracy(a) − accuracy(b)`` and its 95 % interval, in percentage points.

    ``(delta, low, high)`` from the same samples judged twice: only the samples on which the two
    disagree count, so the interval is far narrower than that of two separate accuracies. It is
    Tango's score interval: all differences that a score test at 5 % does not reject; it holds 0
    exactly when McNemar's test (without continuity correction) does not reject, stays inside
    [−100, 100], and is not empty when the two never disagree. Source: Tango, Statistics in
    Medicine 17 (1998) 891–908.

    Args:
        correct_a: whether each sample was right, bool [N]: what is judged.
        correct_b: the same samples in the same order, bool [N]: the reference.

    Raises:
        DataError: not two bool tensors of one shape [N], or N = 0.

    >>> a = torch.tensor([True] * 97 + [False] * 3)
    >>> b = torch.tensor([True] * 99 + [False] * 1)
    >>> [round(v, 2) for v in paired_difference(a, b)]
    [-2.0, -7.0, 1.77]
    """
    shapes = tuple(correct_a.shape), tuple(correct_b.shape)
    if (
        correct_a.dtype != torch.bool
        or correct_b.dtype != torch.bool
        or shapes[0] != shapes[1]
        or len(shapes[0]) != 1
        or not len(correct_a)
    ):
        raise DataError(
            "a paired difference needs two bool tensors over the same samples [N], not "
            f"{correct_a.dtype} {shapes[0]} and {correct_b.dtype} {shapes[1]}"
        )
    n = len(correct_a)
    only_a = int((correct_a & ~correct_b).sum())
    only_b = int((correct_b & ~correct_a).sum())
    delta = (only_a - only_b) / n
    low, high = -_upper_limit(only_b, only_a, n), _upper_limit(only_a, only_b, n)
    return 100 * delta, 100 * low, 100 * high


def _upper_limit(b: int, c: int, n: int) -> float:
    """Return the largest difference the score test does not reject, by bisection.

    Args:
        b: samples that only the first got right.
        c: samples that only the second got right.
        n: all samples.
    """
    inside, outside = (b - c) / n, 1.0
    for _ in range(100):
        middle = (inside + outside) / 2
        if _score(b, c, n, middle) < -_Z95:
            outside = middle
        else:
            inside = middle
    return inside


def _score(b: int, c: int, n: int, delta: float) -> float:
    """Return the score statistic of the true difference being ``delta``, falling in it.

    ``(b − c − n·delta) / sqrt(n·(2q + delta·(1 − delta)))``, where q, the share that only the
    second gets right, is its most likely value given ``delta``: the larger root of
    ``2n·q² − (b + c − (2n − b + c)·delta)·q − c·delta·(1 − delta) = 0`` (Tango 1998, eq. 15).
    """
    linear = -(b + c) + (2 * n - b + c) * delta
    constant = -c * delta * (1 - delta)
    q = (math.sqrt(max(0.0, linear * linear - 8 * n * constant)) - linear) / (4 * n)
    variance = n * (2 * q + delta * (1 - delta))
    distance = b - c - n * delta
    if variance <= 0:
        return 0.0 if distance == 0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def envelope(command: str, records: Iterable[Record], started: float) -> dict[str, Any]:
    """Return the one object that ``--json`` writes, ready for ``json.dumps``.

    Args:
        command: the command line's verb, for example ``"quantize"``.
        records: what was measured.
        started: ``time.perf_counter()`` when the command began; ``seconds`` counts from it.
    """
    return {
        "bitsmith": version("bitsmith"),
        "command": command,
        "machine": machine(),
        "seconds": round(time.perf_counter() - started, 3),
        "peak_rss_mb": round(peak_rss_mb(), 1),
        "records": [record.to_json() for record in records],
    }
