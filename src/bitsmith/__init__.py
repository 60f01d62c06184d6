"""bitsmith: make a trained PyTorch network small and fast in fewer bits, and prove it.

>>> import torch, bitsmith as bs
>>> q = bs.quantize(torch.tensor([-1.5, 0.15, 1.39]), bs.Scheme(bs.int4))
>>> [round(v, 6) for v in q.dequantize().tolist()]
[-1.6, 0.2, 1.4]
"""

from bitsmith.data import load_dataset
from bitsmith.deploy.export import export
from bitsmith.deploy.runtimes import open_session
from bitsmith.deploy.verify import verify
from bitsmith.errors import BitsmithError
from bitsmith.model.evaluate import accuracy
from bitsmith.model.ptq import ptq
from bitsmith.model.quantized import QuantizedModel
from bitsmith.model.recipe import Recipe, Rule, make_recipe
from bitsmith.model.store import load, save
from bitsmith.model.train import fit
from bitsmith.numbers import (
    PerChannel,
    PerTensor,
    QTensor,
    Scheme,
    fake_quantize,
    int1,
    int2,
    int3,
    int4,
    int5,
    int6,
    int7,
    int8,
    quantize,
    uint1,
    uint2,
    uint3,
    uint4,
    uint5,
    uint6,
    uint7,
    uint8,
)
from bitsmith.version import __version__
from bitsmith.zoo import load_model

__all__ = [
    "BitsmithError",
    "PerChannel",
    "PerTensor",
    "QTensor",
    "QuantizedModel",
    "Recipe",
    "Rule",
    "Scheme",
    "__version__",
    "accuracy",
    "export",
    "fake_quantize",
    "fit",
    "int1",
    "int2",
    "int3",
    "int4",
    "int5",
    "int6",
    "int7",
    "int8",
    "load",
    "load_dataset",
    "load_model",
    "make_recipe",
    "open_session",
    "ptq",
    "quantize",
    "save",
    "uint1",
    "uint2",
    "uint3",
    "uint4",
    "uint5",
    "uint6",
    "uint7",
    "uint8",
    "verify",
]
