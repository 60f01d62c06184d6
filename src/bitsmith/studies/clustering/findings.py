"""What the numbers of a run show, in sentences; orders only where an interval supports them."""

from __future__ import annotations

from collections.abc import Sequence

from bitsmith.insight.evaluation import Difference, Evaluation, difference
from bitsmith.studies.clustering.clusters import Form
from bitsmith.studies.clustering.entries import WAYS, Codebook, Sizes

__all__ = ["findings"]


def findings(
    plain: Evaluation,
    tables: Sequence[Codebook],
    chosen: Codebook,
    made: Sequence[Form],
    whole: Sizes,
) -> list[str]:
    """Return sentences on the tables and on what int8 makes of those that were chosen."""
    low, high = plain.interval or (0.0, 0.0)
    sentences = [
        f"The float network is right on {plain.accuracy:.2f} % [{low:.2f}, {high:.2f}] of "
        f"{plain.n:,} test images and takes {whole.packed:,} bytes."
    ]
    own = [t for t in tables if t.bits == chosen.bits]
    listed = ", ".join(f"{t.way} {_said(t.against)}" for t in own)
    sentences.append(
        f"{chosen.entries} entries a layer without training, against float: {listed}; "
        f"{chosen.sizes.packed:,} bytes packed ({whole.packed / chosen.sizes.packed:.1f} times "
        f"smaller), {chosen.sizes.coded:,} Huffman coded."
    )
    sentences += _least(tables)
    sentences += _weighting(tables)
    sentences.append(_coding(tables))
    sentences += _forms(chosen, made)
    return sentences


def _least(tables: Sequence[Codebook]) -> list[str]:
    even = [t for t in tables if t.against.high is not None and t.against.high >= 0]
    if not even:
        return [f"Every table, of up to {tables[-1].entries} entries, is below float."]
    least = min(even, key=lambda t: t.bits)
    return [
        f"The smallest table that is not distinguishable from float has {least.entries} entries "
        f"({least.way}, {_said(least.against)})."
    ]


def _weighting(tables: Sequence[Codebook]) -> list[str]:
    parts = []
    for bits in sorted({t.bits for t in tables}):
        pair = {t.way: t for t in tables if t.bits == bits}
        if len(pair) == len(WAYS):
            d = difference(pair["weighted"].evaluation, pair["plain"].evaluation)
            parts.append(f"{1 << bits} entries {_said(d)}")
    return [f"Weighting the errors by the inputs changes: {'; '.join(parts)}."] if parts else []


def _coding(tables: Sequence[Codebook]) -> str:
    saved = {t.entries: 100 * (1 - t.sizes.coded / t.sizes.packed) for t in tables}
    most = max(saved, key=lambda entries: saved[entries])
    least = min(saved, key=lambda entries: saved[entries])
    return (
        f"Huffman coding takes {saved[most]:.1f} % off the packed file at {most} entries and "
        f"{saved[least]:.1f} % at {least}."
    )


def _forms(chosen: Codebook, made: Sequence[Form]) -> Sequence[str]:
    plain, kept, tuned = made
    counts = [[layer.after for layer in form.layers] for form in made]
    before = max(layer.before for layer in plain.layers)
    return [
        f"Plain int8 turns at most {before} values a layer into {min(counts[0])} to "
        f"{max(counts[0])} codes; with clusters kept there are at most {max(counts[1])}, and at "
        f"most {max(counts[2])} after finetuning.",
        f"In int8, against float: plain {_said(plain.against)}, clusters kept "
        f"{_said(kept.against)}, finetuned {_said(tuned.against)}. Keeping the clusters takes "
        f"{kept.packed:,} bytes in place of {plain.packed:,}, through LZMA {kept.squeezed:,} in "
        f"place of {plain.squeezed:,}.",
        "Finetuning is "
        f"{_verdict(difference(tuned.evaluation, kept.evaluation))} the clusters as they were kept "
        f"({_points(difference(tuned.evaluation, kept.evaluation))}).",
    ]


def _verdict(d: Difference) -> str:
    low, high = d.low or 0.0, d.high or 0.0
    return "above" if low > 0 else "below" if high < 0 else "not distinguishable from"


def _points(d: Difference) -> str:
    return f"{d.delta:+.2f} [{d.low:+.2f}, {d.high:+.2f}] points"


def _said(d: Difference) -> str:
    even = d.low is not None and d.high is not None and d.low <= 0 <= d.high
    return _points(d) + (", not distinguishable" if even else "")
