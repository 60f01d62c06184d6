"""The page: self-contained, well-formed, escaped, complete."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from torch import nn

from bitsmith.cli.output import progress
from bitsmith.data import Split
from bitsmith.deploy.export import export
from bitsmith.insight.assessment import assess
from bitsmith.insight.report import write_report
from bitsmith.model.ptq import ptq

EVIL = "<script>alert('x')</script> & \"co\""
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Checker(HTMLParser):
    """Every element is closed, no identifier twice, nothing is loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for key, value in attrs:
            if key == "id":
                assert value not in self.ids, f"identifier {value} twice"
                self.ids.add(value)
            if key in ("src", "href", "xlink:href"):
                assert value.startswith("#"), f"{tag} loads {value}"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()


def made(tmp_path, labels: bool):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((80, 1, 8, 8)).astype(np.float32)
    y = generator.integers(0, 3, 80) if labels else None
    split = Split("d", "test", x, y)
    model = ptq(network(), "W8A8", Split("d", "train", x, y).batches(16))
    model.provenance["model"] = EVIL
    path = export(model, tmp_path / "m.onnx")
    found = assess(model, path, split.batches(40), name=EVIL, stage=progress, latency_repeats=3)
    about = {"dataset": EVIL, "split": "test", "data_sha256": split.sha256}
    write_report(tmp_path / "r.html", model, found, about)
    return (tmp_path / "r.html").read_text(encoding="utf-8"), found, model, about


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return made(tmp_path_factory.mktemp("report"), labels=True)


def test_is_well_formed_and_self_contained(report):
    page = report[0]
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert "script" not in checker.tags
    assert not re.search(r"@import|url\((?!#)", page)
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page


def test_escapes_every_name(report):
    page = report[0]
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_colours_come_from_the_page(report):
    figures = "".join(re.findall(r"<svg.*?</svg>", report[0], flags=re.DOTALL))
    assert "var(--first)" in figures
    assert "var(--second)" in figures
    fixed = set(re.findall(r"#[0-9a-fA-F]{6}\b", figures)) - {"#ffffff", "#000000"}
    assert not fixed


def test_says_what_was_measured(report):
    page, found, model, _ = report
    for text in (
        f"{found.quantized.accuracy:.2f} %",
        f"{found.float32.bytes:,}",
        f"{found.quantized.bytes:,}",
        "QLinearConv",
        "share of MACs",
        "isolated values",
        "zero point",
        "What the file computes equals the simulation",
        "machine",
    ):
        assert text in page
    # accuracy, cost, layer error; one figure per weight and per activation
    expected = 3 + len(found.weights) + len(found.errors)
    assert page.count("<svg") == expected
    assert len(found.weights) == len(model.program.layers)


def test_records_of_an_assessment(report):
    _, found, model, about = report
    records = [r.to_json() for r in found.records(model, about)]
    ours = [r for r in records if r.get("metric") == "accuracy" and r["method"] == "ptq"]
    assert len(ours) == 1
    assert ours[0]["delta"] == pytest.approx(found.against.delta)
    assert [r["value"] for r in records if r.get("metric") == "sqnr"] == [
        e.sqnr for e in found.errors
    ]


def test_same_input_gives_the_same_figures(report, tmp_path):
    def weights(page: str) -> str:
        return page[page.index("<h2>Weights") : page.index("<h2>Machine")]

    assert weights(made(tmp_path, labels=True)[0]) == weights(report[0])


def test_without_labels(tmp_path):
    page, found, _, _ = made(tmp_path, labels=False)
    assert found.quantized.accuracy is None
    assert "no labels" in page
    Checker().feed(page)
