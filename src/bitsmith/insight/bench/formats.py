"""Which recipes a benchmark of layers compares, beside which operators of others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from bitsmith.errors import RecipeError
from bitsmith.insight.bench.contender import Contender, float_layers, packed_layers
from bitsmith.insight.bench.ggml import ggml_contenders
from bitsmith.insight.bench.onnxruntime_operators import (
    DYNAMIC,
    nbits_name,
    onnxruntime_contenders,
)
from bitsmith.insight.bench.torch_operators import torch_contenders
from bitsmith.model.presets import make_recipe
from bitsmith.model.speed.layers import FLOAT
from bitsmith.numbers.scheme import Scheme

__all__ = ["RECIPES", "Heat", "LayerRecipe", "heats", "layer_recipe"]

#: What is compared where nothing else is asked for.
RECIPES = (
    "W8A8-dynamic", "W8", "W4G32A8-dynamic", "W4G32", "W4G64A8-dynamic", "W4G64",
    "W4G128A8-dynamic", "W4G128", "NF4", "CODEBOOK4", "MXFP4", "W3G64A8-dynamic", "W3G64",
    "W2G64A8-dynamic", "W2G64",
)  # fmt: skip


@final
@dataclass(frozen=True)
class LayerRecipe:
    """How a linear layer is packed.

    Attributes:
        name: of the recipe.
        scheme: of the weight.
        activation: of the rows; None: float.
    """

    name: str
    scheme: Scheme
    activation: Scheme | None

    @property
    def kind(self) -> tuple[int, int | None]:
        """Bits, and the columns that share a scale; None where a row shares one."""
        _, *along = self.scheme.granularity.scale_shape((64, 1 << 14))
        groups = along[0] if along else 1
        return self.scheme.format.bits, None if groups == 1 else (1 << 14) // groups

    @property
    def rival(self) -> str | None:
        """The row of ONNX Runtime that does the same: the same bits, group and type of rows."""
        bits, group = self.kind
        if not self.scheme.affine or bits not in (2, 4, 8):
            return None
        if (bits, group) == (8, None) and self.activation is not None:
            return DYNAMIC
        return nbits_name(bits, group, 0 if self.activation is None else 4)


@final
@dataclass(frozen=True)
class Heat:
    """Contenders that are timed by turns: weights of one width and group, and float.

    Attributes:
        name: of all of them.
        contenders: float first.
    """

    name: str
    contenders: tuple[Contender, ...]


def layer_recipe(name: str) -> LayerRecipe:
    """Return how the recipe ``name`` packs a linear layer.

    Raises:
        RecipeError: there is no such recipe, or it is static.

    >>> found = layer_recipe("W4G64A8-dynamic")
    >>> found.kind, found.rival
    ((4, 64), 'ONNX Runtime 4-bit group 64, level 4')
    """
    recipe = make_recipe(name)
    scheme = recipe.rules[-1].weight
    if recipe.lane != "module" or scheme is None:
        raise RecipeError(
            f"recipe {name!r} is static, a file that another runtime executes: take one that packs "
            "weights, such as W4G64 or W8A8-dynamic"
        )
    return LayerRecipe(name, scheme, recipe.activation)


def heats(recipes: Iterable[str] = RECIPES, ggml: Path | None = None) -> list[Heat]:
    """Return the recipes with the operators of others, in heats of one width and group.

    Args:
        recipes: of linear layers.
        ggml: folder of llama.cpp's libraries.

    Raises:
        RecipeError: as :func:`layer_recipe`.
    """
    alike: dict[tuple[int, int | None], list[LayerRecipe]] = {}
    for found in map(layer_recipe, recipes):
        alike.setdefault(found.kind, []).append(found)
    return [Heat(_named(*kind), _contenders(kind, own, ggml)) for kind, own in alike.items()]


def _contenders(
    kind: tuple[int, int | None], recipes: Sequence[LayerRecipe], ggml: Path | None
) -> tuple[Contender, ...]:
    own = [
        Contender(r.name, "bitsmith", packed_layers(r.scheme, r.activation), r.rival)
        for r in recipes
    ]
    integers = any(r.scheme.affine for r in recipes)
    others = [
        *torch_contenders(*kind),
        *onnxruntime_contenders(*kind),
        *ggml_contenders(*kind, ggml),
    ]
    return (Contender(FLOAT, FLOAT, float_layers), *own, *(others if integers else ()))


def _named(bits: int, group: int | None) -> str:
    return f"{bits} bits" if group is None else f"{bits} bits, group {group}"
