"""LSTM and GRU, steps and whole sequences, on packed weights that native kernels multiply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from bitsmith.model.kernels import operators
from bitsmith.model.layers.packed import PackedWeight

__all__ = ["multiplied", "recurrent_forward", "runs_in_steps"]

_RECURRENT = (nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell)
_SMALL = 1 << 16
"""Weights of one matrix up to which PyTorch's own loop over decoded ones is as fast."""

_Weights = Mapping[str, PackedWeight]
_State = tuple[Tensor, ...]


def multiplied(inner: nn.Module, weights: _Weights) -> bool:
    """Whether a module's packed weights are multiplied by native kernels, and not decoded."""
    fit = all(w.shape == w.stored_shape and w.shape.numel() > _SMALL for w in weights.values())
    return type(inner) in _RECURRENT and fit


def runs_in_steps(inner: nn.Module, weights: _Weights, x: object) -> bool:
    """Whether :func:`recurrent_forward` computes ``inner(x)``, and it pays.

    Args:
        inner: any module.
        weights: its packed weights by their names in it.
        x: its first argument.
    """
    if not operators.takes(x) or not multiplied(inner, weights):
        return False
    if inner.training and getattr(inner, "dropout", False):
        return False
    names = {n for n, _ in inner.named_parameters() if n.startswith("weight")}
    if names != set(weights) or getattr(inner, "proj_size", False):
        return False
    return all(w.ready() for w in weights.values())


def recurrent_forward(
    inner: nn.Module, weights: _Weights, x: Tensor, state: Tensor | _State | None = None
) -> Tensor | tuple[Tensor, Tensor | _State]:
    """Return what ``inner(x, state)`` returns, of its packed weights.

    LSTM: ``i, f, g, o = W_ih x + b_ih + W_hh h + b_hh``, ``c = σ(f) c + σ(i) tanh(g)``,
    ``h = σ(o) tanh(c)``. GRU: ``h = (1 − z) n + z h`` with ``n = tanh(W_in x + b_in + r (W_hn h +
    b_hn))``. The products with inputs are one for all steps.

    Raises:
        RuntimeError: the state has another shape.
    """
    if isinstance(inner, nn.LSTMCell | nn.GRUCell):
        return _cell(inner, weights, x, state)
    assert isinstance(inner, nn.LSTM | nn.GRU)
    alone = x.dim() == 2
    rows = x.unsqueeze(1) if alone else x.transpose(0, 1) if inner.batch_first else x
    pair = isinstance(inner, nn.LSTM)
    given = _states(inner, rows, state, alone, pair)
    last: list[_State] = []
    ways = ("", "_reverse") if inner.bidirectional else ("",)
    for layer in range(inner.num_layers):
        outs = []
        for way in ways:
            first = tuple(part[len(last)] for part in given)
            out, end = _run(inner, weights, f"l{layer}{way}", rows, first)
            outs.append(out)
            last.append(end)
        rows = torch.cat(outs, -1) if len(outs) > 1 else outs[0]
    ends = tuple(torch.stack(parts) for parts in zip(*last, strict=True))
    if alone:
        rows, ends = rows.squeeze(1), tuple(end.squeeze(1) for end in ends)
    elif inner.batch_first:
        rows = rows.transpose(0, 1)
    return rows, ends if pair else ends[0]


def _states(
    inner: nn.RNNBase, rows: Tensor, state: Tensor | _State | None, alone: bool, pair: bool
) -> _State:
    """Return the first states ``[layers · ways, batch, hidden]``, checked."""
    ways = inner.num_layers * (1 + inner.bidirectional)
    shape = (ways, rows.shape[1], inner.hidden_size)
    if state is None:
        return (rows.new_zeros(shape),) * (1 + pair)
    given = (state,) if isinstance(state, Tensor) else tuple(state)
    given = tuple(part.unsqueeze(1) for part in given) if alone else given
    if len(given) != 1 + pair or any(part.shape != shape for part in given):
        found = ", ".join(str(list(part.shape)) for part in given)
        raise RuntimeError(f"states of {1 + pair} times {list(shape)} are needed, not {found}")
    return given


def _run(
    inner: nn.RNNBase, weights: _Weights, name: str, rows: Tensor, state: _State
) -> tuple[Tensor, _State]:
    """Return the outputs ``[steps, batch, hidden]`` of one layer in one direction, and its end."""
    step = _lstm_step if isinstance(inner, nn.LSTM) else _gru_step
    inputs = _product(inner, weights, "ih", f"_{name}", rows)
    times = range(len(rows))
    outs: list[Tensor] = []
    for t in reversed(times) if name.endswith("_reverse") else times:
        state = step(inputs[t], _product(inner, weights, "hh", f"_{name}", state[0]), state)
        outs.append(state[0])
    if name.endswith("_reverse"):
        outs.reverse()
    return torch.stack(outs) if outs else inputs[..., : inner.hidden_size], state


def _cell(
    inner: nn.LSTMCell | nn.GRUCell, weights: _Weights, x: Tensor, state: Tensor | _State | None
) -> Tensor | tuple[Tensor, Tensor]:
    pair = isinstance(inner, nn.LSTMCell)
    shape = (*x.shape[:-1], inner.hidden_size)
    if state is None:
        state = (x.new_zeros(shape),) * (1 + pair)
    given = (state,) if isinstance(state, Tensor) else tuple(state)
    if len(given) != 1 + pair or any(part.shape != shape for part in given):
        found = ", ".join(str(list(part.shape)) for part in given)
        raise RuntimeError(f"states of {1 + pair} times {list(shape)} are needed, not {found}")
    inputs = _product(inner, weights, "ih", "", x)
    end = (_lstm_step if pair else _gru_step)(
        inputs, _product(inner, weights, "hh", "", given[0]), given
    )
    return (end[0], end[1]) if pair else end[0]


def _product(inner: nn.Module, weights: _Weights, part: str, name: str, x: Tensor) -> Tensor:
    weight = weights[f"weight_{part}{name}"]
    bias = getattr(inner, f"bias_{part}{name}", None) if getattr(inner, "bias", True) else None
    machine = cast(Tensor, weight.machine)
    return operators.linear(x, machine, weight.form, None if bias is None else bias.float())


def _lstm_step(inputs: Tensor, hidden: Tensor, state: _State) -> _State:
    gates = inputs + hidden
    i, f, g, o = gates.chunk(4, -1)
    c = torch.addcmul(torch.sigmoid(f) * state[1], torch.sigmoid(i), torch.tanh(g))
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru_step(inputs: Tensor, hidden: Tensor, state: _State) -> _State:
    size = state[0].shape[-1]
    r, z = torch.sigmoid(inputs[..., : 2 * size] + hidden[..., : 2 * size]).chunk(2, -1)
    n = torch.tanh(torch.addcmul(inputs[..., 2 * size :], r, hidden[..., 2 * size :]))
    return (torch.lerp(n, state[0], z),)
