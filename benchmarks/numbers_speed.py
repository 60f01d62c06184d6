"""What quantizing itself costs: ratios to a plain copy, and to torchao, quanto and gguf.

Every time is the median of repeats taken by turns, so that a slow moment of the machine meets
all of them. Peers that are not installed are left out and named: pip install torchao
optimum-quanto gguf.
"""

from __future__ import annotations

import contextlib
import io
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from importlib import import_module, metadata
from typing import Any

import torch
from torch import Tensor

from bitsmith.numbers import (
    Extrema,
    Histogram,
    PerChannel,
    PerGroup,
    Scheme,
    fake_quantize,
    fp16,
    int4,
    int8,
    named_scheme,
    nf4,
    pack,
    quantize,
    quantize_codes,
    uint8,
    unpack,
)
from record import arguments, save

Work = Callable[[], Any]
ROWS = 4096


def main() -> None:
    """Time every operation beside its peers, and print one row each."""
    parser = arguments(__doc__ or "")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    columns = 256 if options.quick else 1 << 14
    x = torch.randn(ROWS, columns, generator=torch.Generator().manual_seed(0))
    target = torch.empty_like(x)
    peers, absent = _peers(x)
    rows = []
    for name, mine in _works(x).items():
        works = {"copy": lambda: target.copy_(x), "bitsmith": mine, **peers.get(name, {})}
        rows.append(_row(name, works, 2 if options.quick else 7))
    save("numbers_speed", rows, options.quick, threads=options.threads, values=x.numel(),
         absent=absent, versions=_versions())  # fmt: skip


def _works(x: Tensor) -> dict[str, Work]:
    """Return what is timed of bitsmith: name → work."""
    tensor, channel = Scheme(int8), Scheme(int8, granularity=PerChannel(0))
    group, q8_0 = (
        Scheme(int4, granularity=PerGroup(64)),
        Scheme(int8, granularity=PerGroup(32), scale_format=fp16),
    )
    q4_0 = Scheme(int4, granularity=PerGroup(32), scale_format=fp16)
    given = {s: quantize(x, s) for s in (tensor, channel, group)}
    packed = pack(given[group].codes, 4)
    leaf, gradient = x.clone().requires_grad_(), torch.randn_like(x)

    def codes(s: Scheme) -> Work:
        return lambda: quantize_codes(x, given[s].scale, given[s].zero_point, s)

    def train(s: Scheme) -> Work:
        def step() -> None:
            leaf.grad = None
            fake_quantize(leaf, s, given[s].scale, given[s].zero_point).backward(gradient)

        return step

    return {
        "range per tensor": lambda: Extrema().update(x),
        "range per channel": lambda: Extrema(0).update(x),
        "histogram": lambda: Histogram().update(x),
        "codes int8 per tensor": codes(tensor),
        "codes int8 per channel": codes(channel),
        "quantize int8 per tensor": lambda: quantize(x, tensor),
        "quantize int8 per channel": lambda: quantize(x, channel),
        "quantize uint8 per tensor, asymmetric": lambda: quantize(x, Scheme(uint8, False)),
        "quantize int8 group 32, fp16 scales": lambda: quantize(x, q8_0),
        "dequantize int8 per tensor": given[tensor].dequantize,
        "dequantize int8 per channel": given[channel].dequantize,
        "fake-quantize int8 per tensor, forward and backward": train(tensor),
        "fake-quantize int8 per channel, forward and backward": train(channel),
        "quantize int4 group 64 and pack": lambda: pack(quantize(x, group).codes, 4),
        "quantize int4 group 32, fp16 scales, and pack": lambda: pack(quantize(x, q4_0).codes, 4),
        "pack int4": lambda: pack(given[group].codes, 4),
        "unpack int4": lambda: unpack(packed, 4, x.numel(), True),
        "quantize nf4 group 64": lambda: quantize(x, Scheme(nf4, granularity=PerGroup(64))),
        "quantize mxfp4": lambda: quantize(x, named_scheme("mxfp4")),
        "quantize mxfp8 e4m3": lambda: quantize(x, named_scheme("mxfp8_e4m3")),
    }


def _peers(x: Tensor) -> tuple[dict[str, dict[str, Work]], list[str]]:
    """Return name → peer → the same work, and the peers that are not installed."""
    found: dict[str, dict[str, Work]] = {}
    absent = []
    for peer in (_torch, _torchao, _quanto, _gguf):
        try:
            with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
                warnings.simplefilter("ignore")
                logging.disable(logging.WARNING)
                works = peer(x)
        except ImportError:
            absent.append(peer.__name__.strip("_"))
            continue
        for name, work in works.items():
            found.setdefault(name, {})[peer.__name__.strip("_")] = work
    return found, absent


def _torch(x: Tensor) -> dict[str, Work]:
    leaf, gradient = x.clone().requires_grad_(), torch.randn_like(x)
    scale, zero = torch.tensor(0.04), torch.tensor(0, dtype=torch.int32)
    scales, zeros = torch.full((ROWS,), 0.04), torch.zeros(ROWS, dtype=torch.int32)

    def tensor() -> None:
        leaf.grad = None
        torch.fake_quantize_per_tensor_affine(leaf, scale, zero, -127, 127).backward(gradient)

    def channel() -> None:
        leaf.grad = None
        out = torch.fake_quantize_per_channel_affine(leaf, scales, zeros, 0, -127, 127)
        out.backward(gradient)

    return {
        "fake-quantize int8 per tensor, forward and backward": tensor,
        "fake-quantize int8 per channel, forward and backward": channel,
        "range per tensor": lambda: torch.aminmax(x),
        "range per channel": lambda: torch.aminmax(x, dim=1),
        "codes int8 per tensor": lambda: torch.quantize_per_tensor(x, 0.04, 0, torch.qint8),
        "codes int8 per channel": lambda: torch.quantize_per_channel(
            x, scales, zeros, 0, torch.qint8
        ),
    }


def _torchao(x: Tensor) -> dict[str, Work]:
    ao: Any = import_module("torchao.quantization.quant_primitives")
    symmetric = ao.MappingType.SYMMETRIC
    block = {"tensor": tuple(x.shape), "channel": (1, x.shape[1]), "group": (1, 64)}

    def parameters(kind: str, low: int, high: int) -> Any:
        return ao.choose_qparams_affine(x, symmetric, block[kind], torch.int8, low, high)

    def codes(kind: str, low: int, high: int) -> Work:
        given = parameters(kind, low, high)
        return lambda: ao.quantize_affine(x, block[kind], *given, torch.int8, low, high)

    def both(kind: str, low: int, high: int) -> Work:
        def work() -> Tensor:
            given = parameters(kind, low, high)
            return ao.quantize_affine(x, block[kind], *given, torch.int8, low, high)

        return work

    def packed() -> Tensor:  # torchao packs int4 by shifting pairs into a byte
        q = both("group", -8, 7)().view(torch.uint8)
        return (q[:, ::2] & 15) | (q[:, 1::2] << 4)

    def values(kind: str) -> Work:
        given = parameters(kind, -127, 127)
        q = ao.quantize_affine(x, block[kind], *given, torch.int8, -127, 127)
        return lambda: ao.dequantize_affine(q, block[kind], *given, torch.int8, -127, 127)

    return {
        "codes int8 per tensor": codes("tensor", -127, 127),
        "codes int8 per channel": codes("channel", -127, 127),
        "quantize int8 per tensor": both("tensor", -127, 127),
        "quantize int8 per channel": both("channel", -127, 127),
        "quantize int4 group 64 and pack": packed,
        "dequantize int8 per tensor": values("tensor"),
        "dequantize int8 per channel": values("channel"),
    }


def _quanto(x: Tensor) -> dict[str, Work]:
    quanto: Any = import_module("optimum.quanto")
    symmetric, bits = quanto.SymmetricOptimizer, quanto.MaxOptimizer()
    absmax: Any = import_module("optimum.quanto").AbsmaxOptimizer()
    assert symmetric is not None
    scale = absmax(x, qtype=quanto.qint8, axis=0)

    def weight(axis: int | None) -> Work:
        def work() -> Any:
            own = absmax(x, qtype=quanto.qint8, axis=axis)
            return quanto.quantize_weight(x, qtype=quanto.qint8, axis=0, scale=own)

        return work

    def group() -> Any:
        own, shift = bits(x, qtype=quanto.qint4, axis=0, group_size=64)
        return quanto.quantize_weight(x, quanto.qint4, 0, own, shift, 64)

    q = quanto.quantize_weight(x, qtype=quanto.qint8, axis=0, scale=scale)
    return {
        "codes int8 per channel": lambda: quanto.quantize_weight(
            x, qtype=quanto.qint8, axis=0, scale=scale
        ),
        "quantize int8 per channel": weight(0),
        "quantize int4 group 64 and pack": group,
        "dequantize int8 per channel": q.dequantize,
    }


def _gguf(x: Tensor) -> dict[str, Work]:
    gguf: Any = import_module("gguf")
    kinds, array = gguf.GGMLQuantizationType, x.numpy()
    return {
        "quantize int8 group 32, fp16 scales": lambda: gguf.quants.quantize(array, kinds.Q8_0),
        "quantize int4 group 32, fp16 scales, and pack": lambda: gguf.quants.quantize(
            array, kinds.Q4_0
        ),
        "quantize mxfp4": lambda: gguf.quants.quantize(array, kinds.MXFP4),
    }


def _row(name: str, works: dict[str, Work], repeats: int) -> dict[str, Any]:
    """Return the medians of all works in milliseconds, and the ratios."""
    times: dict[str, list[float]] = {peer: [] for peer in works}
    slow = set()
    for turn in range(repeats + 1):
        for peer, work in works.items():
            if peer in slow and turn > 2:
                continue
            start = time.perf_counter()
            result = work()
            took = time.perf_counter() - start
            del result
            if turn:  # the first turn warms up
                times[peer].append(1e3 * took)
            if took > 5:
                slow.add(peer)
    median = {peer: statistics.median(t) for peer, t in times.items()}
    peers = {p: ms for p, ms in median.items() if p not in ("copy", "bitsmith")}
    row: dict[str, Any] = {
        "operation": name,
        "ms": round(median["bitsmith"], 1),
        "times copy": round(median["bitsmith"] / median["copy"], 2),
    }
    if peers:
        best = min(peers, key=peers.__getitem__)
        row |= {"fastest peer": best, "peer ms": round(peers[best], 1)}
        row |= {"peer / ours": round(peers[best] / median["bitsmith"], 2)}
        row |= {"all peers ms": ", ".join(f"{p} {ms:.0f}" for p, ms in peers.items())}
    return row


def _versions() -> dict[str, str]:
    found = {}
    for name in ("torch", "torchao", "optimum-quanto", "gguf"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


if __name__ == "__main__":
    main()
