"""What the numbers of a run show, in sentences; orders only where an interval supports them."""

from __future__ import annotations

from bitsmith.insight.bootstrap import spearman
from bitsmith.insight.measure import paired_difference, wilson_interval
from bitsmith.studies.sensitivity.layers import Effect, Sensitivity

__all__ = ["findings"]


def findings(found: Sensitivity, what: str) -> list[str]:
    """Return sentences on the layers; ``what`` says how they are rounded."""
    n, right = len(found.right), int(found.right.sum())
    low, high = wilson_interval(right, n)
    sentences = [
        f"In float the network is right on {100 * right / n:.2f} % [{low:.2f}, {high:.2f}] of "
        f"{n:,} images; with every layer at {what} {_said(found.whole)}."
    ]
    hurt = [e for e in found.layers if e.isolated.high < 0]
    count = len(found.layers)
    worst = min(found.layers, key=lambda e: e.isolated.delta)
    if hurt:
        listed = ", ".join(e.layer for e in hurt)
        sentences.append(
            f"Alone, {len(hurt)} of {count} layers cost{'s' * (len(hurt) == 1)} accuracy by the "
            f"95 % intervals ({listed}); "
            f"the largest loss is that of {worst.layer}, {_said(worst.isolated)}."
        )
        sentences.append(_next(found))
    else:
        sentences.append(
            f"Alone, none of {count} layers is distinguishable from float; the largest loss is "
            f"that of {worst.layer}, {_said(worst.isolated)}."
        )
    total = sum(e.isolated.delta for e in found.layers)
    sentences.append(
        f"The losses of the layers alone add up to {total:+.2f} points; all of them together lose "
        f"{_said(found.whole)}."
    )
    sentences.append(_ranks(found))
    return sentences


def _next(found: Sensitivity) -> str:
    first, second = sorted(found.layers, key=lambda e: e.isolated.delta)[:2]
    delta, low, high = paired_difference(first.isolated.right, second.isolated.right)
    verdict = "below" if high < 0 else "not distinguishable from"
    return (
        f"{first.layer} is {verdict} the next, {second.layer}: {delta:+.2f} [{low:+.2f}, "
        f"{high:+.2f}] points."
    )


def _ranks(found: Sensitivity) -> str:
    """Say whether an error that needs no labels ranks the layers as accuracy does."""
    import torch

    losses = torch.tensor([-e.isolated.delta for e in found.layers])
    ranks = {
        "of a layer's own output": [-e.isolated.output for e in found.layers],
        "of the logits": [-e.isolated.logits for e in found.layers],
    }
    told = " and ".join(
        f"{spearman(torch.tensor(v), losses) / 100:.2f} for the error {name}"
        for name, v in ranks.items()
    )
    return (
        f"Rank correlation with the loss of accuracy of the layers alone, over {len(found.layers)} "
        f"layers: {told}. Neither error needs labels."
    )


def _said(e: Effect) -> str:
    mark = ", not distinguishable" if e.low <= 0 <= e.high else ""
    return f"{e.delta:+.2f} [{e.low:+.2f}, {e.high:+.2f}] points{mark}"
