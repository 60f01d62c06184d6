"""What each stage gave: pairs of layers equalized, ``--effort``'s rungs, blocks of rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitsmith.cli.output import Output
    from bitsmith.insight.measure import Record
    from bitsmith.model.quantized import QuantizedModel

__all__ = [
    "blocks_table",
    "equalization_table",
    "equalized_records",
    "method_of",
    "rungs_table",
    "stage_records",
]

_LEARNED = "block reconstruction"


def method_of(model: QuantizedModel) -> str:
    """Return what a record calls how ``model`` was made; distillation that was kept is a finetune.

    >>> from types import SimpleNamespace
    >>> method_of(SimpleNamespace(provenance={"rungs": [{"name": "distillation", "kept": False}]}))
    'ptq'
    """
    kept = [r["name"] for r in model.provenance.get("rungs", []) if r["kept"]]
    return "ptq+finetune" if "distillation" in kept else "ptq"


def equalization_table(output: Output, pairs: list[dict[str, Any]]) -> None:
    """Print which layers' channels were equalized, and why others were not."""
    if not pairs:
        return
    equal = [p for p in pairs if p["outcome"] == "equalized"]
    output.heading("Equalization: the widest channel over the median one, before and after")
    output.table(
        ["layer", "read by", ">before", ">after", ">biases absorbed", "note"],
        [
            (
                p["layer"],
                p["next"] or "-",
                f"{p['before']:.3g}" if p["next"] else "-",
                f"{p['after']:.3g}" if p["next"] else "-",
                f"{p['absorbed']}",
                p["reason"] if p["outcome"] == "equalized" else f"skipped: {p['reason']}",
            )
            for p in pairs
        ],
    )
    output.line(f"{len(equal)} of {len(pairs)} layers equalized")


def equalized_records(pairs: list[dict[str, Any]], keys: dict[str, Any]) -> list[Record]:
    """Return a record for each layer: ``range_ratio`` after, with that before as the reference."""
    from bitsmith.insight.measure import Record

    return [
        Record(
            **keys | {"algorithm": "equalization", "method": "ptq", "metric": "range_ratio"},
            layer=p["layer"],
            outcome=p["outcome"],
            reason=p["reason"] or None,
            value=p["after"] if p["next"] else None,
            reference=p["before"] if p["next"] else None,
        )
        for p in pairs
    ]


def rungs_table(output: Output, rungs: list[dict[str, Any]], goal: float | None) -> None:
    """Print what each stage gave, and whether the goal was reached before the last one."""
    output.heading("Stages")
    output.table(
        ["stage", ">distance from float", ">same prediction", ">seconds", "kept"],
        [
            (
                r["name"],
                f"{r['distance']:.4g}",
                "-" if r.get("agreement") is None else f"{r['agreement']:.2f} %",
                f"{r['seconds']:.1f}",
                _kept(r["kept"], r.get("stopped")),
            )
            for r in rungs
        ],
    )
    best = max((r.get("agreement") or 0.0 for r in rungs), default=0.0)
    if goal is not None and best >= goal:
        output.line(f"the goal is reached: {best:g} % of the predictions are the float model's")


def _kept(kept: bool, stopped: str | None) -> str:
    said = "yes" if kept else "no: not better"
    return f"{said}; stopped: {stopped}" if stopped else said


def blocks_table(output: Output, blocks: list[dict[str, Any]]) -> None:
    """Print the error of each block before and after its rounding was learned."""
    if not blocks:
        return
    output.heading("Blocks, learned one after another: squared error over the output's mean square")
    output.table(
        ["block", ">layers", ">before", ">after", "kept", "went back to"],
        [
            (
                b["segment"],
                f"{len(b['layers'])}",
                _share(b["before"]),
                _share(b["after"]),
                "yes" if b["kept"] else f"no: {b['reason']}",
                ", ".join(b["start"]),
            )
            for b in blocks
        ],
    )


def _share(error: float | None) -> str:
    return "-" if error is None else f"{error:.3g}"


def stage_records(
    rungs: list[dict[str, Any]], blocks: list[dict[str, Any]], keys: dict[str, Any]
) -> list[Record]:
    """Return a record or two for each stage, which ``algorithm`` names, and one for each block.

    ``metric`` is ``distance`` or ``agreement`` of a stage. Of a block, which ``layer`` names, it
    is ``relative_error``, after learning, with that before as the reference.
    """
    from bitsmith.insight.measure import Record

    records = []
    for r in rungs:
        name = r["name"]
        own = keys | {"algorithm": name, "outcome": "kept" if r["kept"] else "not better"}
        own |= {"method": "ptq+finetune" if name == "distillation" else "ptq"}
        own |= {"reason": r.get("stopped")}
        found = {"distance": r["distance"], "agreement": r.get("agreement")}
        records += [
            Record(**own, metric=metric, value=value, quantize_seconds=r["seconds"])
            for metric, value in found.items()
            if value is not None
        ]
    shared = keys | {"algorithm": _LEARNED, "method": "ptq", "metric": "relative_error"}
    return records + [
        Record(
            **shared,
            layer=b["segment"],
            outcome="kept" if b["kept"] else "not better",
            reason=b["reason"] or None,
            value=b["after"],
            reference=b["before"],
        )
        for b in blocks
    ]
