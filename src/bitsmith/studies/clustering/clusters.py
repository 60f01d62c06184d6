"""What int8 makes of clustered weights: plainly, with tables kept, and finetuned."""

from __future__ import annotations

import copy
import lzma
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from bitsmith.data import TrainingBatches
from bitsmith.deploy.export import export
from bitsmith.insight.evaluation import Difference, Evaluation, difference
from bitsmith.insight.zoo_network import ZooNetwork
from bitsmith.model.convert import layer_of, least_scale
from bitsmith.model.graph import capture, simplify
from bitsmith.model.presets import make_recipe
from bitsmith.model.ptq import quantize_graph
from bitsmith.model.qat import fit
from bitsmith.model.qat.trainable import TrainableModel
from bitsmith.model.quantized import QuantizedModel
from bitsmith.model.simulate import Program
from bitsmith.model.store.survey import survey
from bitsmith.model.targets import make_target
from bitsmith.model.trained import trained_once
from bitsmith.numbers.qtensor import QTensor
from bitsmith.studies import Options

__all__ = ["FORMS", "Form", "LayerCodes", "forms", "keep_clusters", "layer_codes"]

#: Names of what becomes of a clustered network.
FORMS = ("plain int8", "clusters kept", "clusters kept, finetuned")
_BATCH = 64
_TUNED = "ptq+finetune"


@final
@dataclass(frozen=True, eq=False)
class LayerCodes:
    """The codes of one layer.

    Attributes:
        layer: its name.
        before: distinct values of the clustered weight.
        codes: int8, as they are stored.
        kept: share of the weights that have the code that most of their cluster have, in per cent.
    """

    layer: str
    before: int
    codes: Tensor
    kept: float

    @property
    def after(self) -> int:
        """Distinct codes."""
        return len(torch.unique(self.codes))


@final
@dataclass(frozen=True, eq=False)
class Form:
    """A clustered network in integers.

    Attributes:
        name: one of :data:`FORMS`.
        method: ``ptq``, ``codebook`` or ``ptq+finetune``.
        evaluation: what it got right.
        against: the same less the float network (not clustered), paired.
        layers: the codes of each layer.
        packed, squeezed: bytes of the ONNX file, and of that through LZMA.
    """

    name: str
    method: str
    evaluation: Evaluation
    against: Difference
    layers: tuple[LayerCodes, ...]
    packed: int
    squeezed: int


def forms(
    network: ZooNetwork,
    packed: nn.Module,
    bits: int,
    plain: Evaluation,
    effort: Mapping[str, Any],
    options: Options,
) -> list[Form]:
    """Return the clustered network in integers, in each form.

    Args:
        network: the float network.
        packed: the same with tables of ``2^bits`` entries, of :func:`clustered`.
        bits: of an index.
        plain: what the float network gets right.
        effort: ``images`` that calibrate, ``judged`` ones, ``epochs`` and ``samples`` of the
            finetuning.
        options: seed and progress.
    """
    weights = {name: w.dequantize() for name, w in survey(packed).weights.items()}
    module = copy.deepcopy(network.module)
    with torch.no_grad():
        for name, value in weights.items():
            module.get_parameter(name).copy_(value)
    graph = simplify(capture(module, [network.example]))
    data = network.calibration(effort["images"], options.seed)
    spread = quantize_graph(graph, make_recipe("W8A8"), data)
    kept = keep_clusters(spread, weights, bits)
    made = (spread, "ptq"), (kept, "codebook"), (_finetuned(kept, network, effort, options), _TUNED)
    return [
        _form(name, method, model, weights, network, plain, effort)
        for name, (model, method) in zip(FORMS, made, strict=True)
    ]


def keep_clusters(
    model: QuantizedModel, weights: Mapping[str, Tensor], bits: int
) -> QuantizedModel:
    """Return a network in integers whose codes are the entries of the clusters' tables.

    The values of a layer's clusters, as shares of the largest, become the entries of an int8
    table. What batch norms multiply a channel with goes into its scale, so that equal weights have
    equal codes; a channel that is multiplied with a negative number takes the nearest entries (see
    :mod:`bitsmith.studies.clustering.signs`).

    Args:
        model: the same in plain int8, with its float weights, batch norms folded.
        weights: name of a parameter → clustered values, before the folding.
        bits: of an index.

    Raises:
        WeightsError: a layer has more values than ``2^bits``.
    """
    program, layers = model.program, dict(model.program.layers)
    target = make_target(model.target, model.machine)
    for node in program.graph:
        value = weights.get(f"{node.layer}.weight")
        if node.name not in layers or value is None:
            continue
        folded, x = program.graph.param(node, "weight"), program.encodings[node.inputs[0]]
        bias, old = program.graph.param(node, "bias"), layers[node.name]
        assert folded is not None
        entries = torch.unique(value).double()
        unit = entries.abs().max() / target.entry_limit(node, folded, x.format.bits)
        table = torch.unique((entries / unit).round()) if unit > 0 else torch.zeros(1).double()
        rows, plain = folded.double().flatten(1), value.double().flatten(1)
        factor = (rows * plain).sum(1) / plain.square().sum(1).clamp(min=1e-30)
        scheme = old.weight.scheme
        least = least_scale(folded, bias, x, scheme).double().reshape(-1)
        scale = torch.maximum(factor.abs() * unit, least)
        scale = torch.where(scale > 0, scale, old.weight.scale.double().reshape(-1)).float()
        share = rows / scale.double()[:, None]
        codes = table[torch.bucketize(share, (table[1:] + table[:-1]) / 2, right=True)]
        error = float((codes * scale.double()[:, None] - rows).square().mean())
        q = QTensor(
            codes.to(torch.int8).reshape(folded.shape),
            scale.reshape(old.weight.scale.shape),
            old.weight.zero_point,
            None,
            scheme,
        )
        layers[node.name] = layer_of(node, q, bias, x, error, error, table_bits=bits)
    kept = Program(program.graph, program.outcomes, program.encodings, layers)
    recipe = make_recipe(f"CODEBOOK{bits}A8")
    return QuantizedModel(kept, recipe, model.target, model.machine, dict(model.provenance))


def _finetuned(
    model: QuantizedModel, network: ZooNetwork, effort: Mapping[str, Any], options: Options
) -> QuantizedModel:
    """Return the integers after training on them, the float network as the teacher.

    Training starts from the float weights, not from the entries that they were clustered to: a
    weight between two clusters has a short way to the other one. One whose cluster is not the
    nearest starts inside the edge of its cluster.
    """
    graph = simplify(capture(network.module, [network.example]))
    program = replace(model.program, graph=replace(model.program.graph, params=graph.params))
    trainable = TrainableModel(
        QuantizedModel(program, model.recipe, model.target, model.machine, model.provenance),
        learn_edges=True,
    )
    samples = effort["samples"]
    batches = TrainingBatches(
        network.train, _BATCH, seed=options.seed, labelled=False,
        limit=None if samples is None else min(samples, network.train.n),
    )  # fmt: skip
    decides = {
        "data": network.train.sha256, "teacher": network.weights, "start": "float weights",
        "samples": samples,
        "epochs": effort["epochs"], "batch": _BATCH, "seed": options.seed,
    }  # fmt: skip
    steps = effort["epochs"] * len(batches)

    def train() -> None:
        with options.stage("finetuning with clusters kept", steps) as advance:
            fit(
                trainable, batches, epochs=effort["epochs"], teacher=network.module,
                seed=options.seed, on_step=lambda _: advance(1), progress=False,
            )  # fmt: skip

    trained_once(f"clustering-{network.name}", trainable, decides, train)
    return trainable.converted()


def _form(
    name: str,
    method: str,
    model: QuantizedModel,
    weights: Mapping[str, Tensor],
    network: ZooNetwork,
    plain: Evaluation,
    effort: Mapping[str, Any],
) -> Form:
    judged = network.judge(name, method, model, effort["judged"])
    with tempfile.TemporaryDirectory() as folder:
        path = export(model, Path(folder) / "model.onnx", weights="packed")
        content = path.read_bytes()
    squeezed = len(lzma.compress(content))
    layers = tuple(layer_codes(model, weights))
    return Form(name, method, judged, difference(judged, plain), layers, len(content), squeezed)


def layer_codes(model: QuantizedModel, weights: Mapping[str, Tensor]) -> list[LayerCodes]:
    """Return the codes of every layer beside the clusters that its weight had.

    Args:
        model: in integers.
        weights: name of a parameter, ``layer1.0.conv1.weight`` → clustered values.
    """
    found = []
    for node in model.program.graph:
        layer, value = model.program.layers.get(node.name), weights.get(f"{node.layer}.weight")
        if layer is None or value is None:
            continue
        codes = layer.weight.codes.reshape(-1)
        values, cluster = torch.unique(value.reshape(-1), return_inverse=True)
        joint = torch.bincount(cluster * 256 + codes.long() + 128, minlength=256 * len(values))
        most = joint.reshape(len(values), 256).amax(1)
        kept = 100 * float(most.sum()) / codes.numel()
        found.append(LayerCodes(node.name, len(values), codes, kept))
    return found
