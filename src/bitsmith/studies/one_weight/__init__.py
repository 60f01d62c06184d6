"""Quantization-aware training of a single weight, step by step."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import ClassVar, final

from bitsmith.insight.exhibits import Figure, Table
from bitsmith.insight.measure import Record
from bitsmith.studies import Options, Setting, Study, StudyResult
from bitsmith.studies.one_weight.pictures import draw_slopes, draw_training
from bitsmith.studies.one_weight.rules import RULES, Problem, Rule, Step, train

__all__ = ["OneWeight"]

#: The figure goes on for so many times the steps of the tables.
_ON = 6


@final
class OneWeight(Study, name="one-weight"):
    """What the gradient does to a weight that calculates rounded."""

    title = "Quantization-aware training of one weight, step by step"
    text = (
        "A neuron has one weight: output = q(w) · x, loss = (output − target)². The rounded weight "
        "calculates, the float weight behind it collects the updates, w ← w − lr · ∂loss/∂w. "
        "Rounding has no useful derivative, and each rule puts another in its place. Look at when "
        "the rounded weight moves, where it stops, and what a learned scale or clip changes."
    )
    figures = ("training", "gradients")
    settings: ClassVar[Mapping[str, Setting]] = {
        "bits": Setting(4, "bits of the weight", 2, 8),
        "scale": Setting(0.2, "step of its code at the start", 1e-6, 1e6),
        "lr": Setting(0.1, "learning rate", 1e-6, 1.0),
        "x": Setting(1.0, "input", -1e3, 1e3),
        "target": Setting(1.7, "wanted output", -1e3, 1e3),
        "start": Setting(1.0, "float weight at first", -1e3, 1e3),
        "steps": Setting(7, "rows of the tables", 2, 100),
    }

    def measure(self, options: Options) -> StudyResult:
        chosen = dict(options.settings)
        steps = chosen.pop("steps")
        problem = Problem(**chosen)
        long = {rule.name: train(problem, rule, _ON * steps) for rule in RULES}
        short = {name: found[:steps] for name, found in long.items()}
        figures = [
            Figure(
                "training",
                "Float and rounded weight under three rules",
                f"Lines: the float weight; steps: the weight that calculates; dashes: the weight "
                f"that gives the target. The tables show the first {steps} steps.",
                lambda canvas: draw_training(canvas, problem, long),
                size=(7.4, 2.9),
            ),
            Figure(
                "gradients",
                "The derivatives that stand in for that of rounding",
                "Above: what the weight gets. Below: what the step of the code gets (straight-"
                "through does not train it); linear up to ±1, logarithmic beyond.",
                lambda canvas: draw_slopes(canvas, problem),
                size=(7.4, 3.8),
            ),
        ]
        tables = [_step_table(problem, short[RULES[0].name]), _rule_table(short)]
        records = [r for rule in RULES for r in _records(problem, rule, short[rule.name])]
        return StudyResult(tables, figures, records, _findings(problem, long))


def _step_table(problem: Problem, found: list[Step]) -> Table:
    rows = [
        [
            str(i),
            f"{s.weight:.2f}",
            f"{s.quantized:.1f}" if _coarse(problem) else f"{s.quantized:.4g}",
            f"{s.output:.4g}",
            f"{s.loss:.2f}",
            f"{s.gradient:+.2f}" if s.gradient else "0",
        ]
        for i, s in enumerate(found)
    ]
    columns = [">step", ">float weight", ">rounded weight", ">output", ">loss", ">gradient"]
    low, high = _ends(problem)
    note = (
        f"{problem.bits} bits hold {low:g} to {high:g} in steps of {problem.scale:g}; x = "
        f"{problem.x:g}, target {problem.target:g}, learning rate {problem.lr:g}. The gradient is "
        "that of the loss for the float weight; 0 where the code saturates."
    )
    return Table("Straight-through, one row a step", columns, rows, note)


def _coarse(problem: Problem) -> bool:
    """Whether every code is a whole number of tenths."""
    return abs(problem.scale * 10 - round(problem.scale * 10)) < 1e-9


def _ends(problem: Problem) -> tuple[float, float]:
    top = 1 << (problem.bits - 1)
    return -top * problem.scale, (top - 1) * problem.scale


def _rule_table(short: dict[str, list[Step]]) -> Table:
    columns, cells = [">step"], [[str(i) for i in range(len(short[RULES[0].name]))]]
    for rule in RULES:
        found = short[rule.name]
        columns += [f">{rule.name}: w", ">q(w)", ">∂/∂w"]
        cells += [[f"{s.weight:.4g}" for s in found], [f"{s.quantized:.4g}" for s in found]]
        cells.append([_signed(s.gradient) for s in found])
        if rule.learns is not None:
            columns += [f">{rule.learns}", f">∂/∂{rule.learns}"]
            cells.append([f"{s.learned:.4g}" for s in found])
            cells.append([_signed(s.learned_gradient or 0.0) for s in found])
    note = (
        "LSQ learns the scale, its gradient divided by the root of the largest code. PACT is a "
        "rule for activations: codes from 0 to α, here with the same step at first."
    )
    return Table("The three rules side by side", columns, zip(*cells, strict=True), note)


def _signed(gradient: float) -> str:
    return f"{gradient:+.3g}" if gradient else "0"


def _records(problem: Problem, rule: Rule, found: list[Step]) -> list[Record]:
    def record(step: int, metric: str, value: float) -> Record:
        return Record(
            op=f"step {step}", algorithm=rule.name, method="qat", weight_bits=problem.bits,
            metric=metric, value=value,
        )  # fmt: skip

    records = []
    for i, s in enumerate(found):
        of_step = {
            "float weight": s.weight, "quantized weight": s.quantized, "output": s.output,
            "squared error": s.loss, "gradient": s.gradient, rule.learns or "": s.learned,
            f"gradient of {rule.learns}": s.learned_gradient,
        }  # fmt: skip
        records += [record(i, k, v) for k, v in of_step.items() if v is not None]
    return records


def _findings(problem: Problem, long: dict[str, list[Step]]) -> list[str]:
    found = []
    for rule in RULES:
        states = long[rule.name]
        first, last = states[0], states[-1]
        moves = sum(a.code != b.code for a, b in itertools.pairwise(states))
        beside = ""
        if rule.learns is not None and first.learned is not None and last.learned is not None:
            beside = f"; {rule.learns} goes from {first.learned:.4g} to {last.learned:.4g}"
        found.append(
            f"{rule.name}: in {len(states)} steps the float weight goes from {first.weight:.4g} to "
            f"{last.weight:.4g}, the rounded one from {first.quantized:.4g} to "
            f"{last.quantized:.4g}; its code changes {moves} times; the loss goes from "
            f"{first.loss:.3g} to {last.loss:.3g}{beside}."
        )
    plain, ends = long[RULES[0].name], _ends(problem)
    stopped = next((i for i, s in enumerate(plain) if s.gradient == 0.0), None)
    if stopped is not None and problem.x and plain[stopped].loss > 0:
        beyond = "largest" if plain[stopped].code > 0 else "smallest"
        found.append(
            f"With straight-through the weight saturates at step {stopped}: "
            f"{ends[plain[stopped].code > 0]:g} is the {beyond} value of {problem.bits} bits at "
            f"this scale, the gradient is 0 from there on, and the loss stays "
            f"{plain[stopped].loss:.3g}."
        )
    return found
