"""From PyTorch's ATen operators to the words of the vocabulary.

One small function per operator, registered under the operator's name without its overload and
without the trailing underscore of the in-place form. A lowering returns the word and its
attributes, or None when this use of the operator is outside the vocabulary: it is then carried
as ``aten`` and stays float.
"""

from __future__ import annotations

from bitsmith.model.graph.call import Call, Lowered, Lowering, lowers
from bitsmith.model.graph.lower_moves import MOVE_LOWERINGS
from bitsmith.model.graph.lower_tokens import TOKEN_LOWERINGS

__all__ = ["LOWERINGS"]

LOWERINGS: dict[str, Lowering] = {**MOVE_LOWERINGS, **TOKEN_LOWERINGS}


def _present(call: Call, **roles: str) -> dict[str, str]:
    return {role: name for role, name in roles.items() if call.args.get(name) is not None}


@lowers(LOWERINGS, "conv1d", "conv2d")
def _conv(call: Call) -> Lowered | None:
    kernel = call.shapes["weight"][2:]
    dilation = call.spatial("dilation", 1)
    if isinstance(call.args.get("padding"), str):
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if call.args["padding"] == "valid":
            total = [0 for _ in total]
        if any(t % 2 for t in total):
            return None  # one-sided padding; torch pads the far side
        padding = [t // 2 for t in total]
    else:
        padding = call.spatial("padding", 0)
    attrs = {
        "stride": call.spatial("stride", 1),
        "padding": padding,
        "dilation": dilation,
        "groups": call.args.get("groups", 1),
    }
    return Lowered("conv", ["input"], attrs, _present(call, weight="weight", bias="bias"))


@lowers(LOWERINGS, "conv_transpose1d", "conv_transpose2d")
def _conv_transpose(call: Call) -> Lowered:
    attrs = {
        "stride": call.spatial("stride", 1),
        "padding": call.spatial("padding", 0),
        "output_padding": call.spatial("output_padding", 0),
        "dilation": call.spatial("dilation", 1),
        "groups": call.args.get("groups", 1),
    }
    return Lowered("conv_transpose", ["input"], attrs, _present(call, weight="weight", bias="bias"))


@lowers(LOWERINGS, "linear")
def _linear(call: Call) -> Lowered:
    return Lowered("linear", ["input"], {}, _present(call, weight="weight", bias="bias"))


@lowers(LOWERINGS, "matmul", "bmm", "mm")
def _matmul(call: Call) -> Lowered | None:
    second = "mat2" if "mat2" in call.args else "other"
    if min(len(call.shapes["self"]), len(call.shapes[second])) < 2:
        return None
    return Lowered("matmul", ["self", second])


@lowers(LOWERINGS, "batch_norm")
def _batch_norm(call: Call) -> Lowered | None:
    if call.args.get("training") or call.args.get("running_mean") is None:
        return None
    params = _present(call, weight="weight", bias="bias", mean="running_mean", var="running_var")
    return Lowered("batch_norm", ["input"], {"eps": call.args["eps"]}, params)


def _binary_for(op: str) -> Lowering:
    def lower(call: Call) -> Lowered | None:
        if call.args.get("alpha", 1) != 1 or call.args.get("rounding_mode") is not None:
            return None
        return Lowered(op, ["self", "other"])

    return lower


_BINARY = {
    "add": "add",
    "sub": "sub",
    "subtract": "sub",
    "mul": "mul",
    "multiply": "mul",
    "div": "div",
    "divide": "div",
    "true_divide": "div",
}
for _name, _op in _BINARY.items():
    LOWERINGS[_name] = _binary_for(_op)


@lowers(LOWERINGS, "relu")
def _relu(call: Call) -> Lowered:
    return Lowered("relu")


@lowers(LOWERINGS, "relu6")
def _relu6(call: Call) -> Lowered:
    return Lowered("clamp", attrs={"low": 0.0, "high": 6.0})


@lowers(LOWERINGS, "hardtanh")
def _hardtanh(call: Call) -> Lowered:
    low, high = call.args.get("min_val", -1), call.args.get("max_val", 1)
    return Lowered("clamp", attrs={"low": float(low), "high": float(high)})


@lowers(LOWERINGS, "clamp", "clip", "clamp_min", "clamp_max")
def _clamp(call: Call) -> Lowered | None:
    low, high = call.args.get("min"), call.args.get("max")
    if not all(v is None or isinstance(v, int | float) for v in (low, high)):
        return None
    attrs = {
        "low": None if low is None else float(low),
        "high": None if high is None else float(high),
    }
    return Lowered("clamp", attrs=attrs)


@lowers(LOWERINGS, "leaky_relu")
def _leaky_relu(call: Call) -> Lowered:
    return Lowered("leaky_relu", attrs={"slope": float(call.args.get("negative_slope", 0.01))})


@lowers(LOWERINGS, "gelu")
def _gelu(call: Call) -> Lowered:
    return Lowered("gelu", attrs={"approximate": call.args.get("approximate", "none")})


@lowers(LOWERINGS, "softmax")
def _softmax(call: Call) -> Lowered:
    return Lowered("softmax", attrs={"axis": call.args["dim"] % len(call.shape)})


@lowers(LOWERINGS, "layer_norm")
def _layer_norm(call: Call) -> Lowered:
    attrs = {
        "normalized_shape": list(call.args["normalized_shape"]),
        "eps": call.args.get("eps", 1e-5),
    }
    return Lowered("layer_norm", ["input"], attrs, _present(call, weight="weight", bias="bias"))


@lowers(LOWERINGS, "cat", "concat", "concatenate")
def _concat(call: Call) -> Lowered:
    return Lowered("concat", ["tensors"], {"axis": call.args.get("dim", 0) % len(call.shape)})


@lowers(LOWERINGS, "max_pool1d", "max_pool2d")
def _max_pool(call: Call) -> Lowered:
    kernel = call.spatial("kernel_size")
    attrs = {
        "kernel": kernel,
        "stride": call.spatial("stride", kernel),
        "padding": call.spatial("padding", 0),
        "dilation": call.spatial("dilation", 1),
        "ceil_mode": bool(call.args.get("ceil_mode", False)),
    }
    return Lowered("max_pool", attrs=attrs)


@lowers(LOWERINGS, "avg_pool1d", "avg_pool2d")
def _avg_pool(call: Call) -> Lowered | None:
    if call.args.get("divisor_override") is not None:
        return None
    kernel = call.spatial("kernel_size")
    attrs = {
        "kernel": kernel,
        "stride": call.spatial("stride", kernel),
        "padding": call.spatial("padding", 0),
        "ceil_mode": bool(call.args.get("ceil_mode", False)),
        "count_include_pad": bool(call.args.get("count_include_pad", True)),
    }
    return Lowered("avg_pool", attrs=attrs)


@lowers(LOWERINGS, "adaptive_avg_pool1d", "adaptive_avg_pool2d")
def _adaptive_avg_pool(call: Call) -> Lowered | None:
    before, after = call.shapes["self"][2:], call.shape[2:]
    if -1 in before or any(b % a for b, a in zip(before, after, strict=True)):
        return None  # windows of unlike size
    if all(a == 1 for a in after):
        return Lowered("global_avg_pool")
    kernel = [b // a for b, a in zip(before, after, strict=True)]
    zero = [0] * len(kernel)
    attrs = {"kernel": kernel, "stride": kernel, "padding": zero}
    return Lowered("avg_pool", attrs={**attrs, "ceil_mode": False, "count_include_pad": True})


@lowers(LOWERINGS, "mean")
def _mean(call: Call) -> Lowered | None:
    axes = call.args.get("dim")
    if not axes or call.args.get("dtype") is not None:
        return None
    rank = len(call.shapes["self"])
    attrs = {"axes": sorted(a % rank for a in axes), "keepdim": bool(call.args.get("keepdim"))}
    return Lowered("mean", attrs=attrs)


def _plain(op: str) -> Lowering:
    return lambda call: Lowered(op)


for _op in ("sigmoid", "tanh", "silu", "hardswish", "hardsigmoid"):
    LOWERINGS[_op] = _plain(_op)
