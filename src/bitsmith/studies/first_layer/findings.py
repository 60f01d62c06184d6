"""What the numbers of a run show, in sentences; orders only where an interval supports them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bitsmith.studies.first_layer.errors import FULL, OWN, Outcome, change, of
from bitsmith.studies.first_layer.networks import Network

__all__ = ["findings"]

#: Layer → every form of its weight.
Layers = Mapping[str, Sequence[Outcome]]


def findings(found: Mapping[Network, Layers], bits: int) -> list[str]:
    """Return sentences on the first convolution of each network, and on all of them."""
    sentences = []
    for network, layers in found.items():
        first = layers[network.first]
        sentences.append(_scales(network, first))
        sentences += [_errors(network, first, cut) for cut in ("per-tensor", "per-channel")]
        sentences.append(_all(network, layers, bits))
    return sentences


def _scales(network: Network, first: Sequence[Outcome]) -> str:
    weight, mirrored, own = network.weights[network.first], of(first, FULL), of(first, OWN)
    low, high = float(weight.min()), float(weight.max())
    return (
        f"{network.name}, {network.first}: weights from {low:.4f} to {high:.4f}. Symmetric takes "
        f"the scale {mirrored.step:.7f} and leaves {mirrored.unused:.0f} of {mirrored.codes} codes "
        f"to no weight; asymmetric takes {own.step:.7f} with zero point "
        f"{int(own.zero_point[0])} and leaves {own.unused:.0f}. Its steps are "
        f"{100 * (1 - own.step / mirrored.step):.1f} % smaller."
    )


def _errors(network: Network, first: Sequence[Outcome], cut: str) -> str:
    mirrored, own = of(first, FULL, cut), of(first, OWN, cut)
    mean, low, high = change(own, mirrored)
    verdict = "not distinguishable" if low <= 0 <= high else "lower" if high < 0 else "higher"
    quarters = ", ".join(f"{o.mae / o.step:.3f}" for o in (mirrored, own))
    return (
        f"{network.name}, {network.first}, {cut}: the mean absolute error is {mirrored.mae:.4g} "
        f"symmetric and {own.mae:.4g} asymmetric, {mean:+.1f} % [{low:+.1f}, {high:+.1f}]: "
        f"{verdict}. In steps it is {quarters}, where errors spread evenly over a step have 0.25."
    )


def _all(network: Network, layers: Layers, bits: int) -> str:
    changes = [change(of(own, OWN), of(own, FULL)) for own in layers.values()]
    lower = sum(high < 0 for _, _, high in changes)
    higher = sum(low > 0 for _, low, _ in changes)
    steps = [of(own, OWN).step / of(own, FULL).step for own in layers.values()]
    return (
        f"Of the {len(layers)} convolutions of {network.name} at {bits} bits with one scale each, "
        f"asymmetric has the lower error in {lower} and the higher in {higher}; in "
        f"{len(layers) - lower - higher} the two are not distinguishable. Its steps are on average "
        f"{100 * (1 - sum(steps) / len(steps)):.1f} % smaller, its error "
        f"{-sum(mean for mean, _, _ in changes) / len(changes):.1f} %."
    )
