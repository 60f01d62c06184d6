"""Recipes by name.

``W<bits>A<bits>[-pertensor][-edge8]`` is static: weights per channel, activations calibrated, for
the graph lane. ``-pertensor`` gives each weight one scale, for runtimes that know no other, and
equalizes channels and corrects biases against what that costs.
``CODEBOOK<bits>A<bits>[-edge8]`` is static too, with weights from one table a layer.
``W<bits>[G<group>][A8-dynamic]``, ``TERNARY``, ``CODEBOOK<bits>``, ``NF4`` and ``MXFP4`` are of
the module lane, as are the block types of GGUF (``Q4_0``, ``Q4_K`` …); there embeddings
get 8 bits. ``W1`` has the levels ±s, ``TERNARY`` −s, 0 and s, s of each output channel.
"""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path

from bitsmith.errors import RecipeError
from bitsmith.model.recipe import Recipe, Rule, weight_scheme
from bitsmith.numbers.formats.codebook import LearnedFormat, nf4
from bitsmith.numbers.formats.integer import int8, integer_format, ternary
from bitsmith.numbers.formats.minifloat import fp16
from bitsmith.numbers.named_schemes import GGUF_SCHEMES, named_scheme
from bitsmith.numbers.scheme import PerBlock, PerChannel, PerGroup, PerTensor, PerToken, Scheme

__all__ = ["make_recipe", "preset_names"]

_GRAMMAR = re.compile(
    r"W(?P<w>[1-8])(?:G(?P<g>\d+))?(?:A(?P<a>[1-8]))?(?P<d>-dynamic)?"
    r"(?P<t>-pertensor)?(?P<e>-edge8)?"
)
_TABLES = re.compile(r"CODEBOOK(?P<w>[1-7])A(?P<a>[2-8])(?P<e>-edge8)?")
_HELP = (
    "presets read W<1-8>A<2-8>[-pertensor][-edge8] or CODEBOOK<1-7>A<2-8>[-edge8] (static), "
    "W<bits>[G<group>][A8-dynamic], TERNARY, CODEBOOK<bits>, NF4, MXFP4 or a GGUF type such as "
    "Q4_K; or give a JSON file"
)
_ROWS = 8
"""Rows that share a learned table."""


def preset_names() -> list[str]:
    """Return the presets worth listing; the grammar knows more."""
    plain = [f"W{bits}A8" for bits in range(8, 1, -1)] + ["W4A4", "W3A3", "W2A2", "W1A8"]
    plain += ["CODEBOOK4A8", "CODEBOOK3A8", "CODEBOOK2A8"]
    static = plain + [f"{name}-edge8" for name in plain[1:]] + ["W8A8-pertensor"]
    grouped = ["W8", "W4G32", "W4G64", "W4G128", "W3G64", "W2G32", "W2G64", "W1", "TERNARY"]
    tables = [f"CODEBOOK{b}" for b in (4, 3, 2)]
    dynamic = ["W8A8-dynamic", "W4G64A8-dynamic"]
    return [*static, *grouped, *dynamic, "NF4", "MXFP4", *tables, *GGUF_SCHEMES]


def make_recipe(spec: str | Path | Recipe) -> Recipe:
    """Return the recipe of a preset's name or of a JSON file.

    Raises:
        RecipeError: the name does not parse, or names what this version does not do; the
            message says which part.

    >>> make_recipe("W8A8").rules[-1].weight.format, make_recipe("W4G64").lane
    (int8, 'module')
    """
    if isinstance(spec, Recipe):
        return spec
    text = str(spec)
    if text.endswith(".json"):
        try:
            return Recipe.from_json(json.loads(Path(text).read_text()))
        except OSError as error:
            raise RecipeError(f"recipe file {text} cannot be read: {error.strerror}") from error
        except json.JSONDecodeError as error:
            raise RecipeError(f"recipe file {text} is not JSON: {error}") from error
    if found := _TABLES.fullmatch(text):
        return _static(text, found, Rule("*", weight_scheme(8), table_bits=int(found["w"])))
    if (weight := _named(text)) is not None:
        return _module(text, weight, None, GGUF_SCHEMES["Q8_0"] if text in GGUF_SCHEMES else None)
    return _preset(text)


def grouped_scheme(bits: int, group: int) -> Scheme:
    """Return the weight scheme of ``W<bits>G<group>``: asymmetric, float16 scales."""
    return Scheme(integer_format(bits, signed=False), False, PerGroup(group), scale_format=fp16)


def _named(text: str) -> Scheme | None:
    """Return the weight scheme of a name outside the ``W`` grammar."""
    if found := re.fullmatch(r"CODEBOOK([1-8])", text):
        table = LearnedFormat(int(found[1]))
        return Scheme(table, granularity=PerBlock((_ROWS, -1)), scale_format=fp16)
    if text in GGUF_SCHEMES:
        return GGUF_SCHEMES[text]
    if text == "TERNARY":
        return Scheme(ternary, granularity=PerChannel(0))
    if text == "NF4":
        return Scheme(nf4, granularity=PerGroup(64), scale_format=fp16)
    return named_scheme("mxfp4") if text == "MXFP4" else None


def _module(
    name: str, weight: Scheme, activation: Scheme | None, embedding: Scheme | None = None
) -> Recipe:
    first = Rule("op:embedding", embedding or weight_scheme(8), optional=True)
    return Recipe(name, (first, Rule("*", weight)), activation)


def _preset(text: str) -> Recipe:
    found = _GRAMMAR.fullmatch(text)
    if found is None:
        close = difflib.get_close_matches(text.upper(), preset_names(), n=1, cutoff=0.4)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise RecipeError(f"unknown recipe {text!r}{hint} {_HELP}")
    bits, group = int(found["w"]), found["g"] and int(found["g"])
    if refused := _refusals(found, bits):
        raise RecipeError(f"recipe {text!r} is not available: {'; '.join(refused)}. {_HELP}")
    dynamic = Scheme(int8, granularity=PerToken()) if found["d"] else None
    if group:
        return _module(text, grouped_scheme(bits, group), dynamic)
    if found["d"]:
        return _module(text, weight_scheme(bits), dynamic)
    if found["a"] is None:
        weight = weight_scheme(bits) if bits in (1, 8) else _per_channel(bits)
        return _module(text, weight, None)
    granularity = PerTensor() if found["t"] else PerChannel(0)
    return _static(text, found, Rule("*", weight_scheme(bits, granularity)))


def _static(name: str, found: re.Match[str], weights: Rule) -> Recipe:
    return Recipe(
        name=name,
        rules=(Rule("op:embedding", weight_scheme(8), optional=True), weights),
        activation=Scheme(integer_format(int(found["a"]), signed=False), symmetric=False),
        edge_bits=8 if found["e"] else None,
    )


def _per_channel(bits: int) -> Scheme:
    return Scheme(integer_format(bits, signed=False), False, PerChannel(0))


def _refusals(found: re.Match[str], bits: int) -> list[str]:
    """Return every part of a name that parses and is not done."""
    refused = []
    if found["a"] == "1":
        refused.append("activations have 2 to 8 bits: one bit holds 0 and one more value")
    if found["d"] and found["a"] not in (None, "8"):
        refused.append(f"dynamic activations of {found['a']} bits: only 8")
    if found["d"] and found["a"] is None:
        refused.append("dynamic activations need their bits, as in W8A8-dynamic")
    if found["g"] and found["a"] and not found["d"]:
        refused.append("group scales with static activations need a sum for each group")
    if found["t"] and (found["a"] is None or found["d"]):
        refused.append("-pertensor is for static recipes: one scale a weight")
    if found["t"] and bits == 1:
        refused.append("1-bit weights have a scale for each output channel")
    if found["e"] and (found["a"] is None or found["d"]):
        refused.append("-edge8 is for static recipes; give rules for the layers by name (JSON)")
    return refused
