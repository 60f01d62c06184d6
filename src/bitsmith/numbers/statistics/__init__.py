"""Mergeable summaries of streams of tensors, of bounded size.

A statistic sees batches one by one (:meth:`Statistic.update`), and parts that were gathered
apart combine (:meth:`Statistic.merge`): merging parts, split and ordered in any way, gives the
state of one pass over everything.

One file per statistic; each registers under its name.
"""

from __future__ import annotations

from bitsmith.numbers.statistics.extrema import Extrema
from bitsmith.numbers.statistics.fisher import Fisher
from bitsmith.numbers.statistics.gram import Gram
from bitsmith.numbers.statistics.histogram import Histogram
from bitsmith.numbers.statistics.moments import Moments
from bitsmith.numbers.statistics.samples import Samples
from bitsmith.numbers.statistics.statistic import Statistic

__all__ = [
    "Extrema",
    "Fisher",
    "Gram",
    "Histogram",
    "Moments",
    "Samples",
    "Statistic",
    "statistics",
]

statistics = Statistic.registry
