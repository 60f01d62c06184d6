"""bitsmith: make a trained PyTorch network small and fast in fewer bits, and prove it."""

__version__ = "0.1.0"
