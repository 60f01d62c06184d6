"""What the numbers of a run show, in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from bitsmith.studies.clipping.activations import Activation
from bitsmith.studies.clipping.errors import BITS
from bitsmith.studies.clipping.outlier import OUTLIER, WITHOUT, Outcome

__all__ = ["activation_findings", "outlier_findings"]


def outlier_findings(groups: Sequence[Sequence[Outcome]]) -> list[str]:
    """Return sentences on the outlier; ``groups`` are the draws of each width and calibrator."""
    found = []
    for bits in BITS:
        own = {g[0].calibrator: g for g in groups if g[0].bits == bits}
        alone = own.pop(WITHOUT)
        found += [_wrecked(bits, alone, own["minmax"]), _best(bits, own)]
    kept = _holding(groups)
    if kept:
        found.append(
            f"{_listed(kept)} keep{'s' * (len(kept) == 1)} the outlier at every width: the range "
            f"reaches {OUTLIER:g} in every draw."
        )
    return found


def _wrecked(bits: int, alone: Sequence[Outcome], whole: Sequence[Outcome]) -> str:
    codes = [fmean(o.codes for o in g) for g in (alone, whole)]
    errors = [fmean(o.mae for o in g) for g in (alone, whole)]
    return (
        f"At {bits} bits the outlier leaves {codes[1]:.1f} codes of {whole[0].codes_in_all} to "
        f"the inliers with minmax, instead of {codes[0]:.1f} without it, and their mean error is "
        f"{errors[1] / errors[0]:.1f} times larger ({errors[1]:.4f} instead of {errors[0]:.4f})."
    )


def _best(bits: int, own: dict[str, Sequence[Outcome]]) -> str:
    squared = {name: fmean(o.mse for o in g) for name, g in own.items()}
    inside = {name: fmean(o.mae for o in g) for name, g in own.items()}
    least, nearest = min(squared.values()), min(inside, key=lambda n: inside[n])
    tied = [name for name, value in squared.items() if value == least]
    limit = fmean(o.limit for o in own[tied[0]])
    cut = fmean(o.outlier_error or 0.0 for o in own[nearest])
    return (
        f"At {bits} bits the least squared error of all values ({least:.4g}) is that of "
        f"{_listed(tied)}, with a range of ±{limit:.1f} and a mean error of the inliers of "
        f"{inside[tied[0]]:.4f}; the inliers are nearest with {nearest} ({inside[nearest]:.4f}), "
        f"which is wrong about the outlier by {cut:.1f} (squared error {squared[nearest]:.4g})."
    )


def _holding(groups: Sequence[Sequence[Outcome]]) -> list[str]:
    """Return the calibrators whose range holds the outlier in every draw at every width."""
    names = dict.fromkeys(g[0].calibrator for g in groups if g[0].calibrator != WITHOUT)
    reach = {n: min(o.limit for g in groups for o in g if o.calibrator == n) for n in names}
    return [name for name, limit in reach.items() if limit >= OUTLIER]


def activation_findings(real: Activation) -> list[str]:
    """Return sentences on the activations of the network."""
    found = []
    for bits in BITS:
        own = [o for o in real.outcomes if o.bits == bits]
        layers = list(dict.fromkeys(o.layer for o in own))
        mean = {
            name: fmean(o.sqnr for o in own if o.calibrator == name)
            for name in dict.fromkeys(o.calibrator for o in own)
        }
        best = max(mean, key=lambda n: mean[n])
        worst = min(mean, key=lambda n: mean[n])
        won = Counter(
            max((o for o in own if o.layer == n), key=lambda o: o.sqnr).calibrator for n in layers
        )
        wins = ", ".join(f"{name} in {count}" for name, count in won.most_common())
        found.append(
            f"ResNet-20 at {bits} bits: {best} has the highest mean SQNR ({mean[best]:.2f} dB), "
            f"{worst} the lowest ({mean[worst]:.2f} dB), and the whole range (minmax) is "
            f"{mean[best] - mean['minmax']:.2f} dB below the best. Of {len(layers)} blocks the "
            f"best is {wins}."
        )
    return found


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
