"""ONNX files of modules with packed weights: check, write, read.

The module's own arithmetic is translated by ``torch.onnx.export`` with a marker in the place of
every layer that holds packed weights; the markers are then replaced by operators that read the
codes. Float weights are never made, in memory or in the file. Two forms:

===============  ===========================================================================
``matmulnbits``  com.microsoft MatMulNBits for linear layers of up to 4 bits, blocks of 16, 32,
                 64 or 128 (a group may be several blocks); ONNX Runtime only. 8-bit weights are
                 DequantizeLinear + Gemm, which in float is quicker than MatMulNBits
``dequantize``   the standard operators alone: DequantizeLinear of INT4/UINT4 (opset 21),
                 INT2/UINT2 (opset 25) or INT8/UINT8, per tensor, per row or in blocks, + Gemm
===============  ===========================================================================

Codes are held in 2, 4 or 8 bits: 1 bit in 2, 3 bits in 4, 5 to 7 bits in 8; and in 8 where a row
of DequantizeLinear would not be whole bytes, which runtimes misread. Formats that are
looked up (nf4, fp4, fp8, learned tables) are codes and a table, decoded by Gather at every call.
Embeddings gather rows of codes and decode only those. Linear layers whose inputs are quantized
token by token are MatMulInteger on uint8 codes with zero points of 128, which no kernel
saturates.
"""

from bitsmith.deploy.export.onnx_weights.exporter import OnnxWeights
from bitsmith.deploy.export.onnx_weights.reader import read
from bitsmith.deploy.export.onnx_weights.survey import Activations, Form
from bitsmith.deploy.export.onnx_weights.writer import check, write

__all__ = ["Activations", "Form", "OnnxWeights", "check", "read", "write"]
