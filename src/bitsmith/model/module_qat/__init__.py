"""Quantization-aware training of any module: ``prepare``, train with your own loop, ``convert``.

The counterpart of :mod:`bitsmith.model.weights`: the same recipes, plans and packed layers. While
it trains, every planned weight is computed from a float parameter by a :class:`WeightQuantizer`,
and has the very values that :func:`convert` packs: what trains is what deploys, bit for bit.

>>> import torch
>>> net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
>>> trained = prepare(net, "W3")
>>> descent = torch.optim.SGD(trained.parameters(), lr=0.01)
>>> x = torch.ones(3, 8)
>>> trained(x).square().mean().backward()
>>> descent.step()
>>> packed = convert(trained)
>>> torch.equal(packed(x), trained.eval()(x))
True
"""

from bitsmith.model.module_qat.check import check_finite
from bitsmith.model.module_qat.convert import convert
from bitsmith.model.module_qat.prepare import prepare
from bitsmith.model.module_qat.quantizer import WeightQuantizer, weight_quantizers
from bitsmith.model.module_qat.schedule import bit_schedule, freeze_scales, quant_noise, set_bits

__all__ = [
    "WeightQuantizer",
    "bit_schedule",
    "check_finite",
    "convert",
    "freeze_scales",
    "prepare",
    "quant_noise",
    "set_bits",
    "weight_quantizers",
]
