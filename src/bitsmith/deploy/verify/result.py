"""What a verification found, and when it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

__all__ = ["TensorComparison", "Verification", "WorstCase"]

#: An isolated integer operator may round differently in this share of its codes, by one LSB.
TIE_SHARE = 1e-5
#: A float tensor may differ by this share of its largest value: float32 sums in another order.
FLOAT_TOLERANCE = 1e-5


@final
@dataclass(frozen=True)
class TensorComparison:
    """One tensor, simulation against runtime.

    Attributes:
        tensor, op: name and operator.
        kernel: the runtime's kernel that was planned, or why it is float.
        outcome: ``input``, ``integer``, ``codes`` or ``float``.
        n, differing, max_lsb, mean_lsb: cumulative: values compared, how many differ, and the
            largest and mean difference in codes (for a float output: in real units).
        isolated_n, isolated_differing, isolated_max_lsb, isolated_mean_lsb: the same, computed
            from the runtime's own inputs of this operator.
        magnitude: largest absolute value of a tensor compared in real units; None for codes.
        cause: empty when nothing differs.
    """

    tensor: str
    op: str
    kernel: str
    outcome: str
    n: int
    differing: int
    max_lsb: float
    mean_lsb: float
    isolated_n: int
    isolated_differing: int
    isolated_max_lsb: float
    isolated_mean_lsb: float
    magnitude: float | None
    cause: str

    @property
    def differing_share(self) -> float:
        """Share of values that differ, cumulatively."""
        return self.differing / self.n if self.n else 0.0


@final
@dataclass(frozen=True)
class WorstCase:
    """A layer on the codes that make its sums as large as they get.

    Attributes:
        layer: its name.
        n, differing, max_lsb: codes compared with the exact reference.
        saturated: pair sums that would leave 16 bits on a machine without VNNI, in the order
            assumed; 0 is the proof that the layer cannot saturate there.
    """

    layer: str
    n: int
    differing: int
    max_lsb: float
    saturated: int


@final
@dataclass(frozen=True)
class Verification:
    """Everything a verification found.

    Attributes:
        runtime, runtime_version, instruction_sets: what executed the file, where.
        target: the runtime the simulation is of.
        machine: what the file claims to be exact on.
        order_assumed: which weights are neighbours in the 16-bit pair sums.
        samples: inputs compared.
        operators: operator → count in the optimized graph.
        planned_integer: operators planned to run in integers.
        executed_integer: those that the runtime's own graph shows running so; None where the
            runtime's graph does not say which of them it is (OpenVINO: see ``operators``).
        not_integer: the names of those that ran in float.
        output_max_difference: largest absolute difference of the float outputs.
        changed_predictions: samples whose arg max differs (first output).
    """

    runtime: str
    target: str
    runtime_version: str
    instruction_sets: tuple[str, ...]
    machine: str
    order_assumed: str
    samples: int
    tensors: tuple[TensorComparison, ...]
    worst_cases: tuple[WorstCase, ...]
    operators: dict[str, int]
    planned_integer: int
    executed_integer: int | None
    not_integer: tuple[str, ...]
    output_max_difference: float
    changed_predictions: int

    @property
    def in_integers(self) -> str:
        """How many planned operators ran in integers, in words."""
        if self.executed_integer is None:
            return f"{self.planned_integer} operators planned; {self.runtime} does not name them"
        return f"{self.executed_integer} of {self.planned_integer} planned operators"

    @property
    def exact(self) -> bool:
        """Whether bits must be equal: the simulation is that of this runtime.

        Another runtime (OpenVINO) reads the same file and rounds in its own way: there a code may
        be off by one where the value lies between two codes.
        """
        return self.runtime == self.target

    @property
    def failures(self) -> list[str]:
        """Why the verification does not hold, in sentences; empty when it does."""
        found = []
        if self.not_integer:
            names = ", ".join(self.not_integer)
            found.append(f"planned in integers but executed in float: {names}")
        islands = any(t.outcome == "float" for t in self.tensors)
        excused = not self.exact  # something before may differ for a known reason
        for t in self.tensors:
            excused = excused or t.outcome == "float" or t.isolated_differing > 0
            if t.differing and not excused:
                found.append(
                    f"{t.tensor}: {t.differing} of {t.n} values differ, by up to {t.max_lsb:g}, "
                    f"and nothing before it explains that; only {t.isolated_n} of them were "
                    "compared on the runtime's own inputs (isolated_samples)"
                )
            if not _agrees(t, self.exact):
                unit = "codes" if t.magnitude is None else "values"
                found.append(
                    f"{t.tensor}: {t.isolated_differing} of {t.isolated_n} {unit} differ on the "
                    f"runtime's own inputs, by up to {t.isolated_max_lsb:g} ({t.cause})"
                )
        for w in self.worst_cases:
            if w.max_lsb > (0 if self.exact else 1):
                found.append(
                    f"{w.layer}: {w.differing} of {w.n} worst-case codes differ, by up to "
                    f"{w.max_lsb:g} ({w.saturated} pair sums saturate without VNNI)"
                )
            if w.saturated and self.exact and self.machine != "vnni":
                found.append(
                    f"{w.layer}: {w.saturated} pair sums saturate without VNNI, and the file is "
                    f"said to be exact there (machine {self.machine!r})"
                )
        if self.changed_predictions and not islands and self.exact:
            found.append(f"{self.changed_predictions} of {self.samples} predictions changed")
        return found

    @property
    def passed(self) -> bool:
        """Whether the file computes what the simulation computes."""
        return not self.failures


def _agrees(t: TensorComparison, exact: bool) -> bool:
    """Whether the tensor agrees as far as its kind of operator can, on the runtime's own inputs."""
    if t.isolated_differing == 0:
        return True
    if t.magnitude is not None:
        tolerated = not exact or t.outcome == "float"
        return tolerated and t.isolated_max_lsb <= FLOAT_TOLERANCE * max(t.magnitude, 1.0)
    if t.isolated_max_lsb > 1:
        return False
    if t.outcome == "float":
        return True
    share = t.isolated_differing / t.isolated_n
    return t.cause == "rounding tie" and (not exact or share <= TIE_SHARE)
