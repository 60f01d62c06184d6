"""Build a :class:`Graph` from an exported program, one ATen call at a time."""

from __future__ import annotations

import operator
from typing import Any, final

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from bitsmith.errors import CaptureError
from bitsmith.model.graph.alias import Aliases
from bitsmith.model.graph.call import Call, Lowered
from bitsmith.model.graph.carry import carry
from bitsmith.model.graph.ir import Graph, GraphInput, Node
from bitsmith.model.graph.lower import LOWERINGS
from bitsmith.model.graph.origin import layer_of, schema_of, shape_of, source_of
from bitsmith.model.graph.several import SEVERAL

__all__ = ["Builder"]

#: Words that are at home with tensors of any type.
_ANY_TYPE = {"identity", "reshape", "transpose", "slice", "embedding", "cast", "full_like", "ne"}


@final
class Builder:
    """Walks the calls of an exported program and collects nodes."""

    def __init__(self, program: ExportedProgram) -> None:
        self._program = program
        self._nodes: list[Node] = []
        self._params: dict[str, Tensor] = {}
        self._inputs: list[GraphInput] = []
        self.batches: dict[str, str] = {}  # symbolic batch size → an input that has it
        self.sizes: dict[str, tuple[str, int]] = {}  # symbolic size → an input and its axis
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
                if value.dim() and isinstance(value.shape[0], torch.SymInt):
                    self.batches.setdefault(str(value.shape[0]), name)
                for axis, size in enumerate(value.shape):
                    if isinstance(size, torch.SymInt):
                        self.sizes.setdefault(str(size), (name, axis))
                self._held[node] = name

    def _call(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        if node.target is operator.getitem and node.args[0] in self._parts:
            source, index = node.args
            assert isinstance(source, fx.Node)
            assert isinstance(index, int)
            self._held[node] = self._parts[source][index]
            self._aliases.view(node, source)
            return
        if isinstance(value, torch.SymInt | int | bool | torch.SymBool | float):
            return  # shape arithmetic: shapes are taken from the traced tensors
        if not isinstance(node.target, torch._ops.OpOverload):
            if node.target is operator.getitem:
                raise CaptureError(f"cannot follow {node.args} at {source_of(node)}")
            if value is None:
                return
            raise CaptureError(f"unexpected call {node.target} at {source_of(node)}")
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
            carry(self, node)
        else:
            self._lower(node, call, lowered)

    def _check_inplace(self, node: fx.Node, changed: fx.Node) -> None:
        """Readers of the changed tensor will see the result, readers of its views would not."""
        if any(n in self._param_of for n in self._aliases.family(changed)):
            raise CaptureError(
                f"{node.target} at {source_of(node)} changes a parameter or buffer of the model in "
                "place; a file keeps no state between calls, so compute a new tensor instead"
            )
        if late := self._aliases.read_later(node, changed):
            where = "as an output" if late.op == "output" else f"at {source_of(late)}"
            raise CaptureError(
                f"{node.target} at {source_of(node)} changes a tensor in place of which another "
                f"view is read later, {where}; use the form that returns a new tensor"
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
        if lowered.op in _ANY_TYPE:
            return True
        values = [n.meta.get("val") for n in [node, *node.all_input_nodes]]
        return all(v.dtype == torch.float32 for v in values if isinstance(v, Tensor))

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
        layer = layer_of(node)
        owned = next(iter(params.values()), "")
        base = owned.rpartition(".")[0] if owned and "constant" not in op else ""
        if base and layer and not f"{base}.".startswith(f"{layer}."):
            base = layer  # the weight belongs to another module, which shares it
        name = self._unique(base or (f"{layer}.{op}" if layer else op))
        self._nodes.append(
            Node(name, op, tuple(inputs), attrs, params, shape, layer, source_of(node))
        )
        return name

    # -- small pieces -------------------------------------------------------------------------

    def append(
        self,
        node: fx.Node,
        op: str,
        stem: str,
        inputs: list[str],
        attrs: dict[str, Any],
        params: dict[str, str],
        shape: tuple[int, ...],
    ) -> str:
        """Append a node named after the call's module and ``stem``; returns its unique name."""
        layer = layer_of(node)
        name = self._unique(f"{layer}.{stem}" if layer else stem)
        origin = source_of(node)
        self._nodes.append(Node(name, op, tuple(inputs), attrs, params, shape, layer, origin))
        return name

    def param_of(self, value: fx.Node) -> str | None:
        """Return the model's parameter or buffer that ``value`` is; None for a computed one."""
        return self._param_of.get(value)

    def hold(self, node: fx.Node, tensor: str) -> None:
        """Say that the value of ``node`` is in ``tensor``."""
        self._held[node] = tensor

    def hold_parts(self, node: fx.Node, tensors: list[str]) -> None:
        """Say that the values of ``node`` are in ``tensors``."""
        self._parts[node] = tensors

    def call_of(self, node: fx.Node) -> Call:
        """Return the arguments of ``node`` by name, defaults filled in, and the shapes."""
        schema = schema_of(node)
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
        if not isinstance(value, Tensor):
            return Call(args, shapes, ())
        kind = str(value.dtype).removeprefix("torch.")
        return Call(args, shapes, shape_of(value), _kept_axes(args, value), kind)

    def tensor_of(self, value: Any, reader: fx.Node) -> str:
        """Return the tensor that holds ``value``; parameters and numbers become constants."""
        if isinstance(value, int | float):
            return self.scalar(reader, float(value))
        if not isinstance(value, fx.Node):
            raise CaptureError(f"{reader.target} at {source_of(reader)} takes {value!r}")
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
                    layer_of(reader),
                    source_of(reader),
                )
            )
            self._held[value] = name
            return name
        raise CaptureError(
            f"{reader.target} at {source_of(reader)} takes a size as a tensor; shapes must be "
            "static except for the batch"
        )

    def scalar(self, reader: fx.Node, value: float) -> str:
        """Return a new constant tensor of no axes that holds ``value``."""
        name = self._unique(f"{layer_of(reader)}.scalar".lstrip("."))
        self._params[name] = torch.tensor(value, dtype=torch.float32)
        self._nodes.append(
            Node(name, "constant", (), {}, {"value": name}, (), layer_of(reader), source_of(reader))
        )
        return name

    def _unique(self, name: str) -> str:
        candidate, count = name, 1
        while candidate in self._names:
            count += 1
            candidate = f"{name}_{count}"
        self._names.add(candidate)
        return candidate


def _kept_axes(args: dict[str, Any], value: Tensor) -> frozenset[int]:
    """Axes whose symbolic size the first argument has at the same place."""
    source = next(iter(args.values()), None)
    before = source.meta.get("val") if isinstance(source, fx.Node) else None
    if not isinstance(before, Tensor):
        return frozenset()
    pairs = enumerate(zip(before.shape, value.shape, strict=False))
    return frozenset(i for i, (a, b) in pairs if str(a) == str(b))
