"""How to choose better numbers: one file per algorithm, three kinds.

* :class:`Transform` (before quantizing): the same float function with friendlier numbers;
* :class:`Rounding` (at quantizing): a weight becomes a :class:`~bitsmith.numbers.qtensor.QTensor`;
* ``Correction`` (after): only the remaining float parameters change.

The base class checks the contract of its kind on every call.
"""

from bitsmith.algorithms.rounding import Rounded, Rounding
from bitsmith.algorithms.roundings.gptq import GPTQ
from bitsmith.algorithms.roundings.hqq import HQQ
from bitsmith.algorithms.roundings.kmeans import KMeans
from bitsmith.algorithms.roundings.nearest import Nearest
from bitsmith.algorithms.roundings.pair_bound import PairBound
from bitsmith.algorithms.roundings.searched import Searched
from bitsmith.algorithms.transform import Transform, Transformed
from bitsmith.algorithms.transforms.awq import AWQ
from bitsmith.algorithms.transforms.smoothquant import SmoothQuant

__all__ = [
    "AWQ",
    "GPTQ",
    "HQQ",
    "KMeans",
    "Nearest",
    "PairBound",
    "Rounded",
    "Rounding",
    "Searched",
    "SmoothQuant",
    "Transform",
    "Transformed",
]
