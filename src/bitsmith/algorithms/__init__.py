"""How to choose better numbers: one file per algorithm, three kinds.

* ``Transform`` (before quantizing): the same float function with friendlier numbers;
* :class:`Rounding` (at quantizing): a weight becomes a :class:`~bitsmith.numbers.qtensor.QTensor`;
* ``Correction`` (after): only the remaining float parameters change.

The base class checks the contract of its kind on every call.
"""

from bitsmith.algorithms.rounding import Rounded, Rounding
from bitsmith.algorithms.roundings.nearest import Nearest
from bitsmith.algorithms.roundings.pair_bound import PairBound

__all__ = ["Nearest", "PairBound", "Rounded", "Rounding"]
