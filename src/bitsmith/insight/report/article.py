"""A page of articles: text, findings, figures and tables, in one file without a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from html import escape

from bitsmith.errors import InputError
from bitsmith.insight.exhibits import Article, Figure, Picture, Table
from bitsmith.insight.report import markup
from bitsmith.insight.report.style import inline_svg

__all__ = ["article_body", "check_names", "drawn", "render_articles"]


def render_articles(title: str, articles: Sequence[Article]) -> str:
    """Return the HTML of a page; with several articles, a list of links comes first.

    Args:
        title: of the page; a page with one article shows that article's own.
        articles: at least one, with different names.

    Raises:
        InputError: no article, or two of one name.
    """
    check_names(articles)
    if len(articles) == 1:
        (only,) = articles
        heading = f"<header><h1>{escape(only.title)}</h1>{markup.paragraph(only.text)}</header>"
        return markup.document(only.title, heading, *article_body(only))
    links = "".join(f'<li><a href="#{a.name}">{escape(a.title)}</a></li>' for a in articles)
    body = [f"<header><h1>{escape(title)}</h1></header><nav><ul>{links}</ul></nav>"]
    for article in articles:
        heading = f'<header><h1 id="{article.name}">{escape(article.title)}</h1>'
        body += [f"<article>{heading}{markup.paragraph(article.text)}</header>"]
        body += [*article_body(article), "</article>"]
    return markup.document(title, *body)


def check_names(articles: Sequence[Article]) -> None:
    """Refuse articles that cannot share a page.

    Raises:
        InputError: there is none, or two have one name.
    """
    names = [a.name for a in articles]
    if not names or len(set(names)) < len(names):
        raise InputError(f"a page needs articles of different names, not {names or 'none'}")


def article_body(article: Article, *, level: int = 2, long: int | None = None) -> list[str]:
    """Return the HTML of everything below an article's heading and text.

    Args:
        article: what to show.
        level: of its headings.
        long: tables of more rows are folded, and so is how it was made; None: nothing is.
    """
    parts = []
    if article.findings:
        findings = markup.section(
            "What this run shows", markup.listing(article.findings), level=level
        )
        parts.append(f'<div class="findings">{findings}</div>')
    parts += [_figure(article.name, figure, level) for figure in article.figures]
    parts += [_table(table, level, long) for table in article.tables]
    if article.skipped:
        parts.append(markup.section("Left out", markup.listing(article.skipped), level=level))
    if article.about:
        facts = markup.facts(article.about)
        made = "How it was made"
        whole = markup.section(made, facts, level=level)
        parts.append(whole if long is None else markup.folded(made, facts))
    return parts


def drawn(article: Article) -> Article:
    """Return the article with its figures drawn, so that it can be kept."""
    pictures = tuple(_picture(article.name, figure) for figure in article.figures)
    return replace(article, figures=pictures)


def _picture(place: str, figure: Figure | Picture) -> Picture:
    if isinstance(figure, Picture):
        return figure
    label = f"{figure.title} ({place}, figure {figure.name})"
    svg = inline_svg(figure.draw, figure.size, label)
    return Picture(figure.name, figure.title, figure.caption, svg)


def _figure(place: str, figure: Figure | Picture, level: int) -> str:
    shown = markup.figure(_picture(place, figure).svg, figure.caption)
    return markup.section(figure.title, shown, level=level)


def _table(table: Table, level: int, long: int | None) -> str:
    whole = markup.table(table.columns, table.rows)
    if long is not None and len(table.rows) > long:
        whole = markup.folded(f"{len(table.rows)} rows", whole)
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return markup.section(table.title, whole, note, level=level)
