"""Which layer the bits are missed in: one at a time, and all up to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, final

from bitsmith.algorithms.roundings.searched import Searched
from bitsmith.errors import InputError
from bitsmith.insight.exhibits import Figure, Table
from bitsmith.insight.measure import Record, wilson_interval
from bitsmith.insight.zoo_network import ZooNetwork, published_network
from bitsmith.model.rounded import input_statistics, round_inputs, round_layers
from bitsmith.numbers.calibrators import make_calibrator
from bitsmith.numbers.formats.integer import integer_format
from bitsmith.numbers.scheme import PerChannel, Scheme
from bitsmith.studies import Options, Setting, Study, StudyResult
from bitsmith.studies.sensitivity.findings import findings
from bitsmith.studies.sensitivity.layers import Effect, Sensitivity, sensitivity
from bitsmith.studies.sensitivity.pictures import draw_layers, layers_size

__all__ = ["LayerSensitivity"]

_MODEL, _DATA = "cifar-resnet20", "cifar10"
_FLOAT = 32
_CALIBRATOR = "mse"
#: Candidates of a range search: within 1 % of the error of 64.
_STEPS = 20
#: Of images that are held at once, with every value of the network.
_BATCH = 50


@final
class LayerSensitivity(Study, name="sensitivity"):
    """What each layer of a network costs when its numbers are few."""

    title = "Sensitivity: one layer at a time, the rest in float"
    text = (
        "Each convolution and linear layer of ResNet-20 is rounded to few bits, weights (one "
        "scale an output channel, the range of least squared error) and what it reads (one "
        "calibrated range), first alone, while the rest stays float, then together with all "
        "layers before it. For each: accuracy, the error of its own output and that of the "
        "logits. Look at whether a few layers carry the loss, which could then keep more bits, "
        "and at whether errors add up on the way."
    )
    figures = ("layers",)
    dataset = _DATA
    settings: ClassVar[Mapping[str, Setting]] = {
        "bits": Setting(4, "of the weights", 2, 8),
        "activations": Setting(4, "bits of what a layer reads; 32: float", 2, _FLOAT),
        "samples": Setting(2000, "test images", 50, 1e7),
    }

    def measure(self, options: Options) -> StudyResult:
        bits, width = int(options.settings["bits"]), int(options.settings["activations"])
        if 8 < width < _FLOAT:
            raise InputError(f"activations have 2 to 8 bits, or 32 for float, not {width}")
        network, skipped = published_network(
            _MODEL, options.dataset, _DATA, quick=options.quick, seed=options.seed,
            stage=options.stage,
        )  # fmt: skip
        count = min(60 if options.quick else int(options.settings["samples"]), network.test.n)
        images = 64 if options.quick else 256
        found = _measured(network, bits, width, count, images, options)
        what = f"{bits} bits" + (f" (reading {width})" if width != _FLOAT else " (weights only)")
        figure = Figure(
            "layers",
            "What each layer costs, alone and with all before it",
            f"Layers at {what}, from input to output. Whiskers: paired 95 % intervals of the "
            "difference to float; a hollow mark: not distinguishable. Right: signal-to-noise ratio "
            "of the layer's output; more is better.",
            lambda canvas: draw_layers(canvas, found),
            size=layers_size(found),
        )
        records = list(_records(network, found, bits, width))
        return StudyResult(
            [_table(found, what, images)], [figure], records, findings(found, what), skipped
        )


def _measured(
    network: ZooNetwork, bits: int, width: int, count: int, images: int, options: Options
) -> Sensitivity:
    graph = network.graph()
    calibrator = make_calibrator(_CALIBRATOR)
    granular = Scheme(integer_format(bits, signed=True), granularity=PerChannel(0))
    layers = round_layers(graph, granular, Searched(_STEPS))
    if width != _FLOAT:
        inputs = Scheme(integer_format(width, signed=False), symmetric=False)
        data = network.calibration(images, options.seed)
        statistics = input_statistics(graph, calibrator, data)
        layers = round_inputs(graph, layers, inputs, calibrator, statistics)
    batches: Any = network.test.batches(_BATCH, limit=count)
    with options.stage("layers, alone and together", count) as advance:
        return sensitivity(graph, layers, batches, advance)


def _table(found: Sensitivity, what: str, images: int) -> Table:
    rows = []
    for e in found.layers:
        row = [e.layer, f"{e.weights:,}"]
        for effect in (e.isolated, e.cumulative):
            row += [f"{effect.output:.1f}", f"{effect.logits:.1f}", f"{effect.accuracy:.2f}"]
            row += [f"{effect.delta:+.2f} [{effect.low:+.2f}, {effect.high:+.2f}]"]
        rows.append(row)
    columns = ["layer", ">weights"]
    for how in ("alone", "with all before"):
        columns += [f">{how}: SQNR of its output, dB", ">of the logits, dB", ">accuracy, %"]
        columns += [">less float [95 %]"]
    n, right = len(found.right), int(found.right.sum())
    low, high = wilson_interval(right, n)
    note = (
        f"{n:,} test images; float {100 * right / n:.2f} % [{low:.2f}, {high:.2f}]. Differences "
        f"are paired. Ranges from {images} training images. Sums in float: a simulation. With "
        f"{len(found.layers)} intervals at 95 %, about one would leave out 0 by chance."
    )
    return Table(f"Layers at {what}", columns, rows, note)


def _records(network: ZooNetwork, found: Sensitivity, bits: int, width: int) -> Iterator[Record]:
    keys: dict[str, Any] = {
        "model": network.name, "dataset": network.test.dataset, "split": network.test.name,
        "data_sha256": network.test.sha256, "n": len(found.right),
    }  # fmt: skip
    plain = 100 * float(found.right.double().mean())
    yield Record(method="float", metric="accuracy", value=plain, **keys)
    keys |= {"method": "ptq", "weight_bits": bits, "activation_bits": width}
    keys |= {"granularity": "per-channel", "calibrator": _CALIBRATOR, "algorithm": "searched"}
    for e in found.layers:
        for isolated, effect in ((True, e.isolated), (False, e.cumulative)):
            own = {**keys, "layer": e.layer, "isolated": isolated}
            yield Record(metric="accuracy", value=effect.accuracy, **_less(effect, plain), **own)
            yield Record(metric="sqnr", value=effect.output, op=e.op, **own)
            yield Record(metric="sqnr", value=effect.logits, op="logits", **own)


def _less(effect: Effect, plain: float) -> dict[str, Any]:
    return {
        "delta": effect.delta, "delta_low": effect.low, "delta_high": effect.high,
        "reference": plain,
    }  # fmt: skip
