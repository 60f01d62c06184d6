"""Articles in files: what was kept comes back, or says why not."""

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from bitsmith.errors import DataError, InputError
from bitsmith.insight.exhibits import Article, Figure, Picture, Table
from bitsmith.insight.measure import Record
from bitsmith.insight.report.article import drawn, render_articles
from bitsmith.insight.report.collection import Absent, Collection, render_collection
from bitsmith.insight.report.kept import Kept, keep, read_kept
from bitsmith.insight.report.surroundings import changes, source_digest, surroundings

EVIL = "<script>alert('é')</script> & \"co\""


def draw(canvas):
    canvas.subplots().plot([0, 1], [0, 1])


def article(name="one", rows=2):
    table = Table(EVIL, ["name", ">value"], [[EVIL, str(i)] for i in range(rows)], EVIL)
    figure = Figure("line", EVIL, EVIL, draw)
    return Article(name, EVIL, EVIL, (EVIL,), (figure,), (table,), (EVIL,), ((EVIL, EVIL),))


def kept(**changed):
    records = (Record(metric="mae", value=0.1 + 0.2, n=3), Record(outcome="left out"))
    made = {"options": {"seed": 0, "quick": True}, "files": {"a": [1, 2]}}
    return dataclasses.replace(Kept(drawn(article()), records, made, "today", 1.5), **changed)


def test_what_was_kept_comes_back(tmp_path):
    path = tmp_path / "new" / "folder" / "one.json"
    keep(path, kept())
    assert read_kept(path) == kept()
    assert [p.name for p in path.parent.iterdir()] == ["one.json"]
    keep(path, kept(seconds=2.0))
    assert read_kept(path).seconds == 2.0


def test_a_page_of_what_was_kept_is_that_of_what_was_made(tmp_path):
    keep(tmp_path / "one.json", kept())
    back = read_kept(tmp_path / "one.json").article
    assert all(isinstance(figure, Picture) for figure in back.figures)
    assert render_articles("Page", [back]) == render_articles("Page", [article()])


def test_figures_that_are_not_drawn_cannot_be_kept(tmp_path):
    with pytest.raises(TypeError):
        keep(tmp_path / "one.json", kept(article=article()))
    assert list(tmp_path.iterdir()) == []


def test_none_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_kept(tmp_path / "none.json")


def test_of_this_version_with_other_fields(tmp_path, monkeypatch):
    """Between two releases a class may have other fields."""

    @dataclasses.dataclass(frozen=True)
    class Fewer:
        article: object

    keep(tmp_path / "one.json", kept())
    monkeypatch.setattr("bitsmith.insight.report.kept.Picture", Fewer)
    with pytest.raises(DataError, match="another form"):
        read_kept(tmp_path / "one.json")


def test_what_a_result_depends_on(tmp_path, monkeypatch):
    monkeypatch.setenv("BITSMITH_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "a.npz").write_bytes(b"1")
    (tmp_path / "cache" / "bitsmith" / "trained").mkdir(parents=True)
    then = surroundings()
    assert set(then["files"]) == {str(tmp_path / "a.npz")}
    assert {"torch", "numpy", "onnxruntime"} <= set(then["versions"])
    assert "pytest" not in then["versions"]
    assert "pytest" in then["packages"]
    (tmp_path / "cache" / "bitsmith" / "trained" / "net.safetensors").write_bytes(b"1")
    assert surroundings() == then, "what is trained is no data"
    (tmp_path / "b.npz").write_bytes(b"1")
    assert changes(then, surroundings(), whole=True) == ""
    assert str(tmp_path / "b.npz") in changes(then, surroundings(), whole=False)
    (tmp_path / "a.npz").unlink()
    assert changes(then, surroundings(), whole=True) == f"changed since: {tmp_path / 'a.npz'}"
    monkeypatch.setenv("BITSMITH_DATA", str(tmp_path / "none"))
    with pytest.raises(DataError, match="not a folder"):
        surroundings()


def test_another_torch_is_a_change():
    now = surroundings()
    then = {**now, "versions": {**now["versions"], "torch": "0.0.1"}}
    assert changes(then, now, whole=True) == "changed since: torch"


def test_the_source_of_a_class_is_its_file_or_its_package():
    own = source_digest(Kept)
    assert own == source_digest(Kept) != source_digest(Collection) != ""
    assert source_digest(int) == ""


class Page(HTMLParser):
    """Headings in order, identifiers, and everything closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.levels: list[int] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert tag not in ("script", "link", "iframe", "img")
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if tag == "a" else []
        if re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))
        if tag not in ("meta", "br", "path", "use", "rect", "image"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        if "id" in dict(attrs):
            self.ids.append(dict(attrs)["id"])

    def handle_endtag(self, tag):
        if tag not in ("path", "use", "rect", "image"):
            assert self.open.pop() == tag


def collection(*articles, absent=()):
    return Collection(EVIL, EVIL, ((EVIL, EVIL, EVIL),), articles, absent, ((EVIL, EVIL),))


def test_a_page_of_many_is_in_order():
    absent = (Absent(EVIL, EVIL, "failed", EVIL),)
    text = render_collection(collection(article("in-short"), article("contents"), absent=absent))
    page = Page(text)
    assert len(set(page.ids)) == len(page.ids), "names of articles are no names of parts"
    assert {f"#{i}" for i in page.ids} >= set(page.links)
    assert {"#study-in-short", "#study-contents", "#not-here", "#in-short"} <= set(page.links)
    assert page.levels[0] == 1
    assert page.levels.count(1) == 1
    steps = zip(page.levels, page.levels[1:], strict=False)
    assert all(lower <= upper + 1 for upper, lower in steps)
    assert text.count("<svg") == 2
    assert "<script>" not in text


def test_long_tables_are_folded():
    assert "<summary>25 rows</summary>" in render_collection(collection(article(rows=25)))
    assert " rows</summary>" not in render_collection(collection(article(rows=24)))


def test_nothing_but_what_is_absent_is_a_page_too():
    text = render_collection(collection(absent=(Absent("a", "A", "left out", "no data"),)))
    assert "no data" in text
    assert "#in-short" not in Page(text).links
    with pytest.raises(InputError, match="different names"):
        render_collection(collection())
    with pytest.raises(InputError, match="different names"):
        render_collection(collection(article(), article()))
