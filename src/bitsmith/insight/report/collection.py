"""One page of many articles: contents beside them, what they show in short, then each of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import final

from bitsmith.insight.exhibits import Article
from bitsmith.insight.report import markup
from bitsmith.insight.report.article import article_body, check_names

__all__ = ["Absent", "Collection", "render_collection"]

_LONG = 24
"""Tables of more rows are folded."""
_SHORT = 110
"""A finding of fewer letters leaves room for another on its card."""


@final
@dataclass(frozen=True)
class Absent:
    """What should be on the page and is not.

    Attributes:
        name, title: of the article there would be.
        outcome: ``"left out"`` or ``"failed"``.
        reason: why.
    """

    name: str
    title: str
    outcome: str
    reason: str


@final
@dataclass(frozen=True)
class Collection:
    """A page of articles.

    Attributes:
        title: of the page.
        lead: what it is, one paragraph.
        tiles: headline numbers: what, the number, what to know beside it.
        articles: in the order of the page, with different names.
        absent: what is not among them, with the reason.
        about: how the page was made: names and values.
    """

    title: str
    lead: str
    tiles: tuple[tuple[str, str, str], ...]
    articles: tuple[Article, ...]
    absent: tuple[Absent, ...] = ()
    about: tuple[tuple[str, str], ...] = ()


def render_collection(page: Collection) -> str:
    """Return the HTML of the page: one file that loads nothing and runs no script.

    Raises:
        InputError: two articles of one name, or neither an article nor anything absent.
    """
    if page.articles or not page.absent:
        check_names(page.articles)
    body = [
        '<div class="book">',
        f'<header id="top"><h1>{escape(page.title)}</h1>{markup.paragraph(page.lead)}'
        f"{markup.tiles(page.tiles)}</header>",
        _contents(page),
        "<main>",
        _summary(page.articles),
        *(_absent(page.absent) if page.absent else []),
        *(part for article in page.articles for part in _article(article)),
        f'<section class="origin"><h2 id="how-it-was-made">{_MADE}</h2>',
        f"{markup.facts(page.about)}</section></main></div>",
    ]
    return markup.document(page.title, *body, style=_STYLE)


_MADE = "How this page was made"
_SUMMARY = "What the studies show, in short"
_ABSENT = "Not on this page"


def _contents(page: Collection) -> str:
    links = [("in-short", _SUMMARY)] if page.articles else []
    links += [("not-here", _ABSENT)] if page.absent else []
    links += [(_anchor(a), a.title) for a in page.articles]
    links.append(("how-it-was-made", _MADE))
    items = "".join(f'<li><a href="#{a}">{escape(text)}</a></li>' for a, text in links)
    return f'<nav id="contents" aria-label="Contents"><b>Contents</b><ul>{items}</ul></nav>'


def _anchor(article: Article) -> str:
    """Return an identifier of the page: names of articles may be those of its own parts."""
    return f"study-{article.name}"


def _summary(articles: Sequence[Article]) -> str:
    """Return a card for each article, with the first of its findings; two if that is short."""
    cards = "".join(
        f'<li><a href="#{_anchor(a)}">{escape(a.title)}</a>'
        f"{''.join(markup.paragraph(f) for f in _first(a.findings))}</li>"
        for a in articles
    )
    whole = f'<h2 id="in-short">{_SUMMARY}</h2><ul class="cards">{cards}</ul>'
    return f"<section>{whole}</section>" if articles else ""


def _first(findings: Sequence[str]) -> Sequence[str]:
    return findings[: 2 if findings and len(findings[0]) < _SHORT else 1]


def _absent(absent: Iterable[Absent]) -> list[str]:
    items = "".join(
        f"<li><b>{escape(a.title)}</b> <code>{escape(a.name)}</code>: "
        f"<em>{escape(a.outcome)}</em>. {escape(a.reason)}</li>"
        for a in absent
    )
    return [f'<section><h2 id="not-here">{_ABSENT}</h2><ul class="absent">{items}</ul></section>']


def _article(article: Article) -> list[str]:
    heading = (
        f'<header><h2 id="{_anchor(article)}"><code>{escape(article.name)}</code> '
        f"{escape(article.title)}</h2>"
    )
    top = '<p class="up"><a href="#contents">Contents</a></p>'
    return [
        f"<article>{heading}{markup.paragraph(article.text)}</header>",
        *article_body(article, level=3, long=_LONG),
        f"{top}</article>",
    ]


_STYLE = """
body { max-width: 84rem; } html { scroll-padding-top: 1rem; }
.book { display: grid; grid-template-columns: minmax(0, 1fr); column-gap: 3rem; }
.book p, .book ul { max-width: 50rem; } .book li, .book p, .book a { overflow-wrap: anywhere; }
.book > header h1 { font-size: clamp(1.6rem, 5vw, 2.3rem); letter-spacing: -.015em; }
.book a { color: var(--first); text-decoration: none; }
.book a:hover, .book a:focus-visible { text-decoration: underline; }
#contents { background: var(--card); border-radius: .6rem; padding: .9rem 1.1rem; }
#contents ul { list-style: none; margin: .4rem 0 0; padding: 0; font-size: .87rem; }
#contents li { margin: .4rem 0; line-height: 1.35; } #contents a { color: inherit; }
main h2 { font-size: 1.45rem; line-height: 1.25; letter-spacing: -.01em; margin-top: 3.5rem;
  padding-top: 1.4rem; border-top: 2px solid var(--line); }
main h2 code { display: block; font-size: .8rem; font-weight: 400; letter-spacing: 0;
  color: var(--muted); } main h3 { font-size: 1rem; margin: 2rem 0 .4rem; }
.book .cards { list-style: none; padding: 0; max-width: none; display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); }
.cards li { background: var(--card); border-radius: .6rem; padding: .8rem 1rem; margin: 0; }
.cards a { font-weight: 600; line-height: 1.3; display: block; }
.cards p { font-size: .87rem; }
.findings { border-left: 3px solid var(--first); padding: .1rem 0 .1rem 1.1rem;
  margin: 1.2rem 0; } .findings h3 { margin: .2rem 0 .3rem; }
article figure { margin: .5rem 0 1rem; } .absent em { font-style: normal; color: var(--second); }
.absent code { color: var(--muted); } .up { font-size: .8rem; margin-top: 1.2rem; }
@media (min-width: 68rem) {
  .book { grid-template-columns: 16rem minmax(0, 1fr); grid-template-rows: auto 1fr; }
  .book > header { grid-column: 2; } main { grid-column: 2; } .up { display: none; }
  #contents { grid-column: 1; grid-row: 1 / span 2; align-self: start; position: sticky;
    top: 1.5rem; max-height: calc(100vh - 3rem); overflow-y: auto; } }
@media (min-width: 80rem) { article figure svg { zoom: 1.15; } }
@media (max-width: 34rem) { .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .findings { padding-left: .7rem; } main h2 { font-size: 1.3rem; } }
@media print { #contents, .up { display: none; } article { break-before: page; } }
"""
