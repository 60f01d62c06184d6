"""Which layers are calibrated together, and the statistics of their inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitsmith.errors import BitsmithError, DataError
from bitsmith.model.owners import Owner
from bitsmith.numbers.statistics import Gram, Statistic

__all__ = [
    "Block",
    "arguments_for",
    "as_arguments",
    "evaluating",
    "input_statistics",
    "named_arguments",
    "owner_blocks",
]


@final
@dataclass(frozen=True)
class Block:
    """Layers that are calibrated in one pass over the data.

    Attributes:
        name: of the module that holds them all; empty where there is none.
        owners: the layers, in module order.
    """

    name: str
    owners: tuple[Owner, ...]


def owner_blocks(model: nn.Module, owners: Iterable[Owner]) -> list[Block]:
    """Return the layers in the blocks that a network repeats, in module order.

    A block is a child of an outermost ``ModuleList`` or ``Sequential`` with at least two children;
    layers outside of any stand alone with their neighbours.
    """
    named = dict(model.named_modules())
    blocks: list[Block] = []
    for owner in owners:
        name = _block_name(named, owner.name)
        if blocks and blocks[-1].name == name:
            blocks[-1] = Block(name, (*blocks[-1].owners, owner))
        else:
            blocks.append(Block(name, (owner,)))
    return blocks


def input_statistics(
    model: nn.Module,
    block: Block,
    data: Iterable[Any],
    make: Callable[[], Statistic] = Gram,
    advance: Callable[[int], None] | None = None,
) -> dict[str, Statistic]:
    """Return layer name → statistic of the inputs that meet its weight, in one pass.

    Linear layers and ungrouped convolutions have one; others, whose inputs are no rows that one
    weight multiplies, are absent. The model runs up to the end of the block only.

    Args:
        model: runs with the weights it has; those of earlier blocks may be packed already.
        block: of ``model``.
        data: batches, as of :func:`arguments_for`.
        make: a new statistic of the rows ``[..., K]`` that a weight ``[out, K]`` multiplies.
        advance: told the samples of each batch.
    """
    found = {o.name: make() for o in block.owners if _rows_of(o) is not None}
    if not found:
        return {}
    with torch.no_grad(), evaluating(model), _watched(model, block, found):
        for batch in data:
            arguments, keywords = arguments_for(model, batch)
            with suppress(_EndOfBlock):
                _run(model, arguments, keywords)
            if advance is not None:
                advance(_samples(batch))
    return {name: statistic for name, statistic in found.items() if not statistic.empty}


def as_arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments of a batch.

    Raises:
        DataError: it is neither a tensor, nor a tuple or list, nor a dict.
    """
    if isinstance(batch, Tensor):
        return (batch,), {}
    if isinstance(batch, tuple | list):
        return tuple(batch), {}
    if isinstance(batch, dict):
        return (), batch
    raise DataError(
        "a calibration batch is a tensor, a tuple of positional or a dict of keyword arguments, "
        f"not {type(batch).__name__}"
    )


def arguments_for(model: nn.Module, batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments of a batch that ``model`` takes.

    Of a pair whose second part has no place in the model's ``forward`` it is labels, and dropped.

    Raises:
        DataError: it is no batch, or its arguments are not those of ``model``.
    """
    arguments, keywords = as_arguments(batch)
    try:
        signature = inspect.signature(model.forward)
    except ValueError:  # of compiled code: it says itself what it does not take
        return arguments, keywords
    try:
        signature.bind(*arguments, **keywords)
    except TypeError as error:
        with suppress(TypeError):
            if len(arguments) == 2:
                signature.bind(arguments[0])
                return arguments[:1], {}
        raise DataError(
            f"a calibration batch is no input of {type(model).__name__}: {error}"
        ) from None
    return arguments, keywords


def named_arguments(model: nn.Module, batch: Any) -> Tensor | dict[str, Any]:
    """Return a batch as one tensor, or as keyword arguments of the model.

    Raises:
        DataError: it is no batch, or its arguments are not those of ``model``.
    """
    arguments, keywords = as_arguments(batch)
    if len(arguments) == 1 and isinstance(arguments[0], Tensor):
        return arguments[0]
    arguments, keywords = arguments_for(model, batch)
    return inspect.signature(model.forward).bind(*arguments, **keywords).arguments


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode: batch norms keep their statistics; every module as it was afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _run(model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """Run the model on a batch.

    Raises:
        DataError: it cannot; what PyTorch says is told.
    """
    try:
        model(*arguments, **keywords)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, BitsmithError):
            raise
        parts = [*arguments, *keywords.values()]
        seen = ", ".join(
            f"{str(p.dtype).removeprefix('torch.')} {list(p.shape)}"
            for p in parts
            if isinstance(p, Tensor)
        )
        raise DataError(
            f"{type(model).__name__} cannot run on a calibration batch of {seen}: {error}"
        ) from error


class _EndOfBlock(Exception):
    """The pass has seen what it came for."""


@contextmanager
def _watched(model: nn.Module, block: Block, found: dict[str, Statistic]) -> Iterator[None]:
    """Gather statistics while the model runs, and stop it behind the block."""

    def gather(owner: Owner, statistic: Statistic) -> Any:
        rows = _rows_of(owner)
        assert rows is not None

        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            statistic.update(rows(arguments[0].detach().to(torch.float32)))

        return owner.module.register_forward_pre_hook(hook)

    def stop(module: nn.Module, arguments: Any, output: Any) -> None:
        raise _EndOfBlock

    handles = [gather(o, found[o.name]) for o in block.owners if o.name in found]
    if block.name:
        handles.append(model.get_submodule(block.name).register_forward_hook(stop))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rows_of(owner: Owner) -> Callable[[Tensor], Tensor] | None:
    """Return what turns the layer's input into the rows that its weight multiplies."""
    module = owner.module
    if isinstance(module, nn.Linear):
        return lambda x: x
    if isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros":
        conv, padding = module, module.padding
        if isinstance(padding, str):
            return None
        sides = (padding[0], padding[1])

        def unfold(x: Tensor) -> Tensor:
            wide = functional.unfold(x, conv.kernel_size, conv.dilation, sides, conv.stride)
            return wide.mT

        return unfold
    return None


def _block_name(named: dict[str, nn.Module], name: str) -> str:
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        parent = named.get(".".join(parts[: depth - 1]))
        child = ".".join(parts[:depth])
        if isinstance(parent, nn.ModuleList | nn.Sequential) and len(parent) >= 2:
            return child
    return ""


def _samples(batch: Any) -> int:
    arguments, keywords = as_arguments(batch)
    first = next(iter([*arguments, *keywords.values()]), None)
    return len(first) if isinstance(first, Tensor) and first.dim() else 1
