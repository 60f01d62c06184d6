"""Weights in tables of 2 to 256 entries: what the network keeps, and what the files take."""

from __future__ import annotations

import lzma
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bitsmith.insight.evaluation import Difference, Evaluation, difference
from bitsmith.insight.zoo_network import ZooNetwork
from bitsmith.model.recipe import Recipe, Rule
from bitsmith.model.store import save
from bitsmith.model.store.survey import survey
from bitsmith.model.weights import quantize_weights
from bitsmith.numbers.entropy_coding import huffman_encode
from bitsmith.numbers.formats.codebook import LearnedFormat
from bitsmith.numbers.formats.minifloat import fp16
from bitsmith.numbers.granularity import PerTensor
from bitsmith.numbers.scheme import Scheme

__all__ = ["WAYS", "Codebook", "Sizes", "clustered", "codebooks", "file_sizes", "float_size"]

#: How an error of a weight counts: all alike, or as the mean square of the input that it meets.
WAYS = ("plain", "weighted")
_WEIGHTED_UP_TO = 5
"""Bits of an index; with more entries both are as good as float, and only time is lost."""


@final
@dataclass(frozen=True)
class Sizes:
    """Bytes of files on disk.

    Attributes:
        packed: the saved model, indices densely packed.
        squeezed: the same through LZMA.
        coded: a file in which the indices are Huffman coded, with everything else.
    """

    packed: int
    squeezed: int
    coded: int


@final
@dataclass(frozen=True, eq=False)
class Codebook:
    """The network with one table for each layer.

    Attributes:
        bits: of an index; the table has ``2^bits`` entries.
        way: one of :data:`WAYS`.
        model: with packed weights.
        evaluation: what it got right.
        against: the same less float, paired.
        sizes: of its files.
    """

    bits: int
    way: str
    model: nn.Module
    evaluation: Evaluation
    against: Difference
    sizes: Sizes

    @property
    def entries(self) -> int:
        """Of each table."""
        return 1 << self.bits


def clustered(module: nn.Module, bits: int, data: list[Tensor] | None) -> nn.Module:
    """Return a copy whose layers have one table of ``2^bits`` float16 entries each, by k-means.

    Args:
        module: float, in evaluation mode.
        bits: of an index.
        data: inputs whose mean squares weigh the errors; None: all count alike.
    """
    scheme = Scheme(LearnedFormat(bits), granularity=PerTensor(), scale_format=fp16)
    recipe = Recipe(f"{1 << bits} entries", (Rule("*", scheme),), None)
    return quantize_weights(module, recipe, data)


def codebooks(
    network: ZooNetwork,
    plain: Evaluation,
    data: list[Tensor],
    widths: tuple[int, ...],
    limit: int | None,
    advance: Callable[[int], None],
) -> Iterator[Codebook]:
    """Yield every width in both ways; ``advance`` is told 1 for each."""
    for bits in widths:
        for way in WAYS:
            if way == "weighted" and bits > _WEIGHTED_UP_TO:
                advance(1)
                continue
            model = clustered(network.module, bits, data if way == "weighted" else None)
            found = network.judge(f"{way} {bits}", "codebook", model, limit)
            yield Codebook(bits, way, model, found, difference(found, plain), file_sizes(model))
            advance(1)


def file_sizes(model: nn.Module) -> Sizes:
    """Write a model with packed weights in every form, and return what the files take."""
    with tempfile.TemporaryDirectory() as name:
        folder = save(model, Path(name) / "packed")
        content = [p.read_bytes() for p in sorted(folder.iterdir())]
        coded = Path(name) / "coded.safetensors"
        save_file(_coded(model), coded)
        return Sizes(
            sum(map(len, content)), sum(len(lzma.compress(c)) for c in content),
            coded.stat().st_size,
        )  # fmt: skip


def float_size(module: nn.Module) -> Sizes:
    """Write a float module, and return what the file takes; its values have no codes to code."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "float.safetensors"
        save_file({n: t.contiguous() for n, t in module.state_dict().items()}, path)
        size = path.stat().st_size
        return Sizes(size, len(lzma.compress(path.read_bytes())), size)


def _coded(model: nn.Module) -> dict[str, Tensor]:
    """Return everything that is needed to read the model, its indices Huffman coded."""
    found = survey(model)
    tensors = {name: t.detach().contiguous() for name, t in found.tensors.items()}
    for name, weight in found.weights.items():
        q = weight.qtensor()
        stream = huffman_encode(q.codes.to(torch.uint8), 1 << q.scheme.format.bits)
        tensors |= {
            f"{name}/stream": stream.stream,
            f"{name}/lengths": stream.lengths,
            f"{name}/blocks": stream.block_bits,
            f"{name}/count": torch.tensor([stream.count]),
        }
        if q.codebook is not None:
            tensors[f"{name}/table"] = q.codebook.to(torch.float16).contiguous()
    return tensors
