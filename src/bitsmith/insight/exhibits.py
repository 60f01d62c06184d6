"""What there is to look at, as data: tables, figures, and the article that holds them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from bitsmith.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

__all__ = ["Article", "Figure", "Picture", "Table"]


@final
@dataclass(frozen=True)
class Table:
    """Rows of text under named columns.

    Attributes:
        title: above it.
        columns: names; one that begins with ``>`` is a column of numbers, aligned right.
        rows: cells as they are printed.
        note: below it, for example where a well-known text prints another value.

    Raises:
        InputError: a row has another number of cells than there are columns; all are listed.

    >>> Table("sizes", ("format", ">bits"), [("int8", "8")]).rows
    (('int8', '8'),)
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def __init__(
        self, title: str, columns: Iterable[str], rows: Iterable[Iterable[str]], note: str = ""
    ) -> None:
        object.__setattr__(self, "title", title)
        object.__setattr__(self, "columns", tuple(columns))
        object.__setattr__(self, "rows", tuple(tuple(row) for row in rows))
        object.__setattr__(self, "note", note)
        width = len(self.columns)
        wrong = [f"row {i} has {len(r)}" for i, r in enumerate(self.rows) if len(r) != width]
        if wrong:
            raise InputError(f"table {title!r} has {width} columns, but {', '.join(wrong)} cells")


@final
@dataclass(frozen=True)
class Figure:
    """A picture that can be drawn in any form (page, SVG, PNG).

    Attributes:
        name: in file names: lower-case letters, digits and dashes.
        title: what it shows, in a few words; also read to those who cannot see it.
        caption: how to read it.
        draw: draws on an empty matplotlib figure; with the colours of
            :mod:`bitsmith.insight.report.style`, and without ``pyplot``. It may be called several
            times and draws the same each time.
        size: width and height in inches; 7 wide fills a page's column.

    Raises:
        InputError: a name that is no file name.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Canvas], None]
    size: tuple[float, float] = (7.0, 3.2)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.name):
            raise InputError(f"figure {self.name!r}: a name has letters a-z, digits and dashes")


@final
@dataclass(frozen=True)
class Picture:
    """A figure as it was drawn for a page: it can be kept, and needs nothing to be shown.

    Attributes:
        name, title, caption: of the :class:`Figure`.
        svg: an ``<svg>`` element with the page's colours, as
            :func:`bitsmith.insight.report.style.inline_svg` returns it.
    """

    name: str
    title: str
    caption: str
    svg: str


@final
@dataclass(frozen=True)
class Article:
    """One subject of a page, in the order of its attributes.

    Attributes:
        name: unique on the page; its anchor.
        title: heading.
        text: what it is about, one paragraph.
        findings: what the numbers show, a sentence each.
        figures, tables: what there is to look at.
        skipped: parts that were left out, each with the reason.
        about: how it was made: names and values.
    """

    name: str
    title: str
    text: str
    findings: tuple[str, ...]
    figures: tuple[Figure | Picture, ...]
    tables: tuple[Table, ...]
    skipped: tuple[str, ...] = ()
    about: tuple[tuple[str, str], ...] = ()
