"""The form of a packed weight for this machine: what it is, and which weights have one.

A weight of ``n`` rows and ``k`` columns is codes u in 0 … 2^bits − 1 with

- integers: ``w = scale · (u − zero)``, signed codes and their zero points moved up by 2^(bits−1);
- tables: ``w = scale · table[u]``, one table for all rows or one for each.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import final

from bitsmith.errors import SchemeError
from bitsmith.model.kernels.library import ROWS
from bitsmith.numbers.formats.codebook import LearnedFormat
from bitsmith.numbers.formats.integer import IntegerFormat
from bitsmith.numbers.scheme import Scheme

__all__ = ["INTEGER", "TABLE", "MachineForm", "form_of", "structure"]

INTEGER, TABLE = 0, 1
_FEWEST = 8
"""Columns that share a scale: with fewer the scales are most of the weight."""


@final
@dataclass(frozen=True)
class MachineForm:
    """What a packed weight is: the fields of ``bsk_weight``, in their order.

    Attributes:
        kind: integers (0) or tables (1).
        bits: of a code.
        n, k: rows (outputs) and columns (inputs).
        group: columns that share a scale; ``k`` for one scale a row.
        tables: 1, or ``n`` for one a row; 0 for integers.
        entries: of a table; 0 for integers.
        rows: what it is mostly used for: float rows (0), int8 rows (1), looked up (2).
    """

    kind: int
    bits: int
    n: int
    k: int
    group: int
    tables: int = 0
    entries: int = 0
    rows: int = ROWS["float"]

    @property
    def text(self) -> str:
        """The fields, as operators take them: one argument is quicker than eight."""
        return ",".join(map(str, vars(self).values()))

    @classmethod
    def parse(cls, text: str) -> MachineForm:
        """Return the form of :attr:`text`.

        Raises:
            SchemeError: it is none.
        """
        try:
            return cls(*map(int, text.split(",")))
        except (TypeError, ValueError):
            raise SchemeError(f"a packed weight is described by 8 integers, not {text!r}") from None

    def for_rows(self, rows: str) -> MachineForm:
        """Return the form that is mostly used for one of :data:`ROWS`."""
        return replace(self, rows=ROWS[rows])


class _Weight(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_int32),
        ("bits", ctypes.c_int32),
        ("n", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("group", ctypes.c_int64),
        ("tables", ctypes.c_int64),
        ("entries", ctypes.c_int32),
        ("rows", ctypes.c_int32),
    ]


@lru_cache(maxsize=4096)
def structure(text: str) -> tuple[int, int, int, ctypes.Structure]:
    """Return the address of the ``bsk_weight`` of a form, its n and k, and what keeps it alive.

    Raises:
        SchemeError: the text is of no form.
    """
    form = MachineForm.parse(text)
    narrow = (form.kind, form.bits, form.entries, form.rows)
    if not all(-(1 << 31) <= v < 1 << 31 for v in narrow) or max(form.n, form.k) >= 1 << 62:
        raise SchemeError(f"a packed weight cannot be as large as {text!r} says")
    found = _Weight(*vars(form).values())
    return ctypes.addressof(found), form.n, form.k, found


def form_of(scheme: Scheme, shape: tuple[int, ...]) -> MachineForm | str:
    """Return the form of a weight of ``shape`` ``[n, k]``, or why the kernels have none for it.

    >>> from bitsmith.numbers.formats.integer import int4
    >>> from bitsmith.numbers.scheme import PerGroup
    >>> form_of(Scheme(int4, granularity=PerGroup(64)), (8, 128)).text
    '0,4,8,128,64,0,0,0'
    >>> form_of(Scheme(int4, granularity=PerGroup(4)), (8, 128))
    'scales of 4 columns: at least 8'
    """
    number = scheme.format
    if len(shape) != 2 or not shape[0] or not shape[1]:
        return "no rows and columns"
    if number.bits > 8:
        return f"{number.name} has more than 8 bits"
    if scheme.shifted:
        return "offsets in place of zero points"
    n, k = shape
    across, along = scheme.granularity.scale_shape(shape) or (1, 1)
    if isinstance(number, LearnedFormat):
        if number.dimension > 1:
            return "a table of vectors"
        if along > 1:
            return "tables that share rows"
        return MachineForm(TABLE, number.bits, n, k, k, 1 if across == 1 else n, 1 << number.bits)
    group = k // along
    if group < min(_FEWEST, k):
        return f"scales of {group} columns: at least {_FEWEST}"
    if isinstance(number, IntegerFormat) and scheme.affine:
        return MachineForm(INTEGER, number.bits, n, k, group)
    return MachineForm(TABLE, number.bits, n, k, group, 1, 1 << number.bits)
