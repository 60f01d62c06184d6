"""bitsmith: make a trained PyTorch network small and fast in fewer bits, and prove it.

>>> import torch, bitsmith as bs
>>> q = bs.quantize(torch.tensor([-1.5, 0.15, 1.39]), bs.Scheme(bs.int4))
>>> [round(v, 6) for v in q.dequantize().tolist()]
[-1.6, 0.2, 1.4]
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bitsmith.version import __version__

if TYPE_CHECKING:
    from bitsmith.data import load_dataset, training_batches
    from bitsmith.deploy.export import export
    from bitsmith.deploy.runtimes import open_session
    from bitsmith.deploy.verify import verify
    from bitsmith.errors import BitsmithError
    from bitsmith.model import qat
    from bitsmith.model.evaluate import accuracy
    from bitsmith.model.post_training import ptq
    from bitsmith.model.presets import make_recipe
    from bitsmith.model.quantized import QuantizedModel
    from bitsmith.model.recipe import Recipe, Rule
    from bitsmith.model.store import apply_encodings, load, save, save_encodings
    from bitsmith.model.train import fit
    from bitsmith.model.zero_shot import synthesize
    from bitsmith.numbers import (
        PerBlock,
        PerChannel,
        PerGroup,
        PerTensor,
        PerToken,
        QTensor,
        Scheme,
        bf16,
        cluster,
        codebook1,
        codebook2,
        codebook3,
        codebook4,
        codebook5,
        codebook6,
        codebook7,
        codebook8,
        e8m0,
        fake_quantize,
        fp4_e2m1fn,
        fp6_e2m3fn,
        fp6_e3m2fn,
        fp8_e4m3fn,
        fp8_e5m2,
        fp16,
        fp32,
        int1,
        int2,
        int3,
        int4,
        int5,
        int6,
        int7,
        int8,
        int16,
        named_scheme,
        nf4,
        quantize,
        search_range,
        ternary,
        uint1,
        uint2,
        uint3,
        uint4,
        uint5,
        uint6,
        uint7,
        uint8,
        uint16,
    )
    from bitsmith.numbers.formats import formats
    from bitsmith.zoo import load_model

__all__ = [
    "BitsmithError",
    "PerBlock",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "PerToken",
    "QTensor",
    "QuantizedModel",
    "Recipe",
    "Rule",
    "Scheme",
    "__version__",
    "accuracy",
    "apply_encodings",
    "bf16",
    "cluster",
    "codebook1",
    "codebook2",
    "codebook3",
    "codebook4",
    "codebook5",
    "codebook6",
    "codebook7",
    "codebook8",
    "e8m0",
    "export",
    "fake_quantize",
    "fit",
    "formats",
    "fp4_e2m1fn",
    "fp6_e2m3fn",
    "fp6_e3m2fn",
    "fp8_e4m3fn",
    "fp8_e5m2",
    "fp16",
    "fp32",
    "int1",
    "int2",
    "int3",
    "int4",
    "int5",
    "int6",
    "int7",
    "int8",
    "int16",
    "load",
    "load_dataset",
    "load_model",
    "make_recipe",
    "named_scheme",
    "nf4",
    "open_session",
    "ptq",
    "qat",
    "quantize",
    "save",
    "save_encodings",
    "search_range",
    "synthesize",
    "ternary",
    "training_batches",
    "uint1",
    "uint2",
    "uint3",
    "uint4",
    "uint5",
    "uint6",
    "uint7",
    "uint8",
    "uint16",
    "verify",
]

# PyTorch takes a second to import: every name is fetched from its home when it is first used.
_HOMES = {
    "bitsmith.data": "load_dataset training_batches",
    "bitsmith.deploy.export": "export",
    "bitsmith.deploy.runtimes": "open_session",
    "bitsmith.deploy.verify": "verify",
    "bitsmith.errors": "BitsmithError",
    "bitsmith.model.evaluate": "accuracy",
    "bitsmith.model.quantized": "QuantizedModel",
    "bitsmith.model.post_training": "ptq",
    "bitsmith.model.presets": "make_recipe",
    "bitsmith.model.recipe": "Recipe Rule",
    "bitsmith.model.store": "apply_encodings load save save_encodings",
    "bitsmith.model.train": "fit",
    "bitsmith.model.zero_shot": "synthesize",
    "bitsmith.numbers": "PerBlock PerChannel PerGroup PerTensor PerToken QTensor Scheme bf16"
    " cluster codebook1 codebook2 codebook3 codebook4 codebook5 codebook6"
    " codebook7 codebook8 e8m0 fake_quantize fp4_e2m1fn fp6_e2m3fn fp6_e3m2fn"
    " fp8_e4m3fn fp8_e5m2 fp16 fp32 int1 int2 int3 int4 int5 int6 int7 int8"
    " int16 named_scheme nf4 quantize search_range ternary uint1 uint2 uint3"
    " uint4 uint5 uint6 uint7 uint8 uint16",
    "bitsmith.numbers.formats": "formats",
    "bitsmith.zoo": "load_model",
}
#: Modules that are names themselves.
_MODULES = {"qat": "bitsmith.model.qat"}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value: Any = import_module(_MODULES[name])
    elif name in _HOME_OF:
        value = getattr(import_module(_HOME_OF[name]), name)
    else:
        raise AttributeError(f"module 'bitsmith' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
