"""Run data through the float graph once and turn what was seen into encodings.

Statistics are streams of bounded size, so memory does not grow with the data; they merge, so
parts can be gathered apart (other processes, other machines) and joined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bitsmith.data.dataset import Dataset
from bitsmith.data.split import Split
from bitsmith.errors import DataError
from bitsmith.model.graph.ir import Graph
from bitsmith.model.graph.operators import run_float
from bitsmith.model.place import Placement
from bitsmith.model.targets import Target
from bitsmith.numbers.affine import scale_zero_point
from bitsmith.numbers.calibrators import Calibrator
from bitsmith.numbers.encoding import Encoding
from bitsmith.numbers.statistics import Statistic

__all__ = [
    "MIN_SAMPLES",
    "as_inputs",
    "checked_batches",
    "checked_inputs",
    "encodings",
    "gather",
]

#: Fewer samples than this do not show a range.
MIN_SAMPLES = 8


#: Integer types that token ids and masks come in.
_IDS = (torch.int64, torch.int32, torch.bool)


def as_inputs(batch: Any) -> list[Tensor]:
    """Return the model inputs of a batch; its labels are dropped.

    A batch is ``x``, ``(x, y)``, ``(ids, mask)`` or ``((x1, x2, …), y)``. In a flat batch float
    tensors are inputs and integers labels; without float tensors, integers of two or more axes
    (token ids, masks) are inputs. In the nested form everything in the first part is an input.

    Returns:
        float32 tensors, and int64 or bool ones as they are (int32 becomes int64).

    Raises:
        DataError: nothing in the batch is an input.

    >>> [list(x.shape) for x in as_inputs((torch.zeros(2, 3), torch.zeros(2).long()))]
    [[2, 3]]
    >>> [x.dtype for x in as_inputs((torch.ones(2, 5).int(), torch.ones(2, 5).bool()))]
    [torch.int64, torch.bool]
    """
    if isinstance(batch, str | bytes | dict):
        raise DataError(
            f"a batch is x, (x, y) or ((x1, x2, …), y), not {type(batch).__name__}: give the "
            "inputs in the order in which the model takes them"
        )
    parts = list(batch) if isinstance(batch, tuple | list) else [batch]
    nested = bool(parts) and isinstance(parts[0], tuple | list)
    parts = list(parts[0]) if nested else parts
    tensors = [p if isinstance(p, Tensor) else torch.as_tensor(p) for p in parts if p is not None]
    inputs = tensors if nested else [t for t in tensors if t.is_floating_point()]
    if not inputs:
        inputs = [t for t in tensors if t.dtype in _IDS and t.dim() >= 2]
    if not inputs:
        kinds = ", ".join(str(t.dtype) for t in tensors) or "nothing"
        raise DataError(
            f"a batch is a float tensor, token ids [batch, tokens] or (inputs, labels), not {kinds}"
        )
    return [_as_input(t) for t in inputs]


def checked_batches(data: Any) -> Iterable[Any]:
    """Return ``data`` where it is batches.

    Raises:
        DataError: it is a data set or a split, which has no batch size, a name, or nothing to go
            through.
    """
    if isinstance(data, Dataset | Split):
        raise DataError(
            f"{type(data).__name__} is no batches: give those of its train split, "
            "data.split('train').batches(64)"
        )
    if isinstance(data, str | bytes | dict) or not isinstance(data, Iterable):
        raise DataError(f"data is an iterable of batches, x or (x, y), not {data!r:.80}")
    return data


def _as_input(x: Tensor) -> Tensor:
    if x.is_floating_point():
        return x.to(torch.float32)
    return x if x.dtype == torch.bool else x.to(torch.int64)


def gather(
    placement: Placement,
    calibrator: Calibrator,
    batches: Iterable[Any],
    *,
    min_samples: int = MIN_SAMPLES,
    advance: Callable[[int], None] | None = None,
) -> dict[str, Statistic]:
    """Return a statistic per encoding that has to be found, from one pass over ``batches``.

    Args:
        batches: any iterable of batches, ``x`` or ``(x, y)``.
        min_samples: fewer samples are an error.
        advance: told the number of samples of each batch, for a progress bar.

    Raises:
        DataError: no batches, too few samples, inputs of the wrong shape, NaN or infinite values
            (in the data, or in the activations of a named layer).
    """
    graph = placement.graph
    wanted = {root: calibrator.statistic() for root in _roots(placement)}
    samples = 0
    with torch.no_grad():
        for batch in checked_inputs(graph, batches):
            run_float(graph, batch, lambda name, x: _update(wanted, name, x))
            samples += len(batch[0])
            if advance is not None:
                advance(len(batch[0]))
    if samples < min_samples:
        raise DataError(
            f"calibration needs at least {min_samples} samples, and the data gave {samples}"
            + ("; an exhausted generator gives none the second time" if samples == 0 else "")
        )
    return wanted


def encodings(
    placement: Placement,
    target: Target,
    calibrator: Calibrator,
    statistics: dict[str, Statistic],
) -> dict[str, Encoding]:
    """Return the encoding of every quantized tensor; members of a group get the same one."""
    found: dict[str, Encoding] = {}
    for root, scheme in placement.activations.items():
        node = placement.graph.node(root)
        fixed = target.fixed_range(node) if node is not None else None
        if node is not None and node.op == "constant":
            value = placement.graph.params[node.params["value"]]
            low, high = value.min(), value.max()
        elif fixed is not None:
            low, high = torch.tensor(fixed[0]), torch.tensor(fixed[1])
        else:
            low, high = calibrator.limits(statistics[root], scheme)
        low, high = _respecting(placement, root, low, high)
        scale, zero_point = scale_zero_point(low, high, scheme)
        found[root] = Encoding(float(scale), int(zero_point), scheme.integer)
    return {tensor: found[root] for tensor, root in placement.group.items()}


def _roots(placement: Placement) -> list[str]:
    """Encodings that data must show: those of constants are known."""
    nodes = {root: placement.graph.node(root) for root in placement.activations}
    return [root for root, node in nodes.items() if node is None or node.op != "constant"]


def _respecting(
    placement: Placement, root: str, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """Keep the range inside a fused clamp, and wide enough for the values pads put in."""
    roots = _origins(placement, root)
    node = placement.graph.node(roots[-1])
    activation = node.attrs.get("activation") if node is not None else None
    if activation is not None:
        low = torch.zeros_like(low)
        high = high.clamp(min=0.0, max=activation[1])
    for member in placement.graph:
        if member.op == "pad" and placement.group.get(member.name) in roots:
            low = low.clamp(max=member.attrs["value"])
            high = high.clamp(min=member.attrs["value"])
    return low, high


def _origins(placement: Placement, root: str) -> list[str]:
    """``root``, and where it requantizes another group, that group's root, and so on."""
    roots = [root]
    node = placement.graph.node(root)
    while node is not None and node.op == "requantize":
        roots.append(placement.group[node.inputs[0]])
        node = placement.graph.node(roots[-1])
    return roots


def _update(wanted: dict[str, Statistic], name: str, x: Tensor) -> None:
    if name not in wanted:
        return
    try:
        wanted[name].update(x)
    except DataError as error:
        raise DataError(f"the activations of {name} cannot be calibrated: {error}") from error


def checked_inputs(graph: Graph, batches: Iterable[Any]) -> Iterator[Sequence[Tensor]]:
    """Yield the inputs of each batch, once they are known to be what ``graph`` takes.

    Args:
        graph: that they are for.
        batches: as :func:`as_inputs` takes them.

    Raises:
        DataError: another number of inputs, or one of another type or shape, with values that
            are NaN or infinite, or with token ids beyond the table that looks them up.
    """
    for batch in batches:
        inputs = as_inputs(batch)
        if len(inputs) != len(graph.inputs):
            raise DataError(
                f"the model takes {len(graph.inputs)} inputs, a batch has {len(inputs)}"
            )
        for declared, x in zip(graph.inputs, inputs, strict=True):
            expected = declared.shape[1:]
            if str(x.dtype) != f"torch.{declared.dtype}":
                raise DataError(
                    f"input {declared.name} is {str(x.dtype).removeprefix('torch.')}; the model "
                    f"was captured for {declared.dtype}"
                )
            fits = x.dim() == len(declared.shape) and all(
                e in (-1, s) for e, s in zip(expected, x.shape[1:], strict=True)
            )
            if not fits:
                raise DataError(
                    f"input {declared.name} has shape {list(x.shape)}; the model was captured for "
                    f"[batch, {', '.join('any' if e == -1 else str(e) for e in expected)}]"
                )
            bad = int((~torch.isfinite(x)).sum())
            if bad:
                raise DataError(
                    f"input {declared.name}: {bad} of {x.numel()} values are NaN or infinite"
                )
        _check_ids(graph, inputs)
        yield inputs


def _check_ids(graph: Graph, inputs: Sequence[Tensor]) -> None:
    """Token ids must have a row in the table that looks them up."""
    given = dict(zip((i.name for i in graph.inputs), inputs, strict=True))
    for node in graph:
        if node.op != "embedding" or node.inputs[0] not in given:
            continue
        ids, rows = given[node.inputs[0]], len(graph.params[node.params["weight"]])
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= rows):
            raise DataError(
                f"input {node.inputs[0]} has ids from {int(ids.min())} to {int(ids.max())}; the "
                f"table {node.name} has the rows 0 to {rows - 1}"
            )
