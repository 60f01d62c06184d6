"""Data sets by name, from a file, or from a function of yours.

One file per data set; each registers under its name. :func:`load_dataset` is the way in.
"""

from bitsmith.data.augment import Augmentation
from bitsmith.data.dataset import Dataset, datasets
from bitsmith.data.load import load_dataset
from bitsmith.data.split import Batches, Normalization, Split
from bitsmith.data.training import TrainingBatches, check_training_data, training_batches

__all__ = [
    "Augmentation",
    "Batches",
    "Dataset",
    "Normalization",
    "Split",
    "TrainingBatches",
    "check_training_data",
    "datasets",
    "load_dataset",
    "training_batches",
]
