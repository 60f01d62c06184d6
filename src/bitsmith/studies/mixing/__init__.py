"""Unlike schemes for inputs and weights: what they keep, and the sums that they ask for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch

from bitsmith.algorithms.roundings.searched import Searched
from bitsmith.errors import InputError
from bitsmith.insight.evaluation import Difference, Evaluation, difference
from bitsmith.insight.exhibits import Figure, Table
from bitsmith.insight.measure import Record
from bitsmith.insight.zoo_network import ZooNetwork, published_network
from bitsmith.model.rounded import RoundedModel, input_statistics, round_inputs, round_layers
from bitsmith.numbers.calibrators import make_calibrator
from bitsmith.numbers.formats.integer import integer_format
from bitsmith.numbers.scheme import PerChannel, PerTensor, Scheme
from bitsmith.studies import Options, Setting, Study, StudyResult
from bitsmith.studies.mixing.findings import findings
from bitsmith.studies.mixing.outcomes import BITS, COMBINATIONS, Outcome
from bitsmith.studies.mixing.pictures import draw_accuracies, draw_terms
from bitsmith.studies.mixing.terms import TERMS, LayerTerms, cost, layer_terms

__all__ = ["Mixing"]

_MODEL, _DATA = "cifar-resnet20", "cifar10"
_CALIBRATOR = "mse"
#: Candidates of a range search: within 1 % of the error of 64.
_STEPS = 20
_GRANULARITIES = ("channel", "tensor")


@final
class Mixing(Study, name="mixing"):
    """Symmetric and asymmetric codes of inputs and of weights, all four combinations."""

    title = "Mixing schemes: symmetric and asymmetric inputs and weights"
    text = (
        "What the layers of ResNet-20 read and their weights get 8- or 4-bit codes, each "
        "symmetric (zero point 0) or asymmetric, in all four combinations, signed codes "
        "throughout. After a ReLU there is nothing below 0, so that symmetric inputs leave half of "
        "their codes unused. A zero point has its price: the product of two sums has four terms, "
        "of which integer kernels compute one. Look at which choice the accuracy depends on, and "
        "at which terms have to be made while the network runs."
    )
    figures = ("accuracy", "terms")
    dataset = _DATA
    settings: ClassVar[Mapping[str, Setting]] = {
        "samples": Setting(0, "test images; 0: all", 0, 1e9),
        "granularity": Setting("channel", "a scale of the weights for each: channel or tensor"),
    }

    def measure(self, options: Options) -> StudyResult:
        granularity = str(options.settings["granularity"])
        if granularity not in _GRANULARITIES:
            raise InputError(f"granularity is channel or tensor, not {granularity!r}")
        network, skipped = published_network(
            _MODEL, options.dataset, _DATA, quick=options.quick, seed=options.seed,
            stage=options.stage,
        )  # fmt: skip
        work = _Work.of(network, granularity, options)
        plain, found = _outcomes(work, options)
        layer = _shown(found)
        figures = [
            Figure(
                "accuracy",
                "Difference to float by combination, in points",
                "Paired on the same test images, with 95 % intervals. A hollow mark: not "
                "distinguishable from float. A triangle: further below than the axis reaches, with "
                "its number above.",
                lambda canvas: draw_accuracies(canvas, found),
                size=(7.4, 2.9),
            ),
            Figure(
                "terms",
                f"The four sums of {layer}, 8 bits",
                "Mean size of each term over output values, in steps of the product of the two "
                "scales (logarithmic); a term that is not there has no bar. Grey: what remains "
                "when they are added up.",
                lambda canvas: draw_terms(canvas, found, layer),
                size=(7.4, 2.8),
            ),
        ]
        tables = [_accuracies(plain, found, work), _costs(found)]
        records = list(_records(network, plain, found, granularity))
        return StudyResult(tables, figures, records, findings(plain, found), skipped)


@final
@dataclass(frozen=True, eq=False)
class _Work:
    """What is measured: network, granularity of the weights, samples."""

    network: ZooNetwork
    granularity: str
    judged: int | None
    images: int
    exact: int

    @classmethod
    def of(cls, network: ZooNetwork, granularity: str, options: Options) -> _Work:
        judged = int(options.settings["samples"]) or None
        if options.quick:
            return cls(network, granularity, min(judged or 60, 60), 64, 1)
        return cls(network, granularity, judged, 256, 8)


def _outcomes(work: _Work, options: Options) -> tuple[Evaluation, list[Outcome]]:
    """Return what the float network gives, and every width and combination."""
    network, graph = work.network, work.network.graph()
    calibrator = make_calibrator(_CALIBRATOR)
    statistics = input_statistics(graph, calibrator, network.calibration(work.images, options.seed))
    plain = network.judge("float32", "float", network.module, work.judged)
    granularity = PerChannel(0) if work.granularity == "channel" else PerTensor()
    x = torch.cat([x for x, _ in network.calibration(work.exact, options.seed)])
    found = []
    with options.stage("combinations", len(BITS) * len(COMBINATIONS)) as advance:
        for bits in BITS:
            number = integer_format(bits, signed=True)
            rounded = {
                kind: round_layers(
                    graph, Scheme(number, kind == "symmetric", granularity), Searched(_STEPS)
                )
                for kind in ("symmetric", "asymmetric")
            }
            for inputs, weights in COMBINATIONS:
                scheme = Scheme(number, inputs == "symmetric")
                layers = round_inputs(graph, rounded[weights], scheme, calibrator, statistics)
                name = f"{bits} {inputs} {weights}"
                judged = network.judge(name, "ptq", RoundedModel(graph, layers), work.judged)
                terms, price = layer_terms(graph, layers, x), cost(graph, layers)
                against = difference(judged, plain)
                found.append(Outcome(bits, inputs, weights, judged, against, terms, price))
                advance(1)
    return plain, found


def _shown(found: Sequence[Outcome]) -> str:
    """Return the layer in the middle of the network, whose terms are drawn."""
    names = [t.layer for t in found[0].terms]
    return names[len(names) // 2]


def _accuracies(plain: Evaluation, found: Sequence[Outcome], work: _Work) -> Table:
    low, high = plain.interval or (0.0, 0.0)
    rows = [["32", "float", "float", f"{plain.accuracy:.2f}", f"{low:.2f} to {high:.2f}", "–", "–"]]
    for o in found:
        low, high = o.evaluation.interval or (0.0, 0.0)
        rows.append(
            [
                str(o.bits), o.inputs, o.weights, f"{o.evaluation.accuracy:.2f}",
                f"{low:.2f} to {high:.2f}", f"{o.against.delta:+.2f}", _between(o.against),
            ]
        )  # fmt: skip
    columns = [">bits", "inputs", "weights", ">accuracy, %", ">95 % interval", ">less float"]
    note = (
        f"{plain.n:,} test images. Weights: one scale for each {work.granularity}, the range of "
        f"least squared error; inputs: one range each, calibrator {_CALIBRATOR}, from "
        f"{work.images} training images. Sums in float: a simulation."
    )
    columns.append(">95 % interval, paired")
    return Table("Accuracy by combination", columns, rows, note)


def _between(d: Difference) -> str:
    return f"{d.low:+.2f} to {d.high:+.2f}"


def _costs(found: Sequence[Outcome]) -> Table:
    rows = []
    for o in found:
        terms = ["Σ qx·qw"]
        terms += ["zw·Σ qx"] if o.weights == "asymmetric" else []
        terms += ["zx·Σ qw"] if o.inputs == "asymmetric" else []
        terms += ["K·zx·zw"] if len(terms) == 3 else []
        worst = max(t.difference for t in o.terms)
        rows.append(
            [
                str(o.bits), o.inputs, o.weights, " − ".join(terms[:3]) + _last(terms),
                f"{o.cost.run_time:,}", f"{o.cost.share:.2f} %", f"{o.cost.constants:,}",
                f"{worst:g}",
            ]
        )  # fmt: skip
    columns = [">bits", "inputs", "weights", "terms", ">operations per image at run time"]
    columns += [">of the products", ">constants in biases", ">largest difference of the sums"]
    note = (
        f"{found[0].cost.macs:,} products an image. zw·Σ qx: K additions for each position, and a "
        "product and a subtraction for each output; it depends on the image. zx·Σ qw and K·zx·zw "
        "do not: they are added to the biases once. The last column compares the terms, added up "
        "in whole numbers, with Σ (qx − zx)(qw − zw) in every layer. Unsigned codes would have "
        "zx = 0 after a ReLU, and no constants there."
    )
    return Table("The terms of integer arithmetic", columns, rows, note)


def _last(terms: list[str]) -> str:
    return f" + {terms[3]}" if len(terms) > 3 else ""


def _records(
    network: ZooNetwork, plain: Evaluation, found: Sequence[Outcome], granularity: str
) -> Iterator[Record]:
    keys: dict[str, Any] = {
        "model": network.name, "dataset": network.test.dataset, "split": network.test.name,
        "data_sha256": network.test.sha256, "n": plain.n,
    }  # fmt: skip
    yield Record(method="float", metric="accuracy", value=plain.accuracy, **keys)
    for o in found:
        own = {
            **keys, "method": "ptq", "weight_bits": o.bits, "activation_bits": o.bits,
            "granularity": f"per-{granularity}", "calibrator": _CALIBRATOR,
            "algorithm": "searched", "op": f"{o.inputs} inputs, {o.weights} weights",
        }  # fmt: skip
        d = o.against
        yield Record(
            metric="accuracy", value=o.evaluation.accuracy, delta=d.delta, delta_low=d.low,
            delta_high=d.high, reference=plain.accuracy, **own,
        )  # fmt: skip
        yield Record(metric="run_time_operations", value=float(o.cost.run_time), **own)
        for t in o.terms:
            yield from _sizes(t, own)


def _sizes(terms: LayerTerms, own: dict[str, Any]) -> Iterator[Record]:
    for name in TERMS:
        keys = {**own, "layer": terms.layer, "cause": name}
        yield Record(metric="mean_absolute_sum", value=terms.sizes[name], **keys)
