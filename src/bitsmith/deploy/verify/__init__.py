"""Prove that a file computes what the simulation computes, on the real runtime.

:func:`verify` runs the file with its code tensors exposed and compares every quantized tensor
with the integer reference: cumulatively (both from the input on) and isolated (every layer of
the simulation on the runtime's own input codes). Each layer is also run on its worst case.
"""

from bitsmith.deploy.verify.result import TensorComparison, Verification, WorstCase
from bitsmith.deploy.verify.run import verify

__all__ = ["TensorComparison", "Verification", "WorstCase", "verify"]
