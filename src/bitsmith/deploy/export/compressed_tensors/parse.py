"""Read ``quantization_config``: the groups in it, or everything in it that cannot be read."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch

from bitsmith.deploy.export.compressed_tensors.group import Group, refusals
from bitsmith.deploy.export.compressed_tensors.layout import INT, PACK, SCALE_DTYPES
from bitsmith.deploy.export.compressed_tensors.settings import METHOD, SCHEMES_VERSION
from bitsmith.errors import InputError, WeightsError
from bitsmith.numbers.formats import NumberFormat
from bitsmith.numbers.formats.integer import integer_format
from bitsmith.numbers.granularity import Granularity, PerChannel, PerGroup, PerTensor
from bitsmith.numbers.scheme import Scheme

__all__ = ["Entry", "Settings", "parse"]

_CLASSES = ("Linear", "Embedding")


@final
@dataclass(frozen=True)
class Entry:
    """One config group as it was read.

    Attributes:
        name: ``group_0`` …
        targets: class names, module names, or ``re:`` patterns.
        layout: ``pack-quantized`` or ``int-quantized``.
        weights: its ``weights`` entry.
        scheme: as bitsmith wrote it; None in files of others.
    """

    name: str
    targets: tuple[str, ...]
    layout: str
    weights: Mapping[str, Any]
    scheme: Scheme | None

    def scheme_for(self, scales: torch.dtype | None) -> Scheme:
        """Return the scheme; of files of others with the type of their scales."""
        if self.scheme is not None:
            return self.scheme
        bits, symmetric = self.weights["num_bits"], self.weights["symmetric"]
        grain: Granularity = PerTensor()
        if self.weights["strategy"] == "channel":
            grain = PerChannel(0)
        elif self.weights["strategy"] == "group":
            grain = PerGroup(self.weights["group_size"])
        names = {dtype: name for name, dtype in SCALE_DTYPES.items() if name != "fp32"}
        stored = names.get(scales) if scales else None
        inner = NumberFormat.registry[stored] if stored else None
        number = integer_format(bits, signed=bits > 1)
        return Scheme(number, symmetric, grain, narrow_range=False, scale_format=inner)


@final
@dataclass(frozen=True)
class Settings:
    """What a ``quantization_config`` says."""

    entries: tuple[Entry, ...]
    ignore: tuple[str, ...]

    def entry_of(self, module: str) -> Entry | None:
        """Return the group of a quantized module: by name, then by pattern, then by class.

        Raises:
            WeightsError: two groups claim it, or the ignore list takes it out.
        """
        if _named(module, self.ignore) is not None:
            raise WeightsError("it is stored quantized, but the ignore list takes it out")
        ranks = [(rank, e) for e in self.entries if (rank := _rank(module, e.targets)) is not None]
        best = min((rank for rank, _ in ranks), default=None)
        found = [entry for rank, entry in ranks if rank == best]
        if len(found) > 1:
            raise WeightsError(f"groups {', '.join(e.name for e in found)} both claim it")
        return found[0] if found else None


def parse(config: Mapping[str, Any]) -> Settings:
    """Return what the ``quantization_config`` of a config.json says.

    Raises:
        WeightsError: there is none, or it cannot be read; everything unknown is listed.
    """
    data = config.get("quantization_config")
    if not isinstance(data, Mapping):
        raise WeightsError("config.json has no quantization_config: the model is not quantized")
    if data.get("quant_method") != METHOD:
        raise WeightsError(f"quant_method is {data.get('quant_method')!r}, not {METHOD!r}")
    problems = [*_unknown(data)]
    groups = data.get("config_groups")
    entries = []
    if not isinstance(groups, Mapping) or not groups:
        problems.append("config_groups has no group")
    else:
        schemes = _own_schemes(data, groups, problems)
        for name, group in groups.items():
            if wrong := [*_wrong(group, data.get("format"))]:
                problems += [f"config group {name}: {reason}" for reason in wrong]
            else:
                entries.append(_entry(name, group, data.get("format"), schemes.get(name)))
    problems += [] if problems else [p for e in entries if (p := _changed(e))]
    if problems:
        lines = "\n  ".join(problems)
        raise WeightsError(f"quantization_config cannot be read:\n  {lines}")
    return Settings(tuple(entries), tuple(data.get("ignore") or ()))


def _unknown(data: Mapping[str, Any]) -> Iterator[str]:
    """Give what changes the meaning of the weights and is not read here."""
    for key in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        if data.get(key):
            yield f"{key} is set; only quantized weights are read"
    if data.get("quantization_status") != "compressed":
        yield f"quantization_status is {data.get('quantization_status')!r}, not 'compressed'"
    if not _strings(data.get("ignore") or []):
        yield f"ignore is {data['ignore']!r}, not a list of names"
    elif bad := [*_bad_patterns(data.get("ignore") or ())]:
        yield f"ignore: {', '.join(bad)}"


def _wrong(group: Any, default: Any) -> Iterator[str]:
    """Give every reason why a config group cannot be read."""
    if not isinstance(group, Mapping) or not isinstance(group.get("weights"), Mapping):
        yield "it has no weights"
        return
    if not _strings(group.get("targets")):
        yield f"targets is {group.get('targets')!r}, not a list of names"
    elif bad := [*_bad_patterns(group["targets"])]:
        yield f"targets: {', '.join(bad)}"
    layout = group.get("format") or default
    if layout not in (PACK, INT):
        yield f"format is {layout!r}; known: {PACK}, {INT}"
    weights, inputs = group["weights"], group.get("input_activations")
    yield from _wrong_weights(weights)
    if group.get("output_activations"):
        yield "outputs are quantized; only weights, and inputs on the fly, are read"
    if inputs and not (isinstance(inputs, Mapping) and inputs.get("dynamic") is True):
        yield "inputs are not quantized on the fly: their scales are not read"


def _wrong_weights(weights: Mapping[str, Any]) -> Iterator[str]:
    bits, symmetric = weights.get("num_bits"), weights.get("symmetric", True)
    if weights.get("type", "int") != "int" or type(bits) is not int or not 1 <= bits <= 8:
        yield f"weights are {weights.get('type')} of {bits} bits, not integers of 1 to 8"
    elif type(symmetric) is not bool:
        yield f"symmetric is {symmetric!r}"
    elif symmetric and bits == 1:
        yield "symmetric weights of 1 bit are −1 and 0, which no scheme has"
    strategy, size = weights.get("strategy"), weights.get("group_size")
    if strategy not in ("tensor", "channel", "group"):
        yield f"strategy is {strategy!r}; known: tensor, channel, group"
    elif strategy == "group" and (type(size) is not int or size < 1):
        yield f"group_size is {size!r}"
    if weights.get("dynamic") or weights.get("actorder") in ("group", "dynamic", True):
        yield "weights quantized on the fly, or in an order of activations, are not read"


def _entry(name: str, group: Mapping[str, Any], default: Any, scheme: Scheme | None) -> Entry:
    weights = {"symmetric": True, **group["weights"]}
    return Entry(name, tuple(group["targets"]), group.get("format") or default, weights, scheme)


def _own_schemes(
    data: Mapping[str, Any], groups: Mapping[str, Any], problems: list[str]
) -> dict[str, Scheme]:
    """Return the schemes kept under ``bitsmith``, of every group or of none."""
    own = data.get("bitsmith")
    if own is None:
        return {}
    if not isinstance(own, Mapping) or own.get("version") != SCHEMES_VERSION:
        problems.append(f"bitsmith has no version {SCHEMES_VERSION}, the one that is read")
        return {}
    schemes = own.get("schemes")
    if not isinstance(schemes, Mapping) or set(schemes) != set(groups):
        problems.append("bitsmith has not one scheme for each config group")
        return {}
    found = {}
    for name, scheme in schemes.items():
        try:
            found[name] = Scheme.from_json(scheme)
        except (InputError, TypeError, ValueError) as error:
            problems.append(f"bitsmith: the scheme of {name} cannot be read: {error}")
            continue
        axis = getattr(found[name].granularity, "axis", 0)
        impossible = refusals(Group(found[name]), (1, 1))
        if type(axis) is not int:
            impossible.append(f"its axis is {axis!r}")
        problems += [f"bitsmith: the scheme of {name}: {reason}" for reason in impossible]
    return found


def _changed(entry: Entry) -> str | None:
    """Return what differs between a group and its exact scheme: one was edited."""
    if entry.scheme is None:
        return None
    expected = Group(entry.scheme, entry.layout == INT).weights
    differing = [
        f"{key} is {entry.weights.get(key)!r} and should be {value!r}"
        for key, value in expected.items()
        if entry.weights.get(key) != value
    ]
    if not differing:
        return None
    return f"config group {entry.name} does not fit its scheme: {', '.join(differing)}"


def _rank(module: str, targets: Collection[str]) -> int | None:
    """Return how closely one of ``targets`` names the module: 0 by name … 2 by class."""
    by_name = _named(module, targets)
    return by_name if by_name is not None else 2 if set(targets) & set(_CLASSES) else None


def _named(module: str, targets: Collection[str]) -> int | None:
    if module in targets:
        return 0
    patterns = [t.removeprefix("re:") for t in targets if t.startswith("re:")]
    return 1 if any(re.match(pattern, module) for pattern in patterns) else None


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _bad_patterns(targets: Collection[str]) -> Iterator[str]:
    for target in targets:
        try:
            re.compile(target.removeprefix("re:") if target.startswith("re:") else "")
        except re.error as error:
            yield f"{target!r} is no pattern ({error})"
