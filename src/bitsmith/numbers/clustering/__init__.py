"""Codebooks by clustering: exact and Lloyd k-means in one dimension, k-means of short vectors.

Reading order: :mod:`clusters` (what is returned), :mod:`rows` (sorted rows with prefix sums),
:mod:`seeding` and :mod:`lloyd`, :mod:`monge`, :mod:`narrow` and :mod:`exact`, :mod:`vectors`.
"""

from bitsmith.numbers.clustering.clusters import Clusters, assign
from bitsmith.numbers.clustering.exact import kmeans_exact
from bitsmith.numbers.clustering.lloyd import kmeans_lloyd
from bitsmith.numbers.clustering.vectors import assign_vectors, kmeans_vectors

__all__ = [
    "Clusters",
    "assign",
    "assign_vectors",
    "kmeans_exact",
    "kmeans_lloyd",
    "kmeans_vectors",
]
