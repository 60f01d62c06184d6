"""Weights that take few values: tables by k-means, their files, and int8 that keeps them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, final

from bitsmith.insight.evaluation import Difference, Evaluation
from bitsmith.insight.exhibits import Figure, Table
from bitsmith.insight.measure import Record
from bitsmith.insight.zoo_network import ZooNetwork, published_network
from bitsmith.studies import Options, Setting, Study, StudyResult
from bitsmith.studies.clustering.clusters import Form, forms
from bitsmith.studies.clustering.entries import Codebook, Sizes, codebooks, float_size
from bitsmith.studies.clustering.findings import findings
from bitsmith.studies.clustering.pictures import draw_codes, draw_distinct, draw_entries
from bitsmith.studies.clustering.signs import without_negative_factors

__all__ = ["Clustering"]

_MODEL, _DATA = "cifar-resnet20", "cifar10"
_WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8)
_QUICK_WIDTHS = (4,)
_WAYS = {"plain": "k-means", "weighted": "k-means, weighted by inputs"}


@final
class Clustering(Study, name="clustering"):
    """Learned tables of values for the weights of a network."""

    title = "Clustering: weights in tables of 2 to 256 values"
    text = (
        "The weights of every layer of ResNet-20 are clustered by k-means into a table of 2 to "
        "256 float16 values, one table a layer, activations in float: once each error counts "
        "alike, once as much as the mean square of the input that the weight meets. Accuracy, and "
        "files: indices packed, the same through LZMA, and Huffman coded. Then the clustered "
        "network goes to int8. Batch norms are folded into the layers before them and every "
        "output channel has a scale of its own, so that equal weights of two channels get unlike "
        "codes: look at how many values are left of the clusters, and at what keeping them takes."
    )
    figures = ("entries", "distinct", "codes")
    dataset = _DATA
    settings: ClassVar[Mapping[str, Setting]] = {
        "bits": Setting(4, "of an index, where the clustered network goes to int8", 1, 7),
        "samples": Setting(0, "test images; 0: all", 0, 1e9),
        "epochs": Setting(4, "of the finetuning", 1, 100),
    }

    def measure(self, options: Options) -> StudyResult:
        network, skipped = published_network(
            _MODEL, options.dataset, _DATA, quick=options.quick, seed=options.seed,
            stage=options.stage,
        )  # fmt: skip
        bits, effort = int(options.settings["bits"]), _effort(options)
        widths = _QUICK_WIDTHS if options.quick else _WIDTHS
        widths = tuple(sorted({*widths, bits}))
        data = [x for x, _ in network.calibration(effort["weighing"], options.seed)]
        plain = network.judge("float32", "float", network.module, effort["judged"])
        x = next(iter(network.calibration(8, options.seed)))[0]
        same = replace(network, module=without_negative_factors(network.module, x))
        with options.stage("tables", 2 * len(widths)) as advance:
            tables = list(codebooks(same, plain, data, widths, effort["judged"], advance))
        chosen = next(t for t in reversed(tables) if t.bits == bits)
        made = forms(same, chosen.model, bits, plain, effort, options)
        whole = float_size(network.module)
        return StudyResult(
            [
                _entry_table(plain, tables, whole, effort),
                _form_table(made, chosen, effort),
                _layer_table(made),
            ],
            _figures(plain, tables, made, whole),
            list(_records(network, plain, tables, made)),
            findings(plain, tables, chosen, made, whole),
            skipped,
        )


def _effort(options: Options) -> dict[str, Any]:
    judged = int(options.settings["samples"]) or None
    epochs = int(options.settings["epochs"])
    if options.quick:
        judged = min(judged or 100, 100)
        return {"judged": judged, "images": 64, "weighing": 32, "epochs": 1, "samples": 64}
    return {"judged": judged, "images": 256, "weighing": 128, "epochs": epochs, "samples": None}


def _figures(
    plain: Evaluation, tables: Sequence[Codebook], made: Sequence[Form], whole: Sizes
) -> list[Figure]:
    middle = made[0].layers[len(made[0].layers) // 2].layer
    return [
        Figure(
            "entries",
            "Accuracy and bytes by the entries of a table",
            "Left: the difference to float with its paired 95 % interval, to scale up to 2 points, "
            "beyond by its logarithm. Right: files on disk, of the weighted tables where there are "
            "two.",
            lambda canvas: draw_entries(canvas, tables, whole),
            size=(7.4, 3.2),
        ),
        Figure(
            "distinct",
            "Distinct values in each layer, before and after int8",
            "Of the clustered weights, and of the int8 codes that they become (logarithmic).",
            lambda canvas: draw_distinct(canvas, made),
            size=(7.4, 0.9 + 0.17 * max(8, len(made[0].layers))),
        ),
        Figure(
            "codes",
            f"The int8 codes of {middle}",
            "How many weights have each code. Plainly, the scales of the channels spread each "
            "cluster over many codes; kept, every code is an entry of a table.",
            lambda canvas: draw_codes(canvas, made, middle),
            size=(7.4, 3.4),
        ),
    ]


def _accuracy(e: Evaluation, d: Difference) -> list[str]:
    low, high = e.interval or (0.0, 0.0)
    return [
        f"{e.accuracy:.2f}", f"{low:.2f} to {high:.2f}", f"{d.delta:+.2f}",
        f"{d.low:+.2f} to {d.high:+.2f}",
    ]  # fmt: skip


_JUDGED = (">accuracy, %", ">95 % interval", ">less float", ">95 % interval, paired")


def _entry_table(
    plain: Evaluation, tables: Sequence[Codebook], whole: Sizes, effort: dict[str, Any]
) -> Table:
    low, high = plain.interval or (0.0, 0.0)
    rows = [
        [
            "–", "float32", f"{whole.packed:,}", f"{whole.squeezed:,}", "–",
            f"{plain.accuracy:.2f}", f"{low:.2f} to {high:.2f}", "–", "–",
        ]
    ]  # fmt: skip
    rows += [
        [
            str(t.entries), _WAYS[t.way], f"{t.sizes.packed:,}", f"{t.sizes.squeezed:,}",
            f"{t.sizes.coded:,}", *_accuracy(t.evaluation, t.against),
        ]
        for t in tables
    ]  # fmt: skip
    columns = [
        ">entries",
        "tables by",
        ">bytes packed",
        ">through LZMA",
        ">Huffman coded",
        *_JUDGED,
    ]
    note = (
        f"{plain.n:,} test images. One table a layer, float16 entries; batch norms and biases stay "
        "float32, activations float. Bytes are those of files on disk, with all that is needed to "
        f"read them. Weighted by the inputs of {effort['weighing']} training images, up to 32 "
        "entries. No training."
    )
    return Table("Tables of every size", columns, rows, note)


def _form_table(made: Sequence[Form], chosen: Codebook, effort: dict[str, Any]) -> Table:
    first = chosen.evaluation
    rows = [
        [
            f"{chosen.entries} entries", f"{chosen.entries}", "100.0",
            f"{chosen.sizes.packed:,}", f"{chosen.sizes.squeezed:,}",
            *_accuracy(first, chosen.against),
        ]
    ]  # fmt: skip
    for form in made:
        counts = [layer.after for layer in form.layers]
        total = sum(layer.codes.numel() for layer in form.layers)
        kept = sum(layer.kept * layer.codes.numel() for layer in form.layers) / total
        spread = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{counts[0]}"
        rows.append(
            [
                form.name, spread, f"{kept:.1f}", f"{form.packed:,}",
                f"{form.squeezed:,}", *_accuracy(form.evaluation, form.against),
            ]
        )  # fmt: skip
    columns = ["network", ">distinct values in a layer", ">weights with their cluster, %"]
    columns += [">bytes packed", ">through LZMA", *_JUDGED]
    note = (
        "Differences are to the float network before clustering. Weights with their cluster: those "
        "that have the code that most of their cluster have. First row: float activations; the "
        "others have int8 weights and activations, "
        "computed in integers as ONNX Runtime does; bytes of the ONNX file. Clusters kept: codes "
        f"from a table for each layer, a scale for each channel; finetuned for {effort['epochs']} "
        f"epoch{'s' * (effort['epochs'] > 1)} after the float network, without labels, tables kept."
    )
    return Table("The clustered network in int8", columns, rows, note)


def _layer_table(made: Sequence[Form]) -> Table:
    rows = [
        [one[0].layer, f"{one[0].codes.numel():,}", str(one[0].before)]
        + [f"{layer.after}" for layer in one]
        for one in zip(*(form.layers for form in made), strict=True)
    ]
    columns = ["layer", ">weights", ">clustered", *(f">{form.name}" for form in made)]
    return Table("Distinct values by layer", columns, rows)


def _records(
    network: ZooNetwork, plain: Evaluation, tables: Sequence[Codebook], made: Sequence[Form]
) -> Iterator[Record]:
    keys: dict[str, Any] = {
        "model": network.name, "dataset": network.test.dataset, "split": network.test.name,
        "data_sha256": network.test.sha256, "metric": "accuracy", "n": plain.n,
    }  # fmt: skip
    yield Record(method="float", value=plain.accuracy, **keys)
    weights = {layer.layer: layer.codes.numel() for layer in made[0].layers}
    for t in tables:
        own = {**keys, "weight_bits": t.bits, "activation_bits": 32, "granularity": "per-tensor"}
        own |= {"algorithm": f"kmeans {t.way}", "method": "codebook", **_less(t.against, plain)}
        for op, size in vars(t.sizes).items():
            yield Record(value=t.evaluation.accuracy, bytes=size, op=op, **own)
    for form in made:
        own = {**keys, "weight_bits": 8, "activation_bits": 8, "method": form.method}
        own |= {"algorithm": form.name}
        yield Record(
            value=form.evaluation.accuracy, bytes=form.packed, **_less(form.against, plain), **own
        )
        own |= {"metric": "distinct_values"}
        for layer in form.layers:
            own |= {"layer": layer.layer, "n": weights[layer.layer]}
            yield Record(value=float(layer.after), reference=float(layer.before), **own)


def _less(d: Difference, plain: Evaluation) -> dict[str, Any]:
    return {
        "delta": d.delta, "delta_low": d.low, "delta_high": d.high, "reference": plain.accuracy
    }  # fmt: skip
