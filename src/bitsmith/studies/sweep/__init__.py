"""Every combination that one asks for, side by side, and what each costs and keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar, final

from bitsmith.errors import InputError
from bitsmith.insight.cells import Cell, default_memory, default_processes, run_cells
from bitsmith.insight.exhibits import Figure, Table
from bitsmith.insight.measure import Record
from bitsmith.insight.zoo_network import ZooNetwork, published_network, zoo_network
from bitsmith.studies import Options, Setting, Study, StudyResult
from bitsmith.studies.sweep.findings import findings
from bitsmith.studies.sweep.outcomes import Choice, Outcome, choices, outcomes
from bitsmith.studies.sweep.pictures import draw_front, draw_map, map_size
from bitsmith.studies.sweep.variants import AXES, FLOAT, Variant, chosen_variants
from bitsmith.studies.sweep.work import Effort, measure

__all__ = ["Sweep"]

_MODEL = AXES["model"]
_DATA = "cifar10"
"""Unless told otherwise; a network that is for other data has its own then."""
_TRAINS = ("ptq+finetune", "qat")
#: GB that a process takes at most, as measured on ResNet-20, and how long it is at it.
_COSTS = {"float": (0.8, 1.0), "ptq": (1.0, 2.0), "codebook": (1.0, 2.0)}
_TRAINING_COSTS = (1.8, 8.0)
_LIST = "commas between; empty: the default sweep"


@final
class Sweep(Study, name="sweep"):
    """Accuracy against bytes for any choice of widths, schemes and methods."""

    title = "A sweep: widths, schemes, calibrators and methods side by side"
    text = (
        "A network is quantized in many ways and judged on the same test samples: bits of weights "
        "and activations, symmetric and asymmetric codes, one scale a tensor, a channel or a "
        "group, calibrators, algorithms, and four methods: after training (PTQ), finetuned after "
        "the float network without labels, trained with labels (QAT), and codebooks. Each way "
        "runs in a process beside the others, is kept as it ends, and is not measured twice. What "
        "cannot be is listed with the reason. Look at the front in the first figure: what lies on "
        "it is beaten by nothing that is smaller."
    )
    figures = ("front", "map")
    dataset = _DATA
    settings: ClassVar[Mapping[str, Setting]] = {
        "model": Setting("", f"networks of the zoo; empty: {_MODEL}"),
        "method": Setting("", f"ptq, ptq+finetune, qat, codebook; {_LIST}"),
        "bits": Setting("", f"of weights, 1 to 8; {_LIST}"),
        "activations": Setting("", f"their bits, 2 to 8, or 32 for float; {_LIST}"),
        "scheme": Setting("", f"symmetric, asymmetric; {_LIST}"),
        "granularity": Setting("", f"tensor, channel, group<size>; {_LIST}"),
        "calibrator": Setting("", f"of activations, mse, minmax, percentile:99.9; {_LIST}"),
        "algorithm": Setting("", f"auto, nearest, gptq+bias, nearest+equalize; {_LIST}"),
        "samples": Setting(5000, "test samples; 0: all", 0, 1e9),
        "finetune": Setting(2, "epochs of ptq+finetune", 1, 1000),
        "qat": Setting(3, "epochs of qat", 1, 1000),
        "processes": Setting(0, "side by side; 0: as many as cores", 0, 1024),
        "memory": Setting(0.0, "GB that they may take; 0: 70 % of what is free", 0, 1e6),
    }

    def measure(self, options: Options) -> StudyResult:
        given = {axis: str(options.settings[axis]) for axis in AXES}
        variants = chosen_variants(given, _MODEL, quick=options.quick)
        networks, skipped = _networks(variants, given, options)
        if skipped:
            variants = [_instead(v, networks) for v in variants]
        effort = _effort(options)
        cells = [_cell(v, networks[v.model], effort, options) for v in variants]
        processes = int(options.settings["processes"]) or default_processes()
        with options.stage("variants", len(cells)) as advance:
            answers = run_cells(
                "sweep", cells, measure, advance=advance,
                processes=1 if options.quick and not options.settings["processes"] else processes,
                memory=float(options.settings["memory"]) or default_memory(),
            )  # fmt: skip
        found, refused = outcomes(variants, answers)
        for variant, reason in refused:
            if variant.method == "float":
                raise InputError(f"there is nothing to compare with: {variant.model} {reason}")
        pairs = choices(found)
        tables = [_table(found, effort)]
        tables += [_choice_table(pairs)] if pairs else []
        tables += [_refusals(refused)] if refused else []
        records = [_record(o, networks[o.variant.model]) for o in found]
        records += [_refusal(v, reason) for v, reason in refused]
        said = findings(found, pairs)
        if refused:
            said.append(
                f"{len(refused)} of {len(variants)} combinations cannot be; a table says why."
            )
        return StudyResult(tables, _figures(found), records, said, skipped)


def _networks(
    variants: Sequence[Variant], given: dict[str, str], options: Options
) -> tuple[dict[str, ZooNetwork], list[str]]:
    """Return each network by its name, trained where it has to be, before any process starts."""
    models = list(dict.fromkeys(v.model for v in variants))
    how: dict[str, Any] = {"quick": options.quick, "seed": options.seed, "stage": options.stage}
    if given["model"]:
        return {m: zoo_network(m, _data(options), **how) for m in models}, []
    network, skipped = published_network(_MODEL, _data(options), None, **how)
    return {network.name: network}, skipped


def _data(options: Options) -> str | None:
    """Return the data that was asked for; None: each network's own."""
    return None if options.dataset == _DATA else options.dataset


def _instead(variant: Variant, networks: dict[str, ZooNetwork]) -> Variant:
    return replace(variant, model=next(iter(networks)))


def _effort(options: Options) -> Effort:
    judged = int(options.settings["samples"]) or None
    finetune, qat = int(options.settings["finetune"]), int(options.settings["qat"])
    if options.quick:
        return Effort(min(judged or 200, 200), 64, 1, 1, 64, True)
    return Effort(judged, 256, finetune, qat, None, False)


def _cell(variant: Variant, network: ZooNetwork, effort: Effort, options: Options) -> Cell:
    key = {
        "variant": asdict(variant), "effort": asdict(effort.of(variant)), "seed": options.seed,
        "dataset": _data(options),
        "weights": network.weights, "train": network.train.sha256, "test": network.test.sha256,
    }  # fmt: skip
    memory, work = _TRAINING_COSTS if variant.method in _TRAINS else _COSTS[variant.method]
    if variant.method != "float" and variant.static and variant.bits < 8:
        work += 1.0
    return Cell(key, memory, work)


_COLUMNS = ("method", ">weights", ">activations", "codes", "a scale for each", "calibrator")


def _table(found: Sequence[Outcome], effort: Effort) -> Table:
    several = len({o.variant.model for o in found}) > 1
    rows = []
    for o in found:
        v, (low, high) = o.variant, o.interval
        row = [v.model] if several else []
        if o.against is None:
            row += ["float", "32", "32", "–", "–", "–", "–"]
        else:
            row += [
                v.method,
                str(v.bits),
                "float" if v.activations == FLOAT else f"{v.activations}",
            ]
            row += ["table" if v.method == "codebook" else v.scheme, v.granularity]
            row += ["–" if v.calibrator == "-" else v.calibrator, v.algorithm]
        d = o.against
        row += [f"{o.bytes / 1e3:,.1f}", f"{o.accuracy:.2f}", f"{low:.2f} to {high:.2f}"]
        row += ["–", "–"] if d is None else [f"{d.delta:+.2f}", f"{d.low:+.2f} to {d.high:+.2f}"]
        rows.append(row)
    n = sorted({o.n for o in found})
    note = (
        f"{' and '.join(f'{count:,}' for count in n)} test samples. Bytes: codes, scales, zero "
        "points, tables and biases of every layer, and what stays float. Activations with codes: "
        "computed in integers, as ONNX Runtime does. Ranges and codes from "
        f"{effort.calibration} training samples; finetune: {effort.finetune}, QAT: {effort.qat} "
        f"epoch{'s' * (effort.qat > 1)}. auto: what bitsmith does unless told otherwise."
    )
    columns = [*_COLUMNS, "algorithm", ">kB", ">accuracy, %", ">95 % interval", ">less float"]
    columns.append(">95 % interval, paired")
    return Table("Every variant", ["model"] * several + columns, rows, note)


def _choice_table(pairs: Sequence[Choice]) -> Table:
    rows = []
    for p in pairs:
        d = p.difference
        rows.append(
            [
                p.axis,
                *(str(getattr(o.variant, p.axis)) for o in (p.first, p.second)),
                f"{p.first.variant.name}, {_rest(p)}",
                f"{d.delta:+.2f}",
                f"{d.low:+.2f} to {d.high:+.2f}",
                ("not distinguishable", "better", "worse")[d.sign],
            ]
        )
    columns = [
        "choice",
        "from",
        "to",
        "at",
        ">difference",
        ">95 % interval, paired",
        "the second is",
    ]
    return Table("One choice changed, all else equal", columns, rows)


def _rest(pair: Choice) -> str:
    v = pair.first.variant
    own = {a: getattr(v, a) for a in ("method", "scheme", "granularity", "calibrator", "algorithm")}
    return ", ".join(str(x) for axis, x in own.items() if axis != pair.axis and x != "-")


def _refusals(refused: Sequence[tuple[Variant, str]]) -> Table:
    rows = [[v.model, v.label, " ".join(reason.split())] for v, reason in refused]
    return Table("What cannot be", ["model", "combination", "reason"], rows)


def _figures(found: Sequence[Outcome]) -> list[Figure]:
    if len(found) < 2 or all(o.against is None for o in found):
        return []
    return [
        Figure(
            "front",
            "Accuracy against bytes",
            "Each point is a variant, with the 95 % interval of its accuracy; the steps join those "
            "that nothing smaller betters. Filled: weights and activations in codes; open: weights "
            "only. Triangles at the lower edge lie far below it, at the accuracy beside them.",
            lambda canvas: draw_front(canvas, found),
            size=(7.4, 4.4),
        ),
        Figure(
            "map",
            "Points of accuracy lost, by way and width of the weights",
            "The difference to float on the same samples: the darker, the more is lost. A frame: "
            "the interval holds 0, not distinguishable from float. A dot: not measured.",
            lambda canvas: draw_map(canvas, found),
            size=map_size(found),
        ),
    ]


def _record(o: Outcome, network: ZooNetwork) -> Record:
    v, d = o.variant, o.against
    against: dict[str, Any] = {}
    if d is not None:
        against = {"delta": d.delta, "delta_low": d.low, "delta_high": d.high}
        against["reference"] = o.accuracy - d.delta
    return Record(
        model=v.model, dataset=network.test.dataset, split=network.test.name,
        data_sha256=network.test.sha256, recipe=v.name, method=v.method, weight_bits=v.bits,
        activation_bits=v.activations, bytes=o.bytes, metric="accuracy", value=o.accuracy, n=o.n,
        **_how(v), **against,
    )  # fmt: skip


def _how(v: Variant) -> dict[str, Any]:
    if v.method == "float":
        return {}
    how = {"granularity": f"per-{v.granularity}", "algorithm": v.algorithm, "op": v.scheme}
    return how | ({} if v.calibrator == "-" else {"calibrator": v.calibrator})


def _refusal(v: Variant, reason: str) -> Record:
    return Record(
        model=v.model, recipe=v.name, method=v.method, weight_bits=v.bits,
        activation_bits=v.activations, outcome="refused", reason=" ".join(reason.split()),
        **_how(v),
    )  # fmt: skip
