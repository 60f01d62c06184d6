"""The kind of module that computes the values of a weight from float numbers that are trained."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitsmith.errors import InputError, SchemeError
from bitsmith.model.module_qat.levels import Layout
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme
from bitsmith.registry import Registry

__all__ = ["WeightQuantizer", "choose", "identity_of", "weight_quantizers"]


class WeightQuantizer(nn.Module, ABC):
    """float weight → the values it is deployed with; a parametrization of the layer's weight.

    Contract, tested for every member with every scheme it takes: ``values(w)`` equals
    ``qtensor(w).dequantize()`` bit for bit; its gradient reaches the weight and every parameter;
    it draws nothing at random; NaN in the weight or in a parameter gives NaN, not an error.

    Its own parameters have one axis, so that an optimizer that spares biases from weight decay
    spares them too.

    Attributes:
        learn: what members of one kind are called together: ``lsq`` (scales are parameters) or
            ``minmax`` (scales are computed from the weight in every step).
        gradual: its number of bits can be lowered while it trains.
        scheme: of the packed weight.
        current: what it trains with now; of more bits than ``scheme`` in between.
        label: name of the weight, for messages.
        columns: the rows are padded with zeros to this many.
        frozen: its scales stay as they are.
        share: of the blocks of ``block`` neighbours that are quantized in a training step, drawn
            anew each time; 1: all.
        block: see ``share``.
        renewed: the values are copied, for a layer that changes them in place.
    """

    registry: ClassVar[Registry[type[WeightQuantizer]]] = Registry(
        "weight quantizer", "bitsmith.model.module_qat.quantizers"
    )
    name: ClassVar[str]
    learn: ClassVar[str]
    gradual: ClassVar[bool] = False

    def __init_subclass__(cls, *, name: str) -> None:
        cls.name = name
        WeightQuantizer.registry.add(name, cls)

    @final
    def __init__(
        self, weight: Tensor, scheme: Scheme, label: str = "weight", columns: int | None = None
    ) -> None:
        """Start with the scales that lose the least of ``weight``.

        Args:
            weight: ``[out, *]``, not empty, finite.
            scheme: of ``[out, columns]``.
            label: what messages call it.
            columns: to pad the rows to; None: they stay as they are.

        Raises:
            SchemeError: the scheme cannot be trained this way, or does not fit the weight.
        """
        super().__init__()
        if reason := type(self).refusal(scheme):
            raise SchemeError(f"{label}: {self.name} cannot train it: {reason}")
        if not weight.numel():
            raise SchemeError(f"{label} of shape {tuple(weight.shape)} has no values to quantize")
        self.scheme = self.current = scheme
        self.label, self.columns = label, columns or weight[0].numel()
        self.frozen, self.share, self.block, self.renewed = False, 1.0, 1, False
        flat = self.flat(weight.detach())
        self.layout = Layout.of(flat.shape, scheme)
        self.start(flat)

    @classmethod
    @abstractmethod
    def refusal(cls, scheme: Scheme) -> str:
        """Return why it cannot train weights of this scheme; empty when it can."""

    @abstractmethod
    def start(self, flat: Tensor) -> None:
        """Set parameters and buffers to what suits ``flat`` under :attr:`current`.

        Args:
            flat: float32 ``[rows, columns]``.
        """

    @abstractmethod
    def values(self, flat: Tensor) -> Tensor:
        """Return the values of the quantized weight, float32 of the shape of ``flat``."""

    @abstractmethod
    def qtensor(self, flat: Tensor) -> QTensor:
        """Return the quantized weight; all numbers are finite."""

    @abstractmethod
    def collapsed(self) -> int:
        """Return how many scales have fallen to the least that they can be."""

    @abstractmethod
    def hold(self, flat: Tensor) -> None:
        """Keep the scales that ``flat`` has now, from :attr:`frozen` on.

        Raises:
            SchemeError: they cannot be kept.
        """

    @final
    def flat(self, weight: Tensor) -> Tensor:
        """Return a weight as it is quantized: float32 ``[rows, columns]``."""
        flat = weight.flatten(1).to(torch.float32)
        missing = self.columns - flat.shape[1]
        return functional.pad(flat, (0, missing)) if missing else flat

    def forward(self, weight: Tensor) -> Tensor:
        """Return the values of the quantized weight in its shape and type."""
        flat = self.flat(weight)
        values = self.values(flat)
        if self.mixed:
            values = torch.where(self._chosen(flat), values, flat)
        columns = weight.shape[1:].numel()
        if columns != values.shape[1]:
            values = values[:, :columns]
        values = values.reshape(weight.shape).to(weight.dtype)
        return values.clone() if self.renewed else values

    @property
    @final
    def mixed(self) -> bool:
        """True where only a share of the weight is quantized: in training, with ``share`` < 1."""
        return self.training and self.share < 1

    @final
    def _chosen(self, flat: Tensor) -> Tensor:
        rows, columns = flat.shape
        blocks = -(-columns // self.block)
        drawn = torch.rand(rows, blocks, device=flat.device) < self.share
        return drawn.repeat_interleave(self.block, 1)[:, :columns]

    @final
    def restart(self, weight: Tensor, scheme: Scheme) -> None:
        """Train with another scheme from now on, from the scales that suit it."""
        self.current = scheme
        flat = self.flat(weight.detach())
        self.start(flat)
        if self.frozen:
            self.hold(flat)

    @final
    def freeze(self, weight: Tensor, frozen: bool) -> None:
        """Keep the scales as they are, or let them change again."""
        if frozen:
            self.hold(self.flat(weight.detach()))
        self.frozen = frozen
        for parameter in self.parameters(recurse=False):
            parameter.requires_grad_(not frozen)
            if frozen:
                parameter.grad = None

    @final
    def parameter(self, name: str, values: Tensor) -> None:
        """Set a parameter with one axis: in place where it exists, so that optimizers follow."""
        known = self._parameters.get(name)
        if known is None:
            self.register_parameter(name, nn.Parameter(values.reshape(-1).clone()))
            return
        with torch.no_grad():
            known.copy_(values.reshape(-1))

    @final
    def get_extra_state(self) -> Tensor:
        """Return what decides how it computes beside its parameters, as the bytes of JSON."""
        state = {
            "identity": self.identity(),
            "current": self.current.to_json(),
            "frozen": self.frozen,
            "share": self.share,
            "block": self.block,
        }
        return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)

    @final
    def set_extra_state(self, state: Tensor) -> None:
        """Take over what :meth:`get_extra_state` gave.

        Raises:
            InputError: it is of another recipe or quantizer.
        """
        data = read_state(state)
        if data.get("identity") != self.identity():
            raise InputError(
                f"{self.label}: the checkpoint was trained as {identity_of(data)}, this model "
                f"trains as {identity_of({'identity': self.identity()})}"
            )
        self.current = Scheme.from_json(data["current"])
        self.share, self.block = data["share"], data["block"]
        self.frozen = data["frozen"]
        for parameter in self.parameters(recurse=False):
            parameter.requires_grad_(not self.frozen)

    @final
    def identity(self) -> dict[str, Any]:
        """Return what another checkpoint must have in common with this one."""
        return {"quantizer": self.name, "scheme": self.scheme.to_json()}

    @final
    def extra_repr(self) -> str:
        """Return what ``print(model)`` shows."""
        now = "" if self.current == self.scheme else f", now {self.current.format.name}"
        return f"{self.name}, {self.scheme.format.name}, {self.scheme.granularity}{now}"


def choose(learn: str, scheme: Scheme) -> type[WeightQuantizer]:
    """Return the quantizer that trains weights of ``scheme`` in the way ``learn`` names.

    Args:
        learn: ``lsq`` or ``minmax``, which choose among the quantizers of that kind, or a
            quantizer by its own name.
        scheme: of the weight.

    Raises:
        UnknownNameError: there is none of that name.
        SchemeError: none of them takes the scheme; the message says why.
    """
    registry = WeightQuantizer.registry
    able = [registry[name] for name in registry if not registry[name].refusal(scheme)]
    kinds = {registry[name].learn for name in registry}
    for kind in able:
        if learn == (kind.learn if learn in kinds else kind.name):
            return kind
    reason = registry[learn].refusal(scheme)
    others = ", ".join(sorted({repr(kind.learn) for kind in able}))
    raise SchemeError(reason + (f" (learn={others} does)" if others else ""))


def weight_quantizers(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, WeightQuantizer]]:
    """Give the name, the float parameter and the quantizer of each weight in training, once."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        if not isinstance(module, nn.utils.parametrize.ParametrizationList):
            continue
        quantizer = module[0]
        if isinstance(quantizer, WeightQuantizer) and id(quantizer) not in seen:
            seen.add(id(quantizer))
            original = module.get_parameter("original")
            yield path.replace("parametrizations.", ""), original, quantizer


def read_state(state: Tensor) -> dict[str, Any]:
    """Return the data of :meth:`WeightQuantizer.get_extra_state`.

    Raises:
        InputError: it is not what that wrote.
    """
    try:
        data = json.loads(bytes(state.to(torch.uint8).tolist()))
    except (ValueError, AttributeError) as error:
        raise InputError(f"the state of a weight quantizer is damaged: {error}") from error
    if not isinstance(data, dict):
        raise InputError("the state of a weight quantizer is damaged: it is no record")
    return data


def identity_of(state: Mapping[str, Any]) -> str:
    """Return a state's recipe in words: format, granularity, form of the scales, quantizer."""
    try:
        own = state["identity"]
        scheme = Scheme.from_json(own["scheme"])
        inner = scheme.scale_format
        scales = "float32" if inner is None else getattr(inner, "name", "two-level")
        words = (scheme.format.name, str(scheme.granularity), f"{scales} scales", own["quantizer"])
        return ", ".join(words)
    except (KeyError, TypeError, InputError):
        return "something unknown"
