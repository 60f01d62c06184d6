"""The few pieces of HTML that the page is made of; every text is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = [
    "document",
    "facts",
    "figure",
    "folded",
    "listing",
    "paragraph",
    "section",
    "table",
    "tiles",
]


def document(title: str, *body: str, style: str = "") -> str:
    """Return a whole page; ``body`` is HTML, ``style`` CSS on top of that of every page."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} – bitsmith</title><style>{_STYLE}{style}</style></head>\n"
        f"<body>{''.join(body)}</body></html>\n"
    )


def paragraph(text: str) -> str:
    """Return a paragraph.

    >>> paragraph("a < b")
    '<p>a &lt; b</p>'
    """
    return f"<p>{escape(text)}</p>"


def section(title: str, *parts: str, level: int = 2) -> str:
    """Return a section under a heading of that level; ``parts`` is HTML."""
    return f"<section><h{level}>{escape(title)}</h{level}>{''.join(parts)}</section>"


def figure(svg: str, caption: str = "") -> str:
    """Return a figure of an SVG element, with a caption."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><div class="scroll">{svg}</div>{below}</figure>'


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, fold: bool = False) -> str:
    """Return a table; columns that begin with ``>`` are numbers; ``fold`` hides it at first."""
    kinds = [' class="n"' if c.startswith(">") else "" for c in columns]
    head = "".join(
        f"<th{k}>{escape(c.removeprefix('>'))}</th>" for c, k in zip(columns, kinds, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f"<td{k}>{escape(cell)}</td>" for cell, k in zip(row, kinds, strict=True))
        + "</tr>"
        for row in rows
    )
    whole = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    whole = f'<div class="scroll">{whole}</div>'
    return folded("as a table", whole) if fold else whole


def folded(summary: str, inside: str) -> str:
    """Return HTML that is hidden until its summary is clicked.

    >>> folded("a < b", "<p>c</p>")
    '<details><summary>a &lt; b</summary><p>c</p></details>'
    """
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>"


def listing(items: Iterable[str]) -> str:
    """Return sentences as a list.

    >>> listing(["a < b"])
    '<ul><li>a &lt; b</li></ul>'
    """
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Return names and values."""
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs)
    return f"<dl>{items}</dl>"


def tiles(items: Iterable[tuple[str, str, str]]) -> str:
    """Return headline numbers: what, the number, what to compare it with."""
    cells = "".join(
        f'<div class="tile"><span>{escape(what)}</span><strong>{escape(number)}</strong>'
        f"<small>{escape(beside)}</small></div>"
        for what, number, beside in items
    )
    return f'<div class="tiles">{cells}</div>'


_STYLE = """
:root { color-scheme: light dark; --paper: #fcfcfb; --card: #f3f3f0; --ink: #1a1b1e;
  --muted: #5c5f66; --line: #d4d5d2; --first: #0072b2; --second: #c25000;
  --third: #00795c; --fourth: #ad5389; --fifth: #857000; }
@media (prefers-color-scheme: dark) { :root { --paper: #17181b; --card: #212327; --ink: #ececea;
  --muted: #a3a6ad; --line: #3a3d43; --first: #56b4e9; --second: #e69f00;
  --third: #35c8a0; --fourth: #e394c4; --fifth: #f0e442; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem clamp(1rem, 4vw, 3rem) 4rem; max-width: 68rem;
  background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.75rem 0 .5rem; padding-top: .75rem;
  border-top: 1px solid var(--line); }
h3 { font-size: .95rem; margin: 1.5rem 0 .25rem; }
p { margin: .4rem 0; max-width: 46rem; } ul { max-width: 46rem; padding-left: 1.2rem; }
li { margin: .25rem 0; }
header p, figcaption, small, dt, .note, .tile span { color: var(--muted); }
.key i { display: inline-block; width: .8em; height: .8em; border-radius: .2em;
  margin: 0 .35em 0 0; } .key span { margin-right: 1.2em; color: var(--ink); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11.5rem, 1fr));
  gap: .75rem; margin: 1.25rem 0; }
.tile { background: var(--card); border-radius: .5rem; padding: .75rem 1rem; display: flex;
  flex-direction: column; }
.tile strong { font-size: 1.55rem; line-height: 1.3; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
  gap: 1.5rem; align-items: start; }
.many { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr));
  gap: 1rem; } .many figure { background: var(--card); border-radius: .5rem; padding: .6rem; }
.many b { font-size: .8rem; overflow-wrap: anywhere; }
figure { margin: .75rem 0; } figcaption, .note { font-size: .8rem; }
svg { display: block; max-width: 100%; height: auto; } svg text { font-family: inherit !important; }
figure > .scroll > svg { min-width: 27rem; }
.many figure > .scroll > svg { min-width: 0; width: 100%; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .83rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .22rem .9rem .22rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; } th { color: var(--muted); font-weight: 600; }
th.n, td.n { text-align: right; } th.n, td.n, td:first-child { white-space: nowrap; }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .2rem 1.25rem;
  font-size: .88rem; } dd { margin: 0; overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--muted); margin: .5rem 0; }
@media (max-width: 34rem) { dl { grid-template-columns: minmax(0, 1fr); }
  dd { margin-bottom: .4rem; } }
@media print { body { max-width: none; } details { display: none; } }
"""
