"""Learned tables that keep training: clusters are preserved, their entries move."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from bitsmith.model.module_qat.levels import in_format, not_finite
from bitsmith.model.module_qat.quantizer import WeightQuantizer
from bitsmith.numbers.codebooks import cluster, nearest_entries
from bitsmith.numbers.formats.codebook import LearnedFormat
from bitsmith.numbers.granularity import blocked
from bitsmith.numbers.qtensor import QTensor
from bitsmith.numbers.scheme import Scheme
from bitsmith.numbers.straight_through import gradient_factor, scaled_gradient, straight_through

__all__ = ["Codebook"]


@final
class Codebook(WeightQuantizer, name="codebook"):
    """Every weight is the nearest entry of its group's table, and the table is trained.

    The gradient of an entry is the sum of its members' (Deep Compression, arXiv:1510.00149,
    section 3.2) times ``1 / √n``, n the members that an entry has on average: the rule of learned
    steps, without which a learning rate that suits the weights makes the tables diverge. A weight
    gets its own gradient straight through, so that it can move to another cluster. It starts with
    k-means, and the number of clusters never changes.
    """

    learn = "lsq"
    group: Tensor

    @classmethod
    def refusal(cls, scheme: Scheme) -> str:
        return "" if scheme.learned else f"{scheme.format.name} has no table to learn"

    def start(self, flat: Tensor) -> None:
        found = cluster(flat, self.current)
        assert found.codebook is not None
        self.parameter("table", found.codebook)
        shape = found.codes.shape
        wide, narrow = blocked(shape, self.layout.groups)
        index = torch.arange(self.layout.count, device=flat.device)
        index = index.reshape(narrow).expand(wide).reshape(shape)
        self.register_buffer("group", index.clone(), persistent=False)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # PyTorch leaves it untyped
    def values(self, flat: Tensor) -> Tensor:
        table = self._table()
        if not_finite(table.detach()) or not_finite(flat.detach()):
            return flat * torch.nan
        entries = table.shape[1]
        place = self.group * entries + self._codes(flat.detach(), table.detach())
        found = table.reshape(-1, *table.shape[2:])[place].reshape(flat.shape)
        return straight_through(found, flat)

    @torch.no_grad()
    def qtensor(self, flat: Tensor) -> QTensor:
        table, groups = self._table(), self.layout.groups
        ones = torch.ones(groups, device=flat.device)
        zero = torch.zeros(groups, dtype=torch.int32, device=flat.device)
        stored = table.reshape(*groups, *table.shape[1:])
        return QTensor(self._codes(flat, table), ones, zero, stored, self.current)

    def collapsed(self) -> int:
        return 0

    def hold(self, flat: Tensor) -> None:
        """Keep the table; it is a parameter, which stops to train."""

    def _table(self) -> Tensor:
        """Return the tables as they are deployed, ascending: ``[groups, entries]``, or vectors."""
        number = self.current.format
        assert isinstance(number, LearnedFormat)
        vector = [number.dimension] if number.dimension > 1 else []
        factor = gradient_factor(self.layout.members >> number.bits, 1.0)
        table = scaled_gradient(self.get_parameter("table").float(), factor)
        table = table.reshape(self.layout.count, 1 << number.bits, *vector)
        if not vector:
            table = table.sort(1).values
        return in_format(table, self.current.scale_format) + 0.0

    def _codes(self, flat: Tensor, table: Tensor) -> Tensor:
        tables = table.reshape(*self.layout.groups, *table.shape[1:])
        return nearest_entries(flat, tables, self.current)
