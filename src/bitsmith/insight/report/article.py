"""A page of articles: text, findings, figures and tables, in one file without a network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from bitsmith.errors import InputError
from bitsmith.insight.exhibits import Article, Figure, Table
from bitsmith.insight.report import markup
from bitsmith.insight.report.style import inline_svg

__all__ = ["render_articles"]


def render_articles(title: str, articles: Sequence[Article]) -> str:
    """Return the HTML of a page; with several articles, a list of links comes first.

    Args:
        title: of the page; a page with one article shows that article's own.
        articles: at least one, with different names.

    Raises:
        InputError: no article, or two of one name.
    """
    names = [a.name for a in articles]
    if not names or len(set(names)) < len(names):
        raise InputError(f"a page needs articles of different names, not {names or 'none'}")
    if len(articles) == 1:
        (only,) = articles
        return markup.document(only.title, f"<header><h1>{escape(only.title)}</h1>", *_body(only))
    links = "".join(f'<li><a href="#{a.name}">{escape(a.title)}</a></li>' for a in articles)
    body = [f"<header><h1>{escape(title)}</h1></header><nav><ul>{links}</ul></nav>"]
    for article in articles:
        heading = f'<header><h1 id="{article.name}">{escape(article.title)}</h1>'
        body += [f"<article>{heading}", *_body(article), "</article>"]
    return markup.document(title, *body)


def _body(article: Article) -> list[str]:
    """Return everything below the heading, which is left open."""
    parts = [f"{markup.paragraph(article.text)}</header>"]
    if article.findings:
        parts.append(markup.section("What this run shows", markup.listing(article.findings)))
    parts += [_figure(article.name, figure) for figure in article.figures]
    parts += [_table(table) for table in article.tables]
    if article.skipped:
        parts.append(markup.section("Left out", markup.listing(article.skipped)))
    if article.about:
        parts.append(markup.section("How it was made", markup.facts(article.about)))
    return parts


def _figure(place: str, figure: Figure) -> str:
    label = f"{figure.title} ({place}, figure {figure.name})"
    svg = inline_svg(figure.draw, figure.size, label)
    return markup.section(figure.title, markup.figure(svg, figure.caption))


def _table(table: Table) -> str:
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return markup.section(table.title, markup.table(table.columns, table.rows), note)
