"""Any other module with packed weights: convolutions, recurrent layers, attention."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bitsmith.model.layers.convolution import as_rows, convolved, most_positions, multiplies
from bitsmith.model.layers.packed import PackedWeight
from bitsmith.model.layers.recurrent import multiplied, recurrent_forward, runs_in_steps

__all__ = ["WeightOnly"]


@final
class WeightOnly(nn.Module):
    """A module called with its weights dequantized for the call; everything else is its own.

    Attributes:
        inner: the module, its packed weights replaced by empty ones.
        packed: the weights, keyed by their names in ``inner`` with ``/`` for a dot.
        dtypes: name → type of the weight when the module is called.
    """

    def __init__(self, inner: nn.Module, packed: dict[str, PackedWeight]) -> None:
        super().__init__()
        self.dtypes = {name: inner.get_parameter(name).dtype for name in packed}
        for name, weight in packed.items():
            owner, _, leaf = name.rpartition(".")
            empty = nn.Parameter(
                torch.empty(weight.shape, dtype=self.dtypes[name], device="meta"), False
            )
            setattr(inner.get_submodule(owner), leaf, empty)
        if multiplied(inner, packed) or multiplies(inner, packed):
            for weight in packed.values():
                weight.used_for("float")
        self.inner = inner
        self.packed = nn.ModuleDict({n.replace(".", "/"): w for n, w in packed.items()})

    def weights(self) -> dict[str, Tensor]:
        """Return name in ``inner`` → dequantized weight."""
        return {n: w.dequantize(self.dtypes[n]) for n, w in self._packed_weights().items()}

    def _packed_weights(self) -> dict[str, PackedWeight]:
        named = self.packed._modules.items()
        return {n.replace("/", "."): w for n, w in named if isinstance(w, PackedWeight)}

    @property
    def kernel(self) -> str:
        """What runs it on the CPU of this machine."""
        packed = self._packed_weights()
        does = "float rows" if multiplied(self.inner, packed) else "decoded for torch"
        if multiplies(self.inner, packed):
            does = f"float rows up to {most_positions()} positions, else decoded for torch"
        found = [w.kernel(does) for w in packed.values()]
        return "; ".join(dict.fromkeys(found))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        packed = self._packed_weights()
        if args and len(args) + len(kwargs) < 3 and runs_in_steps(self.inner, packed, args[0]):
            state = args[1] if len(args) > 1 else kwargs.get("hx")
            if set(kwargs) <= {"hx"}:
                return recurrent_forward(self.inner, packed, args[0], state)
        if len(args) == 1 and not kwargs and as_rows(self.inner, packed, args[0]):
            return convolved(self.inner, packed, args[0])
        for weight in packed.values():
            weight.ready()  # native kernels decode it faster
        return functional_call(self.inner, self.weights(), args, kwargs)

    def __getattr__(self, name: str) -> Any:
        """Fall back on the inner module, so that ``conv.stride`` or ``lstm.hidden_size`` work.

        The name of a packed weight gives it dequantized, computed anew at every look. One that
        lies deeper (``attention.out_proj.weight``) has no values there: see :meth:`weights`.
        """
        try:
            return super().__getattr__(name)
        except AttributeError:
            packed = super().__getattr__("packed")
            assert isinstance(packed, nn.ModuleDict)
            if name in packed and isinstance(weight := packed[name], PackedWeight):
                return weight.dequantize(self.dtypes[name])
            return getattr(super().__getattr__("inner"), name)
