"""GGUF files, which llama.cpp and others read: check, write, read.

Weights go into the block types Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 and Q2_K to Q6_K when their scheme is
that of :data:`~bitsmith.numbers.named_schemes.GGUF_SCHEMES`, bit for bit; everything else stays a
float or integer tensor. Names and shapes stay those of the model: the file is a container of
tensors that any GGUF reader opens. To *run* it, llama.cpp also needs its own tensor names, the
keys of the architecture, a tokenizer, and for Llama models the rows of query and key projections
in its order; give names and keys accordingly.
"""

from bitsmith.deploy.export.gguf.block_types import misfit
from bitsmith.deploy.export.gguf.exporter import Gguf
from bitsmith.deploy.export.gguf.reader import read, read_metadata
from bitsmith.deploy.export.gguf.writer import check, write

__all__ = ["Gguf", "check", "misfit", "read", "read_metadata", "write"]
