"""A group: what all weights that are quantized alike share, and what it cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from bitsmith.deploy.export.compressed_tensors.layout import INT, PACK, SCALE_DTYPES
from bitsmith.numbers.formats import NumberFormat
from bitsmith.numbers.formats.integer import IntegerFormat
from bitsmith.numbers.granularity import Granularity, PerChannel, PerGroup, PerTensor
from bitsmith.numbers.scheme import Scheme

__all__ = ["Group", "refusals"]


@final
@dataclass(frozen=True)
class Group:
    """What weights that are quantized alike share.

    Attributes:
        scheme: of the weights.
        dynamic: inputs are quantized to 8 bits on the fly, symmetrically, one scale per token.
    """

    scheme: Scheme
    dynamic: bool = False

    @property
    def layout(self) -> str:
        """``pack-quantized``, or ``int-quantized`` where inputs are quantized too."""
        return INT if self.dynamic else PACK

    @property
    def packed_zero_points(self) -> bool:
        """Whether zero points are stored, and packed: all but one per tensor."""
        return not self.scheme.symmetric and self.scheme.granularity != PerTensor()

    @property
    def weights(self) -> dict[str, Any]:
        """The ``weights`` entry of its config group.

        >>> from bitsmith.numbers.formats.integer import int4
        >>> entry = Group(Scheme(int4, granularity=PerGroup(64))).weights
        >>> entry["num_bits"], entry["symmetric"], entry["strategy"], entry["group_size"]
        (4, True, 'group', 64)
        """
        grain = self.scheme.granularity
        size = grain.size if isinstance(grain, PerGroup) else None
        kind = "group" if size else "channel" if isinstance(grain, PerChannel) else "tensor"
        return _arguments(self.scheme.format.bits, self.scheme.symmetric, kind, size)

    @property
    def inputs(self) -> dict[str, Any] | None:
        """The ``input_activations`` entry of its config group; None: they stay float."""
        return _arguments(8, True, "token", None) | {"dynamic": True} if self.dynamic else None


def refusals(group: Group, shape: Sequence[int]) -> list[str]:
    """Return everything of a weight of ``shape`` in ``group`` that the format cannot represent."""
    scheme, shape = group.scheme, tuple(shape)
    if len(shape) != 2:
        return [f"it has shape {shape}; only weights [out, in] have a layout"]
    if not all(shape):
        return [f"it has no values: shape {shape}"]
    number, grain, inner = scheme.format, scheme.granularity, scheme.scale_format
    found = []
    if not isinstance(number, IntegerFormat) or number.binary or number.bits > 8:
        found.append(f"{number.name} is not an integer format with a zero and at most 8 bits")
    if not _along_rows(grain):
        found.append(f"{grain} has no strategy; per tensor, per row and groups along rows have")
    if isinstance(inner, Scheme):
        found.append("scales in two levels are not stored; fp32, fp16 and bf16 are")
    elif isinstance(inner, NumberFormat) and inner.name not in SCALE_DTYPES:
        found.append(f"scales in {inner.name} are not stored; fp32, fp16 and bf16 are")
    if scheme.offset_format is not None:
        found.append("offsets that are not zero points are not stored")
    if group.dynamic and (
        number.name != "int8" or not scheme.symmetric or isinstance(grain, PerGroup)
    ):
        found.append(
            "inputs quantized on the fly go with symmetric int8 weights per row or per tensor"
        )
    return found


def _along_rows(grain: Granularity) -> bool:
    if isinstance(grain, PerChannel):
        return grain.axis in (0, -2)
    if isinstance(grain, PerGroup):
        return grain.axis in (1, -1)
    return isinstance(grain, PerTensor)


def _arguments(bits: int, symmetric: bool, strategy: str, size: int | None) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": strategy,
        "group_size": size,
        "block_structure": None,
        "dynamic": False,
        "actorder": None,
    }
