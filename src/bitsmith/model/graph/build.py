"""Build a :class:`Graph` from an exported program, one ATen call at a time."""

from __future__ import annotations

import math
import operator
import re
from typing import Any, final

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from bitsmith.errors import CaptureError
from bitsmith.model.graph.ir import Graph, GraphInput, Node
from bitsmith.model.graph.lower import LOWERINGS, Call, Lowered

__all__ = ["Builder"]

_VIEWS = {"reshape", "transpose", "slice"}


@final
class Builder:
    """Walks the calls of an exported program and collects nodes."""

    def __init__(self, program: ExportedProgram) -> None:
        self._program = program
        self._nodes: list[Node] = []
        self._params: dict[str, Tensor] = {}
        self._inputs: list[GraphInput] = []
        self._tensor_of: dict[fx.Node, str] = {}  # value → name of the tensor that holds it
        self._param_of: dict[fx.Node, str] = {}
        self._parts: dict[fx.Node, list[str]] = {}  # results of chunk and split
        self._viewed: set[str] = set()
        self._names: set[str] = set()

    def build(self) -> Graph:
        """Return the graph."""
        self._placeholders()
        outputs: tuple[str, ...] = ()
        for node in self._program.graph.nodes:
            if node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                outputs = tuple(self._name(v, node) for v in node.args[0] if v is not None)
        return Graph(tuple(self._inputs), outputs, tuple(self._nodes), self._params)

    def _placeholders(self) -> None:
        signature = self._program.graph_signature
        owned = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        owned.update(signature.inputs_to_lifted_tensor_constants)
        state = {**self._program.state_dict, **self._program.constants}
        for node in self._program.graph.nodes:
            if node.op != "placeholder":
                continue
            if node.name in owned:
                name = owned[node.name]
                value = state[name].detach()
                self._params[name] = value.float() if value.is_floating_point() else value
                self._param_of[node] = name
            elif isinstance(node.meta.get("val"), Tensor):
                value = node.meta["val"]
                name = self._unique(node.name)
                dtype = str(value.dtype).removeprefix("torch.")
                self._inputs.append(GraphInput(name, _shape(value), dtype))
                self._tensor_of[node] = name

    def _call(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        if node.target is operator.getitem and node.args[0] in self._parts:
            self._tensor_of[node] = self._parts[node.args[0]][node.args[1]]  # type: ignore[index]
            return
        if isinstance(value, torch.SymInt | int | bool | torch.SymBool | float):
            return  # shape arithmetic: shapes are taken from the traced tensors
        if not isinstance(node.target, torch._ops.OpOverload):
            if node.target is operator.getitem:
                self._carry_item(node)
                return
            if value is None:
                return
            raise CaptureError(f"unexpected call {node.target} at {_source(node)}")
        kind = node.target._schema.name.split("::")[1]
        if value is None:
            return  # assertions on shapes
        special = getattr(self, f"_on_{kind}", None)
        if special is not None and special(node):
            return
        inplace = kind.endswith("_") and not kind.endswith("__")
        call = self._as_call(node)
        lowering = LOWERINGS.get(kind.rstrip("_") if inplace else kind)
        lowered = lowering(call) if lowering is not None else None
        if lowered is None or not self._expressible(node, call, lowered):
            self._carry(node)
        else:
            self._lower(node, call, lowered)
        if inplace:
            self._after_inplace(node)

    # -- calls that become words ------------------------------------------------------------

    def _lower(self, node: fx.Node, call: Call, lowered: Lowered) -> None:
        inputs: list[str] = []
        for name in lowered.inputs:
            value = call.args[name]
            values = value if isinstance(value, list | tuple) else [value]
            inputs += [self._name(v, node) for v in values]
        if lowered.op == "identity":
            self._tensor_of[node] = inputs[0]
            return
        params = {role: self._param_of[call.args[arg]] for role, arg in lowered.params.items()}
        name = self._add(node, lowered.op, inputs, lowered.attrs, params, call.shape)
        self._tensor_of[node] = name
        if lowered.op in _VIEWS:
            self._viewed.add(inputs[0])

    def _expressible(self, node: fx.Node, call: Call, lowered: Lowered) -> bool:
        """Whether own parameters really are the model's own, and tensors are float32."""
        if any(call.args[arg] not in self._param_of for arg in lowered.params.values()):
            return False
        value = node.meta["val"]
        return bool(value.dtype == torch.float32 or lowered.op in _VIEWS | {"identity"})

    def _add(
        self,
        node: fx.Node,
        op: str,
        inputs: list[str],
        attrs: dict[str, Any],
        params: dict[str, str],
        shape: tuple[int, ...],
    ) -> str:
        layer = _layer(node)
        owned = next(iter(params.values()), "")
        base = owned.rpartition(".")[0] if owned and op != "constant" else ""
        name = self._unique(base or (f"{layer}.{op}" if layer else op))
        self._nodes.append(Node(name, op, tuple(inputs), attrs, params, shape, layer, _source(node)))
        return name

    def _carry(self, node: fx.Node) -> None:
        """Keep a call as it is; PyTorch will run it in float."""
        inputs: list[str] = []
        params: dict[str, str] = {}

        def keep(arg: Any) -> Any:
            if isinstance(arg, fx.Node):
                if arg in self._param_of:
                    params[f"p{len(params)}"] = self._param_of[arg]
                    return {"param": f"p{len(params) - 1}"}
                if not isinstance(arg.meta.get("val"), Tensor):
                    raise CaptureError(
                        f"{node.target} at {_source(node)} takes a size that depends on the batch; "
                        "use -1 or an operator that infers it"
                    )
                inputs.append(self._name(arg, node))
                return {"input": len(inputs) - 1}
            if isinstance(arg, torch.dtype):
                return {"dtype": str(arg).removeprefix("torch.")}
            if isinstance(arg, torch.device | torch.layout | torch.memory_format):
                return None
            return [keep(a) for a in arg] if isinstance(arg, list | tuple) else arg

        args = [keep(a) for a in node.args]
        kwargs = {k: keep(v) for k, v in node.kwargs.items()}
        value = node.meta["val"]
        attrs = {"target": str(node.target), "args": args, "kwargs": kwargs, "item": None}
        if isinstance(value, Tensor):
            op = node.target._schema.name.split("::")[1]  # type: ignore[union-attr]
            layer = _layer(node)
            name = self._unique(f"{layer}.{op}" if layer else op)
            self._nodes.append(
                Node(name, "aten", tuple(inputs), attrs, params, _shape(value), layer, _source(node))
            )
            self._tensor_of[node] = name
        else:  # several results: one node each, made when a result is read
            self._parts[node] = []
            for index, part in enumerate(value):
                name = self._unique(f"{_layer(node)}.{node.name}.{index}".lstrip("."))
                own = {**attrs, "item": index}
                self._nodes.append(
                    Node(name, "aten", tuple(inputs), own, params, _shape(part), _layer(node), _source(node))
                )
                self._parts[node].append(name)

    def _carry_item(self, node: fx.Node) -> None:
        raise CaptureError(f"cannot follow {node.args} at {_source(node)}")

    def _after_inplace(self, node: fx.Node) -> None:
        """Readers of the changed tensor see the result from here on."""
        changed = node.args[0]
        assert isinstance(changed, fx.Node)
        before = self._tensor_of.get(changed)
        if before is None:
            raise CaptureError(f"{node.target} changes a parameter in place at {_source(node)}")
        if before in self._viewed or self._is_view(before):
            raise CaptureError(
                f"{node.target} at {_source(node)} changes a view in place; use the form that returns "
                "a new tensor"
            )
        for value, name in self._tensor_of.items():
            if name == before:
                self._tensor_of[value] = self._tensor_of[node]

    def _is_view(self, name: str) -> bool:
        return any(n.name == name and n.op in _VIEWS for n in self._nodes)

    # -- operators that become several nodes ------------------------------------------------

    def _on_chunk(self, node: fx.Node) -> bool:
        return self._split(node)

    def _on_split(self, node: fx.Node) -> bool:
        return self._split(node)

    def _on_split_with_sizes(self, node: fx.Node) -> bool:
        return self._split(node)

    def _split(self, node: fx.Node) -> bool:
        call = self._as_call(node)
        axis = call.args.get("dim", 0) % len(call.shapes["self"])
        if call.shapes["self"][axis] == -1:
            return False
        source = self._name(call.args["self"], node)
        start, parts = 0, []
        for value in node.meta["val"]:
            shape = _shape(value)
            attrs = {"axis": axis, "start": start, "end": start + shape[axis], "step": 1}
            parts.append(self._add(node, "slice", [source], attrs, {}, shape))
            start += shape[axis]
        self._viewed.add(source)
        self._parts[node] = parts
        return True

    def _on_select(self, node: fx.Node) -> bool:
        call = self._as_call(node)
        before = call.shapes["self"]
        axis = call.args["dim"] % len(before)
        if before[axis] == -1 or sum(s == -1 for s in call.shape) > 1:
            return False
        source = self._name(call.args["self"], node)
        index = call.args["index"] % before[axis]
        attrs = {"axis": axis, "start": index, "end": index + 1, "step": 1}
        shape = (*before[:axis], 1, *before[axis + 1 :])
        cut = self._add(node, "slice", [source], attrs, {}, shape)
        squeezed = {"shape": list(call.shape)}
        self._tensor_of[node] = self._add(node, "reshape", [cut], squeezed, {}, call.shape)
        self._viewed.add(source)
        return True

    def _on_to(self, node: fx.Node) -> bool:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if source.meta["val"].dtype != node.meta["val"].dtype:
            return False
        self._tensor_of[node] = self._name(source, node)
        return True

    _on__to_copy = _on_to

    def _on_expand(self, node: fx.Node) -> bool:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if _shape(source.meta["val"]) != _shape(node.meta["val"]):
            return False
        self._tensor_of[node] = self._name(source, node)
        return True

    def _on_scaled_dot_product_attention(self, node: fx.Node) -> bool:
        """softmax(q kᵀ · scale) v, so that its two products can run in integers."""
        call = self._as_call(node)
        if call.args.get("attn_mask") is not None or call.args.get("is_causal"):
            return False
        if call.args.get("dropout_p", 0.0) or call.args.get("enable_gqa"):
            return False
        q, k, v = (self._name(call.args[n], node) for n in ("query", "key", "value"))
        kshape, vshape, qshape = (call.shapes[n] for n in ("key", "value", "query"))
        rank = len(kshape)
        scale = call.args.get("scale") or 1.0 / math.sqrt(qshape[-1])
        perm = [*range(rank - 2), rank - 1, rank - 2]
        kt_shape = tuple(kshape[i] for i in perm)
        kt = self._add(node, "transpose", [k], {"perm": perm}, {}, kt_shape)
        scores_shape = (*qshape[:-1], kshape[-2])
        factor = self._scalar(node, scale)
        # Scaling the query first keeps the scores' own range in one quantizer.
        scaled = self._add(node, "mul", [q, factor], {}, {}, qshape)
        scores = self._add(node, "matmul", [scaled, kt], {}, {}, scores_shape)
        weights = self._add(node, "softmax", [scores], {"axis": rank - 1}, {}, scores_shape)
        out = (*qshape[:-1], vshape[-1])
        self._tensor_of[node] = self._add(node, "matmul", [weights, v], {}, {}, out)
        return True

    # -- small pieces -------------------------------------------------------------------------

    def _as_call(self, node: fx.Node) -> Call:
        schema = node.target._schema  # type: ignore[union-attr]
        names = [a.name for a in schema.arguments]
        args = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
        args.update(zip(names, node.args, strict=False))
        args.update(node.kwargs)
        shapes = {
            k: _shape(v.meta["val"])
            for k, v in args.items()
            if isinstance(v, fx.Node) and isinstance(v.meta.get("val"), Tensor)
        }
        value = node.meta["val"]
        return Call(args, shapes, _shape(value) if isinstance(value, Tensor) else ())

    def _name(self, value: Any, reader: fx.Node) -> str:
        """Return the tensor that holds ``value``; parameters and numbers become constants."""
        if isinstance(value, int | float):
            return self._scalar(reader, float(value))
        if not isinstance(value, fx.Node):
            raise CaptureError(f"{reader.target} at {_source(reader)} takes {value!r}")
        if value in self._tensor_of:
            return self._tensor_of[value]
        if value in self._param_of:
            param = self._param_of[value]
            shape = tuple(self._params[param].shape)
            name = self._unique(param)
            self._nodes.append(
                Node(name, "constant", (), {}, {"value": param}, shape, _layer(reader), _source(reader))
            )
            self._tensor_of[value] = name
            return name
        raise CaptureError(
            f"{reader.target} at {_source(reader)} takes a size as a tensor; shapes must be static "
            "except for the batch"
        )

    def _scalar(self, reader: fx.Node, value: float) -> str:
        name = self._unique(f"{_layer(reader)}.scalar".lstrip("."))
        self._params[name] = torch.tensor(value, dtype=torch.float32)
        self._nodes.append(
            Node(name, "constant", (), {}, {"value": name}, (), _layer(reader), _source(reader))
        )
        return name

    def _unique(self, name: str) -> str:
        candidate, count = name, 1
        while candidate in self._names:
            count += 1
            candidate = f"{name}_{count}"
        self._names.add(candidate)
        return candidate


def _shape(value: Tensor) -> tuple[int, ...]:
    return tuple(s if isinstance(s, int) else -1 for s in value.shape)


def _layer(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values() if isinstance(entry[0], str)]
    paths = [p for p in paths if not p.startswith("_")]
    return paths[-1] if paths else ""


def _source(node: fx.Node) -> str:
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    ours = [f for f in frames if "/torch/" not in f[0]] or frames
    return f"{ours[-1][0].rsplit('/', 1)[-1]}:{ours[-1][1]}" if ours else "an unknown line"
