"""Quantization-aware training: ``prepare``, train with your own loop or ``fit``, ``convert``.

Both lanes: the captured graph, which trains on the integers of the runtime, and modules with
quantized weights. What trains is what deploys: a graph bit for bit, packed layers with the same
weights bit for bit (:func:`bitsmith.model.module_qat.convert`).
"""

from bitsmith.model.qat.check import check_finite
from bitsmith.model.qat.fit import distillation, fit, parameter_groups
from bitsmith.model.qat.norm_statistics import freeze_batch_norms, reestimate_batch_norms
from bitsmith.model.qat.prepare import convert, prepare
from bitsmith.model.qat.schedule import bit_schedule, freeze_scales, quant_noise, set_bits

__all__ = [
    "bit_schedule",
    "check_finite",
    "convert",
    "distillation",
    "fit",
    "freeze_batch_norms",
    "freeze_scales",
    "parameter_groups",
    "prepare",
    "quant_noise",
    "reestimate_batch_norms",
    "set_bits",
]
