"""Data for calibration and distillation out of a network alone, from its batch norms.

A batch norm remembers the mean and the standard deviation that its input had over the training
data. Noise is changed by gradient descent until it shows the same ones (ZeroQ, arXiv:2001.00281).
"""

from bitsmith.model.zero_shot.batches import Synthesis, SyntheticBatches
from bitsmith.model.zero_shot.synthesis import synthesize

__all__ = ["Synthesis", "SyntheticBatches", "synthesize"]
