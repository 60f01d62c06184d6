"""Data sets by name, from a file, or from a function of yours.

One file per data set; each registers under its name. :func:`load_dataset` is the way in.
"""

from bitsmith.data.dataset import Dataset, datasets
from bitsmith.data.load import load_dataset
from bitsmith.data.split import Batches, Normalization, Split

__all__ = ["Batches", "Dataset", "Normalization", "Split", "datasets", "load_dataset"]
