"""The published search of ggml (``ggml-quants.c``), written again in plain numpy as a reference.

All functions take blocks ``[blocks, n]`` of float64 and return what the file would say of them.
"""

from __future__ import annotations

import numpy as np

__all__ = ["WEIGHTS", "published"]


def _half(x):
    return x.astype(np.float16).astype(np.float64)


def _over(a, b):
    return np.divide(a, b, out=np.zeros_like(a, dtype=np.float64), where=b != 0)


def _extreme(x):
    return np.take_along_axis(x, np.abs(x).argmax(-1)[..., None], -1)


def make_qx(x, nmax, w):
    """``make_qx_quants`` with rmse_type 1: scales of blocks; codes run from −nmax to nmax − 1."""
    top = _extreme(x)
    best, scale = np.zeros(len(x)), np.zeros(len(x))
    for step in (0, *range(-9, 0), *range(1, 10)):
        q = np.clip(
            np.rint(x * _over(np.full_like(top, -(nmax + 0.1 * step)), top)), -nmax, nmax - 1
        )
        xq, qq = (w * x * q).sum(-1), (w * q * q).sum(-1)
        better = (qq > 0) & ((step == 0) | (xq * xq > best * qq))
        scale = np.where(better, _over(xq, qq), scale)
        best = np.where(better, scale * xq, best)
    return scale


def make_q3(x, nmax, w):
    """``make_q3_quants`` with do_rmse: codes are moved one at a time while that helps."""
    top = _extreme(x)
    q = np.clip(np.rint(x * _over(np.full_like(top, -nmax), top)), -nmax, nmax - 1)
    xq, qq = (w * x * q).sum(-1), (w * q * q).sum(-1)
    for _ in range(5):
        for i in range(x.shape[1]):
            xi, wi, old = x[:, i], w[:, i], q[:, i]
            xq1, qq1 = xq - wi * xi * old, qq - wi * old * old
            new = np.clip(np.rint(xi * _over(qq1, xq1)), -nmax, nmax - 1)
            xq2, qq2 = xq1 + wi * xi * new, qq1 + wi * new * new
            take = (xq1 > 0) & (new != old) & (qq2 > 0) & (xq2 * xq2 * qq > xq * xq * qq2)
            q[:, i] = np.where(take, new, old)
            xq, qq = np.where(take, xq2, xq), np.where(take, qq2, qq)
    return _over(xq, qq)


def make_qkx2(x, nmax, w, rmin, rdelta, nstep, mad):
    """``make_qkx2_quants``: scales and mins (not negative, to be subtracted) of blocks."""
    low, high = np.minimum(x.min(-1), 0.0), x.max(-1)
    span = high - low

    def error(scale, least, q):
        d = np.abs(scale[:, None] * q + least[:, None] - x)
        return (w * (d if mad else d * d)).sum(-1)

    def codes(reach):
        return np.clip(
            np.rint(_over(np.full_like(span, reach), span)[:, None] * (x - low[:, None])), 0, nmax
        )

    scale, least = span / nmax, low.copy()
    best = error(scale, least, codes(nmax))
    one, sx = w.sum(-1), (w * x).sum(-1)
    for step in range(nstep + 1):
        q = codes(rmin + rdelta * step + nmax)
        sq, sqq, sxq = (w * q).sum(-1), (w * q * q).sum(-1), (w * q * x).sum(-1)
        det = one * sqq - sq * sq
        new_scale, new_least = _over(one * sxq - sx * sq, det), _over(sqq * sx - sq * sxq, det)
        positive = new_least > 0
        new_scale = np.where(positive, _over(sxq, sqq), new_scale)
        new_least = np.where(positive, 0.0, new_least)
        found = error(new_scale, new_least, q)
        take = (det > 0) & (found < best)
        scale, least = np.where(take, new_scale, scale), np.where(take, new_least, least)
        best = np.where(take, found, best)
    return scale, -least


def _requantized(x, scale, least, low, high):
    q = np.clip(np.rint(_over(x + least, scale)), low, high)
    return scale * q - least


def _two_levels_signed(x, size, low, high, own_low, own_high, make):
    blocks = x.reshape(-1, size)
    scales = make(blocks, -low, blocks * blocks).reshape(len(x), -1)
    d = _over(_extreme(scales), np.array(own_low))
    codes = np.clip(np.rint(_over(scales, d)), own_low, own_high)
    scale = (_half(d) * codes)[..., None]
    return _requantized(x.reshape(len(x), -1, size), scale, 0.0, low, high).reshape(x.shape)


def _two_levels_min(x, size, high, own_high, weights, *options):
    blocks = x.reshape(-1, size)
    scales, mins = make_qkx2(blocks, high, weights(blocks), *options)
    scales, mins = scales.reshape(len(x), -1), mins.reshape(len(x), -1)
    levels = []
    for values in (scales, mins):
        d = values.max(-1, keepdims=True) / own_high
        codes = np.clip(np.rint(_over(values, d)), 0, own_high)
        levels.append((_half(d) * codes)[..., None])
    return _requantized(x.reshape(len(x), -1, size), *levels, 0, high).reshape(x.shape)


def _mean_and_size(x):
    return np.sqrt((x * x).mean(-1, keepdims=True)) + np.abs(x)


def _one_level(x, nmax):
    blocks = x.reshape(-1, 32)
    d = _half(make_qx(blocks, nmax, blocks * blocks))[:, None]
    return _requantized(blocks, d, 0.0, -nmax, nmax - 1).reshape(x.shape)


def _one_level_min(x, high):
    blocks = x.reshape(-1, 32)
    scale, least = make_qkx2(blocks, high, _mean_and_size(blocks), -0.9, 0.05, 36, False)
    return _requantized(blocks, _half(scale)[:, None], _half(least)[:, None], 0, high).reshape(
        x.shape
    )


_METHODS = {
    "Q4_0": lambda x: _one_level(x, 8),
    "Q5_0": lambda x: _one_level(x, 16),
    "Q8_0": lambda x: _requantized(
        b := x.reshape(-1, 32), _half(np.abs(b).max(-1, keepdims=True) / 127), 0.0, -128, 127
    ).reshape(x.shape),
    "Q4_1": lambda x: _one_level_min(x, 15),
    "Q5_1": lambda x: _one_level_min(x, 31),
    "Q2_K": lambda x: _two_levels_min(x, 16, 3, 15, np.abs, -0.5, 0.1, 15, True),
    "Q3_K": lambda x: _two_levels_signed(x, 16, -4, 3, -32, 31, make_q3),
    "Q4_K": lambda x: _two_levels_min(x, 32, 15, 63, _mean_and_size, -1.0, 0.1, 20, False),
    "Q5_K": lambda x: _two_levels_min(x, 32, 31, 63, _mean_and_size, -0.5, 0.1, 15, False),
    "Q6_K": lambda x: _two_levels_signed(x, 16, -32, 31, -128, 127, make_qx),
}

WEIGHTS = {
    "Q8_0": np.ones_like,
    "Q2_K": lambda x: np.abs(x).reshape(x.shape),
    **dict.fromkeys(("Q4_0", "Q5_0", "Q3_K", "Q6_K"), np.square),
    **dict.fromkeys(
        ("Q4_1", "Q5_1", "Q4_K", "Q5_K"),
        lambda x: _mean_and_size(x.reshape(-1, 32)).reshape(x.shape),
    ),
}
"""Type → the weights of the errors that the published search minimises, from ``[rows, 256]``."""


def published(x, name):
    """Return what the published search makes of super-blocks ``[rows, 256]``."""
    return _METHODS[name](x)
