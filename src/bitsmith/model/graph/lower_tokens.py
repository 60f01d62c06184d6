"""Lowerings of what language models add: look-ups, masks, reductions over tokens."""

from __future__ import annotations

from bitsmith.model.graph.call import Call, Lowered, Lowering, lowers

__all__ = ["TOKEN_LOWERINGS"]

TOKEN_LOWERINGS: dict[str, Lowering] = {}
#: Types that a file can name (see ``graph_writer``).
_TYPES = ("float32", "int64", "bool")


@lowers(TOKEN_LOWERINGS, "embedding")
def _embedding(call: Call) -> Lowered:
    return Lowered("embedding", ["indices"], {}, {"weight": "weight"})


@lowers(TOKEN_LOWERINGS, "ne")
def _not_equal(call: Call) -> Lowered | None:
    value = call.args.get("other")
    return Lowered("ne", attrs={"value": value}) if isinstance(value, int | float) else None


@lowers(TOKEN_LOWERINGS, "to", "_to_copy", "type_as")
def _cast(call: Call) -> Lowered | None:
    return Lowered("cast", attrs={"dtype": call.dtype}) if call.dtype in _TYPES else None


@lowers(TOKEN_LOWERINGS, "zeros_like")
def _zeros_like(call: Call) -> Lowered | None:
    return _full(call, 0)


@lowers(TOKEN_LOWERINGS, "ones_like")
def _ones_like(call: Call) -> Lowered | None:
    return _full(call, 1)


@lowers(TOKEN_LOWERINGS, "full_like")
def _full_like(call: Call) -> Lowered | None:
    return _full(call, call.args["fill_value"])


def _full(call: Call, value: object) -> Lowered | None:
    if call.dtype not in _TYPES or not isinstance(value, int | float):
        return None
    return Lowered("full_like", attrs={"value": value, "dtype": call.dtype})


@lowers(TOKEN_LOWERINGS, "expand_as")
def _expand_as(call: Call) -> Lowered:
    return Lowered("expand_as", ["self", "other"])


@lowers(TOKEN_LOWERINGS, "sum")
def _sum(call: Call) -> Lowered | None:
    return _reduction("sum", call)


@lowers(TOKEN_LOWERINGS, "linalg_vector_norm")
def _vector_norm(call: Call) -> Lowered | None:
    return _reduction("norm", call) if call.args.get("ord", 2) == 2 else None


def _reduction(op: str, call: Call) -> Lowered | None:
    axes = call.args.get("dim")
    if not axes or call.args.get("dtype") is not None:
        return None
    rank = len(call.shapes["self"])
    attrs = {"axes": sorted(a % rank for a in axes), "keepdim": bool(call.args.get("keepdim"))}
    return Lowered(op, attrs=attrs)
