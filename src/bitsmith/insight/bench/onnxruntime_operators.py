"""ONNX Runtime's low-bit products: dynamic int8 and MatMulNBits, through bound memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from bitsmith.insight.bench.contender import Contender, Job, Prepared

__all__ = ["DYNAMIC", "nbits_name", "onnxruntime_contenders"]

DYNAMIC = "ONNX Runtime dynamic int8"
_WIDTHS = (2, 4, 8)
_LEVELS = (0, 4)
_CHANNEL = 128
"""Group of MatMulNBits beside weights of ours that have one scale a row, which it has not."""
_FILE = (1 << 31) - (1 << 20)
"""Bytes of a model at most: protobuf's limit."""

_Nodes = Callable[[int], list[onnx.NodeProto]]


def nbits_name(bits: int, group: int | None, level: int) -> str:
    """Return the name of a MatMulNBits row: level 0 multiplies in float32, 4 in int8.

    >>> nbits_name(4, 64, 4)
    'ONNX Runtime 4-bit group 64, level 4'
    """
    return f"ONNX Runtime {bits}-bit group {group or _CHANNEL}, level {level}"


def onnxruntime_contenders(bits: int, group: int | None) -> list[Contender]:
    """Return the operators for weights of ``bits`` bits in groups, or per channel."""
    found = []
    if bits == 8 and group is None:
        found.append(Contender(DYNAMIC, "onnxruntime", _dynamic))
    size = group or _CHANNEL
    if bits in _WIDTHS and size >= 16 and not size & (size - 1):
        found += [
            Contender(nbits_name(bits, size, level), "onnxruntime", _nbits(bits, size, level))
            for level in _LEVELS
        ]
    return found


def _dynamic(job: Job) -> Prepared:
    """What ``quantize_dynamic`` writes for a MatMul: uint8 rows by the tensor, int8 weights."""
    size = job.n * job.k
    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, (job.k, job.n), dtype=np.int8)
    parts = {"w": codes, "s": np.full(job.n, 0.01, np.float32), "z": np.zeros(job.n, np.int8)}

    def nodes(i: int) -> list[onnx.NodeProto]:
        q, scale, zero = f"q{i}", f"qs{i}", f"qz{i}"
        return [
            helper.make_node("DynamicQuantizeLinear", ["x"], [q, scale, zero]),
            helper.make_node("MatMulInteger", [q, f"w{i}", zero, f"z{i}"], [f"sum{i}"]),
            helper.make_node("Cast", [f"sum{i}"], [f"real{i}"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [scale, f"s{i}"], [f"both{i}"]),
            helper.make_node("Mul", [f"real{i}", f"both{i}"], [f"y{i}"]),
        ]

    return _prepared(job, size + 4 * job.n, parts, nodes)


def _nbits(bits: int, group: int, level: int) -> Callable[[Job], Prepared]:
    def prepare(job: Job) -> Prepared:
        blocks = -(-job.k // group)
        rng = np.random.default_rng(0)
        codes = rng.integers(0, 256, (job.n, blocks, group * bits // 8), dtype=np.uint8)
        scales = np.full((job.n, blocks), 0.01, np.float32)

        def nodes(i: int) -> list[onnx.NodeProto]:
            return [
                helper.make_node(
                    "MatMulNBits", ["x", f"w{i}", f"s{i}"], [f"y{i}"], domain="com.microsoft",
                    K=job.k, N=job.n, bits=bits, block_size=group, accuracy_level=level,
                )
            ]  # fmt: skip

        return _prepared(job, codes.nbytes + scales.nbytes, {"w": codes, "s": scales}, nodes)

    return prepare


def _prepared(job: Job, size: int, parts: dict[str, Any], nodes: _Nodes) -> Prepared:
    """Return all copies in one session, which a call runs one after the other.

    Sessions of their own would have threads of their own, which wait for work on the cores that
    the next one needs; and a pool that sessions share changes every session of the process.
    """
    import onnxruntime

    count = max(1, min(job.copies(size), _FILE // size))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = job.threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        _model(job, count, parts, nodes),
        options,
        providers=["CPUExecutionProvider"],
        # Copies quantize the same input, and each is to do it itself.
        disabled_optimizers=["CommonSubexpressionElimination"],
    )

    def bind(x: Tensor) -> list[Callable[[], object]]:
        given, out = x.contiguous(), torch.empty(count, *x.shape[:-1], job.n)
        binding = session.io_binding()
        for put, name, memory in (
            (binding.bind_input, "x", given),
            *((binding.bind_output, f"y{i}", own) for i, own in enumerate(out)),
        ):
            put(name, "cpu", 0, np.float32, list(memory.shape), memory.data_ptr())

        def run() -> tuple[Tensor, Tensor]:
            session.run_with_iobinding(binding)
            return given, out  # the binding knows only where they are: the call keeps them

        return [run]

    return Prepared(bind, size, count)


def _model(job: Job, count: int, parts: dict[str, Any], nodes: _Nodes) -> bytes:
    weights = []
    for i in range(count):
        parts["w"].flat[0] = i % 100  # no two are the same constant
        weights += [numpy_helper.from_array(array, f"{name}{i}") for name, array in parts.items()]
    outputs = [
        helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, ["m", job.n])
        for i in range(count)
    ]
    graph = helper.make_graph(
        [node for i in range(count) for node in nodes(i)],
        "copies",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", job.k])],
        outputs,
        weights,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return bytes(model.SerializeToString())
