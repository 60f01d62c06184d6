"""The compressed-tensors folder, which ``transformers`` and vLLM load: check, write, read.

Weights alone are stored as ``pack-quantized``; 8-bit weights whose inputs are quantized on the
fly as ``int-quantized``. Weights of 1, 2, 4 and 8 bits are read by every release of the
``compressed-tensors`` package, of 3, 5, 6 and 7 bits since 0.18 (before, 32-bit words were not
filled to the end, and such a file is misread), quantized embeddings since 0.17. ``transformers``
casts scales to the type of the model it loads: in float32 the weights are exactly
``QTensor.dequantize()``; in float16 or bfloat16, with scales of that type, they are its nearest.
Zero points per row or group, and quantized embeddings, it can only load dequantized (config.json
says so); scales in fp16 or bf16 then make the weights the nearest of that type in any model.
"""

from bitsmith.deploy.export.compressed_tensors.exporter import CompressedTensors
from bitsmith.deploy.export.compressed_tensors.reader import read
from bitsmith.deploy.export.compressed_tensors.writer import SHARD_BYTES, check, write

__all__ = ["SHARD_BYTES", "CompressedTensors", "check", "read", "write"]
