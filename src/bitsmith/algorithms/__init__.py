"""How to choose better numbers: one file per algorithm, three kinds.

* :class:`Transform` (before quantizing): the same float function with friendlier numbers, by a
  scale per input, or by any linear map of the inputs (:class:`LinearTransform`);
* :class:`Rounding` (at quantizing): a weight becomes a :class:`~bitsmith.numbers.qtensor.QTensor`;
* :class:`Correction` (after): only the remaining float parameters change.

The base class checks the contract of its kind on every call.
"""

from bitsmith.algorithms.correction import Corrected, Correction
from bitsmith.algorithms.corrections.analytic import Analytic, NormalInputs
from bitsmith.algorithms.corrections.empirical import Empirical, OutputMeans
from bitsmith.algorithms.linear_transform import LinearTransform, Mapped
from bitsmith.algorithms.rounding import Rounded, Rounding
from bitsmith.algorithms.roundings.adaround import AdaRound
from bitsmith.algorithms.roundings.coordinate import Coordinate
from bitsmith.algorithms.roundings.fisher_kmeans import FisherKMeans
from bitsmith.algorithms.roundings.gptq import GPTQ
from bitsmith.algorithms.roundings.hqq import HQQ
from bitsmith.algorithms.roundings.kmeans import KMeans
from bitsmith.algorithms.roundings.nearest import Nearest
from bitsmith.algorithms.roundings.pair_bound import PairBound
from bitsmith.algorithms.roundings.searched import Searched
from bitsmith.algorithms.roundings.shared_table import SharedTable
from bitsmith.algorithms.transform import Transform, Transformed
from bitsmith.algorithms.transforms.awq import AWQ
from bitsmith.algorithms.transforms.outlier_split import OutlierSplit
from bitsmith.algorithms.transforms.rotation import Rotation
from bitsmith.algorithms.transforms.smoothquant import SmoothQuant

__all__ = [
    "AWQ",
    "GPTQ",
    "HQQ",
    "AdaRound",
    "Analytic",
    "Coordinate",
    "Corrected",
    "Correction",
    "Empirical",
    "FisherKMeans",
    "KMeans",
    "LinearTransform",
    "Mapped",
    "Nearest",
    "NormalInputs",
    "OutlierSplit",
    "OutputMeans",
    "PairBound",
    "Rotation",
    "Rounded",
    "Rounding",
    "Searched",
    "SharedTable",
    "SmoothQuant",
    "Transform",
    "Transformed",
]
