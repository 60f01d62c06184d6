"""Lowerings of the ATen operators that move values: views, slices, pads, upsampling, identities."""

from __future__ import annotations

from bitsmith.model.graph.call import Call, Lowered, Lowering, lowers

__all__ = ["MOVE_LOWERINGS"]

MOVE_LOWERINGS: dict[str, Lowering] = {}


@lowers(
    MOVE_LOWERINGS,
    "view",
    "reshape",
    "flatten",
    "unflatten",
    "squeeze",
    "unsqueeze",
    "_unsafe_view",
)
def _reshape(call: Call) -> Lowered | None:
    shape = list(call.shape)
    if shape.count(-1) > 1:  # 0 keeps an axis as it is; one other may be inferred
        shape = [0 if s == -1 and i in call.kept else s for i, s in enumerate(shape)]
    return None if shape.count(-1) > 1 else Lowered("reshape", attrs={"shape": shape})


@lowers(MOVE_LOWERINGS, "permute")
def _permute(call: Call) -> Lowered:
    rank = len(call.shape)
    return Lowered("transpose", attrs={"perm": [d % rank for d in call.args["dims"]]})


@lowers(MOVE_LOWERINGS, "transpose", "swapaxes", "swapdims")
def _transpose(call: Call) -> Lowered:
    rank = len(call.shape)
    perm = list(range(rank))
    names = ("axis0", "axis1") if "axis0" in call.args else ("dim0", "dim1")
    a, b = (call.args[name] % rank for name in names)
    perm[a], perm[b] = perm[b], perm[a]
    return Lowered("transpose", attrs={"perm": perm})


@lowers(MOVE_LOWERINGS, "t")
def _t(call: Call) -> Lowered:
    return Lowered("transpose", attrs={"perm": list(reversed(range(len(call.shape))))})


@lowers(MOVE_LOWERINGS, "slice")
def _slice(call: Call) -> Lowered | None:
    axis = call.args.get("dim", 0) % len(call.shape)
    size = call.shapes["self"][axis]
    start, end = call.args.get("start") or 0, call.args.get("end")
    step = call.args.get("step", 1)
    if not all(v is None or isinstance(v, int) for v in (start, end, step)):
        return None  # a size of the input
    if size == -1:
        whole = start == 0 and (end is None or end >= 2**31) and step == 1
        return Lowered("identity") if whole else None
    start, end, _ = slice(start, end, step).indices(size)
    if (start, end, step) == (0, size, 1):
        return Lowered("identity")
    return Lowered("slice", attrs={"axis": axis, "start": start, "end": end, "step": step})


@lowers(MOVE_LOWERINGS, "pad", "constant_pad_nd")
def _pad(call: Call) -> Lowered | None:
    if call.args.get("mode", "constant") != "constant" or min(call.args["pad"]) < 0:
        return None
    value = call.args.get("value")
    return Lowered("pad", attrs={"pads": list(call.args["pad"]), "value": float(value or 0.0)})


@lowers(MOVE_LOWERINGS, "upsample_nearest1d", "upsample_nearest2d")
def _upsample(call: Call) -> Lowered | None:
    before = call.shapes["input" if "input" in call.shapes else "self"][2:]
    after = call.shape[2:]
    if -1 in before or any(a % b for b, a in zip(before, after, strict=True)):
        return None
    scale = [a // b for b, a in zip(before, after, strict=True)]
    source = "input" if "input" in call.args else "self"
    return Lowered("upsample_nearest", [source], {"scale": scale})


@lowers(
    MOVE_LOWERINGS,
    "dropout",
    "contiguous",
    "clone",
    "detach",
    "alias",
    "lift_fresh_copy",
    "feature_dropout",
)
def _identity(call: Call) -> Lowered | None:
    if call.args.get("train"):
        return None
    return Lowered("identity", ["input" if "input" in call.args else "self"])
