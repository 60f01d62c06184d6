"""The page: what it says, in which order."""

from __future__ import annotations

from html import escape
from typing import Any

from bitsmith.deploy.verify import Verification
from bitsmith.insight.assessment import Assessment
from bitsmith.insight.evaluation import Evaluation
from bitsmith.insight.measure import machine
from bitsmith.insight.report import figures, markup, style
from bitsmith.model.quantized import QuantizedModel
from bitsmith.version import __version__

__all__ = ["render"]


def render(model: QuantizedModel, found: Assessment, data: dict[str, Any]) -> str:
    """Return the whole page; arguments as :func:`~bitsmith.insight.report.write_report`."""
    name = str(model.provenance.get("model", "model"))
    title = f"{name} in {model.recipe.name}"
    verdict = "equals" if found.verification.passed else "DOES NOT equal"
    lead = (
        f"Quantized by bitsmith {__version__} for {model.target}, exact on machine "
        f"{model.machine!r}; measured on {found.quantized.n:,} samples of {data['dataset']} "
        f"({data['split']}) in {found.verification.runtime} {found.verification.runtime_version}. "
        f"What the file computes {verdict} the simulation."
    )
    body = [
        f"<header><h1>{escape(title)}</h1>{markup.paragraph(lead)}</header>",
        markup.tiles(_headlines(found)),
        _result(found),
        _layer_errors(found),
        _coverage(model),
        _verification(found.verification),
        _weights(model, found),
        _activations(found),
        _origin(model, data),
    ]
    return markup.document(title, *body)


def _headlines(found: Assessment) -> list[tuple[str, str, str]]:
    first, second, against = found.float32, found.quantized, found.against
    items = []
    if second.accuracy is not None:
        items.append(
            (
                "accuracy in integers",
                f"{second.accuracy:.2f} %",
                f"float32 {first.accuracy:.2f} %; difference {against.delta:+.2f} "
                f"[{against.low:+.2f}, {against.high:+.2f}]",
            )
        )
    size, before = second.bytes or 0, first.bytes or 1
    items.append(
        ("size", f"{size / before:.2f} ×", f"{before / 1000:,.0f} kB → {size / 1000:,.0f} kB")
    )
    for batch, time in second.latencies.items():
        other = first.latencies[batch].median_ms
        faster = f"{other / time.median_ms:.2f} ×"
        items.append((f"speed, batch {batch}", faster, f"{other:.3f} ms → {time.median_ms:.3f} ms"))
    checked = found.verification
    share = f"in integers: {checked.in_integers}"
    items.append(("file and simulation", "equal" if checked.passed else "differ", share))
    return items


def _result(found: Assessment) -> str:
    first, second, against = found.float32, found.quantized, found.against
    key = (
        '<p class="key"><span><i style="background:var(--first)"></i>float32</span>'
        '<span><i style="background:var(--second)"></i>integers</span></p>'
    )
    shown = markup.figure(figures.cost_figure(first, second), "Median of repeated calls.")
    if against.delta is not None:
        caption = f"{against.changed:,} of {against.n:,} predictions differ from float32."
        picture = figures.accuracy_figure(first, second, against)
        shown = markup.figure(picture, caption) + shown
    batches = [f">ms at batch {b}" for b in first.latencies]
    rows = [_evaluation_row(e) for e in (first, second)]
    columns = ["model", "runtime", ">accuracy", ">95 % interval", ">samples", ">bytes", *batches]
    return markup.section(
        "Accuracy, size, latency",
        key,
        f'<div class="pair">{shown}</div>',
        markup.table(columns, rows),
    )


def _evaluation_row(e: Evaluation) -> list[str]:
    low, high = e.interval or (0.0, 0.0)
    known = e.accuracy is not None
    times = [f"{t.median_ms:.3f} ({t.low_ms:.3f} to {t.high_ms:.3f})" for t in e.latencies.values()]
    return [
        e.name,
        e.runtime,
        f"{e.accuracy:.2f} %" if known else "no labels",
        f"{low:.2f} to {high:.2f}" if known else "",
        f"{e.n:,}",
        f"{e.bytes or 0:,}",
        *times,
    ]


def _layer_errors(found: Assessment) -> str:
    rows = [
        [
            e.tensor,
            e.op,
            f"{e.sqnr:.1f}",
            f"{e.mean_lsb:.3f}",
            f"{e.max_lsb:.2f}",
            f"{100 * e.clipped:.3f} %",
        ]
        for e in found.errors
    ]
    columns = [
        "tensor",
        "operator",
        ">SQNR, dB",
        ">mean error, LSB",
        ">largest, LSB",
        ">outside range",
    ]
    return markup.section(
        "Error of each tensor",
        markup.paragraph(
            f"Integer simulation against the float graph on {found.error_samples} samples. The "
            "error is cumulative: it holds what all earlier layers contributed. One LSB is one "
            "step of the tensor's scale."
        ),
        markup.figure(figures.error_figure(found.errors)),
        markup.table(columns, rows, fold=True),
    )


def _coverage(model: QuantizedModel) -> str:
    rows = [
        [
            row.layer,
            row.op,
            row.outcome,
            row.reason,
            f"{100 * row.macs_share:.2f} %" if row.macs_share else "",
            "" if row.weight_bits is None else f"{row.weight_bits:.2f}",
        ]
        for row in model.coverage
    ]
    columns = [
        "layer",
        "operator",
        "outcome",
        "kernel or reason",
        ">share of MACs",
        ">effective bits",
    ]
    return markup.section("Coverage", markup.table(columns, rows))


def _verification(found: Verification) -> str:
    rows = [
        [
            t.tensor,
            t.kernel,
            f"{t.n:,}",
            f"{t.differing:,}",
            f"{t.max_lsb:g}",
            f"{t.isolated_n:,}",
            f"{t.isolated_differing:,}",
            f"{t.isolated_max_lsb:g}",
            t.cause,
        ]
        for t in found.tensors
    ]
    columns = ["tensor", "kernel", ">values", ">differ", ">max"]
    columns += [">isolated values", ">differ", ">max", "cause"]
    worst = sum(w.differing for w in found.worst_cases)
    codes = sum(w.n for w in found.worst_cases)
    about = [
        ("holds", "yes" if found.passed else "no: " + "; ".join(found.failures)),
        ("samples", f"{found.samples:,}"),
        ("operators executed", ", ".join(f"{n} {op}" for op, n in sorted(found.operators.items()))),
        ("in integers", found.in_integers),
        ("changed predictions", f"{found.changed_predictions:,}"),
        ("largest output difference", f"{found.output_max_difference:g}"),
        ("worst-case codes", f"{worst:,} of {codes:,} differ ({len(found.worst_cases)} layers)"),
        ("order assumed", found.order_assumed),
    ]
    return markup.section(
        f"Simulation against {found.runtime} {found.runtime_version}",
        markup.paragraph(
            "Cumulative: both from the input on. Isolated: each operator of the simulation on the "
            "runtime's own input codes. Differences in codes (LSB); float outputs in real units."
        ),
        markup.facts(about),
        markup.table(columns, rows),
    )


def _weights(model: QuantizedModel, found: Assessment) -> str:
    cards = []
    for w in found.weights:
        reach = w.high_scale * model.program.layers[w.layer].weight.scheme.code_max
        picture = figures.histogram_figure(
            f"of the weight of {w.layer}", w.values, -reach, reach, style.FIRST
        )
        about = (
            f"{' × '.join(map(str, w.shape))}; {w.values.low:.3g} to {w.values.high:.3g}; scales "
            f"{w.low_scale:.2g} to {w.high_scale:.2g}; {w.bits:.2f} bits, {w.sqnr:.1f} dB"
        )
        cards.append(_card(w.layer, picture, about))
    return markup.section(
        "Weights",
        markup.paragraph(
            "Float weights with batch norms folded in, counts on a logarithmic axis. Dashed: the "
            "reach of the channel with the largest scale; every channel has a scale of its own."
        ),
        f'<div class="many">{"".join(cards)}</div>',
    )


def _activations(found: Assessment) -> str:
    cards = []
    for e in found.errors:
        low, high = e.encoding.low, e.encoding.high
        picture = figures.histogram_figure(f"of {e.tensor}", e.values, low, high, style.SECOND)
        about = (
            f"{e.values.low:.3g} to {e.values.high:.3g}; range {low:.3g} to {high:.3g}, scale "
            f"{e.encoding.scale:.3g}, zero point {e.encoding.zero_point}; "
            f"{100 * e.clipped:.3f} % outside"
        )
        cards.append(_card(e.tensor, picture, about))
    return markup.section(
        "Activations",
        markup.paragraph(
            f"Float values on {found.error_samples} samples, counts on a logarithmic axis. Dashed: "
            "the range that the 256 codes cover; what lies outside saturates."
        ),
        f'<div class="many">{"".join(cards)}</div>',
    )


def _card(name: str, picture: str, about: str) -> str:
    body = markup.figure(picture, about)
    return body.replace("<figure>", f"<figure><b>{escape(name)}</b>", 1)


def _origin(model: QuantizedModel, data: dict[str, Any]) -> str:
    made = {**model.provenance, "recipe": model.recipe.name, "target": model.target}
    measured = {f"measured on {key}": value for key, value in data.items()}
    here = {
        key: ", ".join(value) if isinstance(value, list) else value
        for key, value in machine().items()
    }
    return markup.section(
        "Machine and provenance",
        "<h3>How it was made</h3>",
        markup.facts(
            (key.replace("_", " "), str(value)) for key, value in (made | measured).items()
        ),
        "<h3>This machine</h3>",
        markup.facts((key.replace("_", " "), str(value)) for key, value in here.items()),
    )
