"""Build a :class:`Graph` from an exported program, one ATen call at a time."""

from __future__ import annotations

import operator
import re
from typing import Any, final

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from bitsmith.errors import CaptureError
from bitsmith.model.graph.alias import Aliases
from bitsmith.model.graph.ir import Graph, GraphInput, Node
from bitsmith.model.graph.lower import LOWERINGS, Call, Lowered
from bitsmith.model.graph.several import SEVERAL, shape_of

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
        self._held: dict[fx.Node, str] = {}  # value → name of the tensor that holds it
        self._param_of: dict[fx.Node, str] = {}
        self._parts: dict[fx.Node, list[str]] = {}  # results of chunk and split
        self._aliases = Aliases()
        self._names: set[str] = set()

    def build(self) -> Graph:
        """Return the graph."""
        self._placeholders()
        outputs: tuple[str, ...] = ()
        for node in self._program.graph.nodes:
            if node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                outputs = tuple(self.tensor_of(v, node) for v in node.args[0] if v is not None)
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
                self._inputs.append(GraphInput(name, shape_of(value), dtype))
                self._held[node] = name

    def _call(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        if node.target is operator.getitem and node.args[0] in self._parts:
            source, index = node.args
            self._held[node] = self._parts[source][index]  # type: ignore[index]
            self._aliases.view(node, source)  # type: ignore[arg-type]
            return
        if isinstance(value, torch.SymInt | int | bool | torch.SymBool | float):
            return  # shape arithmetic: shapes are taken from the traced tensors
        if not isinstance(node.target, torch._ops.OpOverload):
            if node.target is operator.getitem:
                raise CaptureError(f"cannot follow {node.args} at {_source(node)}")
            if value is None:
                return
            raise CaptureError(f"unexpected call {node.target} at {_source(node)}")
        if value is None:
            return  # assertions on shapes
        kind = node.target._schema.name.split("::")[1]
        inplace = kind.endswith("_") and not kind.endswith("__")
        changed = node.args[0] if inplace else None
        if isinstance(changed, fx.Node):
            self._check_inplace(node, changed)
        several = SEVERAL.get(kind)
        if several is None or not several(self, node):
            self._one(node, kind.rstrip("_") if inplace else kind)
        self._aliases.add(node)
        if isinstance(changed, fx.Node):
            for value_node in self._aliases.same(changed):
                self._held[value_node] = self._held[node]

    def _one(self, node: fx.Node, kind: str) -> None:
        call = self.call_of(node)
        lowering = LOWERINGS.get(kind)
        lowered = lowering(call) if lowering is not None else None
        if lowered is None or not self._expressible(node, call, lowered):
            self._carry(node)
        else:
            self._lower(node, call, lowered)

    def _check_inplace(self, node: fx.Node, changed: fx.Node) -> None:
        """Readers of the changed tensor will see the result, readers of its views would not."""
        if any(n in self._param_of for n in self._aliases.family(changed)):
            raise CaptureError(
                f"{node.target} at {_source(node)} changes a parameter or buffer of the model in "
                "place; a file keeps no state between calls, so compute a new tensor instead"
            )
        if late := self._aliases.read_later(node, changed):
            where = "as an output" if late.op == "output" else f"at {_source(late)}"
            raise CaptureError(
                f"{node.target} at {_source(node)} changes a tensor in place of which another view "
                f"is read later, {where}; use the form that returns a new tensor"
            )

    # -- calls that become words ------------------------------------------------------------

    def _lower(self, node: fx.Node, call: Call, lowered: Lowered) -> None:
        inputs: list[str] = []
        for name in lowered.inputs:
            value = call.args[name]
            values = value if isinstance(value, list | tuple) else [value]
            inputs += [self.tensor_of(v, node) for v in values]
        if lowered.op == "identity":
            self._held[node] = inputs[0]
            return
        params = {role: self._param_of[call.args[arg]] for role, arg in lowered.params.items()}
        name = self.add(node, lowered.op, inputs, lowered.attrs, params, call.shape)
        self._held[node] = name

    def _expressible(self, node: fx.Node, call: Call, lowered: Lowered) -> bool:
        """Whether own parameters really are the model's own, and tensors are float32."""
        if any(call.args[arg] not in self._param_of for arg in lowered.params.values()):
            return False
        value = node.meta["val"]
        return bool(value.dtype == torch.float32 or lowered.op in _VIEWS | {"identity"})

    def add(
        self,
        node: fx.Node,
        op: str,
        inputs: list[str],
        attrs: dict[str, Any],
        params: dict[str, str],
        shape: tuple[int, ...],
    ) -> str:
        """Append a node on behalf of the call ``node``; returns its unique name."""
        layer = _layer(node)
        owned = next(iter(params.values()), "")
        base = owned.rpartition(".")[0] if owned and op != "constant" else ""
        name = self._unique(base or (f"{layer}.{op}" if layer else op))
        self._nodes.append(
            Node(name, op, tuple(inputs), attrs, params, shape, layer, _source(node))
        )
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
                inputs.append(self.tensor_of(arg, node))
                return {"input": len(inputs) - 1}
            if isinstance(arg, torch.dtype):
                return {"dtype": str(arg).removeprefix("torch.")}
            if isinstance(arg, torch.device | torch.layout | torch.memory_format):
                return None
            return [keep(a) for a in arg] if isinstance(arg, list | tuple) else arg

        args = [keep(a) for a in node.args]
        kwargs = {k: keep(v) for k, v in node.kwargs.items()}
        value = node.meta["val"]
        attrs = {"target": _functional(node), "args": args, "kwargs": kwargs, "item": None}
        if isinstance(value, Tensor):
            op = node.target._schema.name.split("::")[1]  # type: ignore[union-attr]
            layer = _layer(node)
            name = self._unique(f"{layer}.{op}" if layer else op)
            self._nodes.append(
                Node(
                    name,
                    "aten",
                    tuple(inputs),
                    attrs,
                    params,
                    shape_of(value),
                    layer,
                    _source(node),
                )
            )
            self._held[node] = name
        else:  # several results: one node each, made when a result is read
            self._parts[node] = []
            for index, part in enumerate(value):
                name = self._unique(f"{_layer(node)}.{node.name}.{index}".lstrip("."))
                own = {**attrs, "item": index}
                self._nodes.append(
                    Node(
                        name,
                        "aten",
                        tuple(inputs),
                        own,
                        params,
                        shape_of(part),
                        _layer(node),
                        _source(node),
                    )
                )
                self._parts[node].append(name)

    # -- small pieces -------------------------------------------------------------------------

    def hold(self, node: fx.Node, tensor: str) -> None:
        """Say that the value of ``node`` is in ``tensor``."""
        self._held[node] = tensor

    def hold_parts(self, node: fx.Node, tensors: list[str]) -> None:
        """Say that the values of ``node`` are in ``tensors``."""
        self._parts[node] = tensors

    def call_of(self, node: fx.Node) -> Call:
        """Return the arguments of ``node`` by name, defaults filled in, and the shapes."""
        schema = node.target._schema  # type: ignore[union-attr]
        names = [a.name for a in schema.arguments]
        args = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
        args.update(zip(names, node.args, strict=False))
        args.update(node.kwargs)
        shapes = {
            k: shape_of(v.meta["val"])
            for k, v in args.items()
            if isinstance(v, fx.Node) and isinstance(v.meta.get("val"), Tensor)
        }
        value = node.meta["val"]
        return Call(args, shapes, shape_of(value) if isinstance(value, Tensor) else ())

    def tensor_of(self, value: Any, reader: fx.Node) -> str:
        """Return the tensor that holds ``value``; parameters and numbers become constants."""
        if isinstance(value, int | float):
            return self.scalar(reader, float(value))
        if not isinstance(value, fx.Node):
            raise CaptureError(f"{reader.target} at {_source(reader)} takes {value!r}")
        if value in self._held:
            return self._held[value]
        if value in self._param_of:
            param = self._param_of[value]
            shape = tuple(self._params[param].shape)
            name = self._unique(param)
            self._nodes.append(
                Node(
                    name,
                    "constant",
                    (),
                    {},
                    {"value": param},
                    shape,
                    _layer(reader),
                    _source(reader),
                )
            )
            self._held[value] = name
            return name
        raise CaptureError(
            f"{reader.target} at {_source(reader)} takes a size as a tensor; shapes must be static "
            "except for the batch"
        )

    def scalar(self, reader: fx.Node, value: float) -> str:
        """Return a new constant tensor of no axes that holds ``value``."""
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


def _functional(node: fx.Node) -> str:
    """The call's ``aten.name.overload``; for an in-place form, that which returns a new tensor."""
    namespace, name, overload = str(node.target).split(".")
    if not name.endswith("_") or name.endswith("__"):
        return str(node.target)
    target = f"{namespace}.{name.rstrip('_')}.{overload}"
    if not hasattr(getattr(torch.ops.aten, name.rstrip("_"), None), overload):
        raise CaptureError(
            f"{node.target} at {_source(node)} works in place only; use an operator that returns "
            "a new tensor"
        )
    return target


def _layer(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values() if isinstance(entry[0], str)]
    paths = [p for p in paths if not p.startswith("_")]
    return paths[-1] if paths else ""


def _source(node: fx.Node) -> str:
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    ours = [f for f in frames if "/torch/" not in f[0]] or frames
    return f"{ours[-1][0].rsplit('/', 1)[-1]}:{ours[-1][1]}" if ours else "an unknown line"
