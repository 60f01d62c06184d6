"""What every study must do, by being registered."""

import io
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from matplotlib import image

from bitsmith.errors import InputError, UnknownNameError
from bitsmith.insight.measure import envelope
from bitsmith.insight.report.article import render_articles
from bitsmith.insight.report.style import inline_svg, png, standalone_svg
from bitsmith.studies import Options, Study, StudyResult, studies

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Checker(HTMLParser):
    """Every element is closed, no identifier twice, no script, nothing loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.svgs = 0

    def handle_starttag(self, tag, attrs):
        assert tag not in ("script", "link", "iframe", "object", "embed")
        self.svgs += tag == "svg"
        for key, value in attrs:
            if key == "id":
                assert value not in self.ids, f"identifier {value} twice"
                self.ids.add(value)
            if key in ("src", "href", "xlink:href"):
                assert value.startswith(("#", "data:")), f"{tag} loads {value}"
            assert not key.startswith("on")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="session", params=list(studies))
def ran(request) -> tuple[Study, StudyResult]:
    """Additional parts on published data and weights run where they are, and only there."""
    study = studies[request.param]()
    return study, study.run(Options(quick=True))


def test_the_studies_that_there_are():
    assert {"clipping", "codebook", "granularity", "memory", "numbers", "rounding"} <= set(studies)


def test_says_what_it_is_about(ran):
    study, _ = ran
    assert 10 < len(study.title) <= 80
    assert not study.title.endswith(".")
    assert len(study.text) > 60
    assert study.figures


def test_gives_tables_figures_records_and_findings(ran):
    study, result = ran
    assert result.tables
    assert result.figures
    assert {f.name for f in result.figures} <= set(study.figures)
    assert all(table.rows for table in result.tables)
    assert all(re.search(r"\d.*\.$", finding) for finding in result.findings)
    cells = {cell for table in result.tables for row in table.rows for cell in row}
    assert "None" not in cells
    shown = [*cells, *(t.note for t in result.tables), *result.findings]
    assert not [text for text in shown if re.search(r"\b(nan|inf)\b", text)]


def test_records_are_for_programs(ran):
    study, result = ran
    written = json.loads(json.dumps(envelope("study", result.records, 0.0), allow_nan=False))
    for record in written["records"]:
        assert record["study"] == study.name
        assert record["seed"] == 0
        assert isinstance(record.get("weight_bits", 0), int)
    values = [tuple(sorted(record.items())) for record in written["records"]]
    assert len(set(values)) == len(values), "a record twice"


def test_the_same_options_give_the_same_result(ran):
    study, result = ran
    again = study.run(Options(quick=True))
    assert (again.tables, again.records) == (result.tables, result.records)
    assert (again.findings, again.skipped) == (result.findings, result.skipped)
    for one, other in zip(result.figures, again.figures, strict=True):
        assert (one.name, one.caption, one.size) == (other.name, other.caption, other.size)
        drawn = [inline_svg(f.draw, f.size, f.title) for f in (one, one, other)]
        assert drawn[0] == drawn[1] == drawn[2]


def test_every_figure_draws_in_every_form(ran):
    _, result = ran
    for figure in result.figures:
        alone = ElementTree.fromstring(standalone_svg(figure.draw, figure.size))
        assert alone.tag.endswith("svg")
        pixels = image.imread(io.BytesIO(png(figure.draw, figure.size)))
        assert pixels.shape[1] > 500
        assert tuple(pixels[0, 0, :3]) == (1, 1, 1)
        assert pixels[..., :3].std() > 0.02, "an empty picture"
        inside = inline_svg(figure.draw, figure.size, figure.title)
        assert "<text" in inside
        assert "var(--ink)" in inside


def test_the_page_is_whole_and_loads_nothing(ran):
    study, result = ran
    page = render_articles(study.title, [study.article(result, (("command", "<x>"),))])
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    assert checker.svgs == len(result.figures)
    assert "url(http" not in page
    assert "@import" not in page
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page
    assert "&lt;x&gt;" in page


def test_no_study_changes_how_others_draw(ran):
    import matplotlib

    before = dict(matplotlib.rcParams)
    for figure in ran[1].figures:
        png(figure.draw, figure.size)
    assert dict(matplotlib.rcParams) == before


def test_a_data_set_for_a_study_that_takes_none_is_refused(ran):
    study, _ = ran
    if study.dataset is not None:
        return
    with pytest.raises(InputError, match="takes no data set, but 'digits'"):
        study.run(Options(dataset="digits"))


def test_an_unknown_study_is_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'memory'"):
        studies["memry"]


def test_all_studies_share_one_page():
    chosen = [studies[name]() for name in ("memory", "numbers")]
    page = render_articles("Two", [s.article(s.run(Options(quick=True))) for s in chosen])
    checker = Checker()
    checker.feed(page)
    assert {"memory", "numbers"} <= checker.ids
    assert not checker.open
    with pytest.raises(InputError, match="different names"):
        render_articles("Twice", [chosen[0].article(chosen[0].run())] * 2)
