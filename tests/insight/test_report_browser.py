"""The page of several studies in a real browser, without a network: Chromium through its pipe."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bitsmith.insight.report.article import drawn
from bitsmith.insight.report.collection import Absent, Collection, render_collection
from bitsmith.studies import Options, studies

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
STUDIES = ("memory", "numbers", "one-weight")
PATIENCE = 120.0
#: Becomes the program of its third argument, with the pipes of the first two as 3 and 4.
ON_3_AND_4 = """import os, sys
down, up = (os.dup2(int(a), 100 + i) for i, a in enumerate(sys.argv[1:3]))
os.dup2(down, 3), os.dup2(up, 4)
os.closerange(5, 200)
os.execv(sys.argv[3], sys.argv[3:])"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


class Browser:
    """A headless Chromium, told what to do in its own protocol over file descriptors 3 and 4."""

    def __init__(self, profile: Path) -> None:
        down, up = os.pipe(), os.pipe()
        self._out, self._in = down[1], up[0]
        command = [sys.executable, "-c", ON_3_AND_4, str(down[0]), str(up[1])]
        command += [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu"]
        command += ["--disable-dev-shm-usage", "--no-first-run", "--remote-debugging-pipe"]
        command += ["--disable-background-networking", f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            command, pass_fds=(down[0], up[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(down[0])
        os.close(up[1])
        self._buffer, self._number = b"", 0
        self.events: list[dict] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = None
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    _session: str | None = None

    def _message(self) -> dict:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "Chromium does not answer"
            part = os.read(self._in, 1 << 20)
            assert part, "Chromium has ended"
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(text)

    def call(self, method: str, **params: object) -> dict:
        """Return what Chromium answers; what it tells meanwhile is among the events."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._message()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, path: Path, width: int, scheme: str) -> None:
        """Show a file on a screen of that width, in ``light`` or ``dark``."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=800, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=media)
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self._message())

    def ask(self, expression: str) -> object:
        """Return the value of a JavaScript expression on the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def close(self) -> None:
        self._session = None
        self.call("Browser.close")
        self._process.wait(PATIENCE)
        os.close(self._out)
        os.close(self._in)

    def complaints(self) -> list[object]:
        """Return errors and warnings of the console since the page was opened."""
        found: list[object] = []
        for event in self.events:
            params = event.get("params", {})
            kind = event.get("method")
            if kind == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(params["entry"])
            if kind == "Runtime.exceptionThrown":
                found.append(params)
            if kind == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
                found.append(params)
        return found

    def requests(self) -> list[str]:
        sent = [e for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [e["params"]["request"]["url"] for e in sent]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    made = Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def articles():
    chosen = [studies[name]() for name in STUDIES]
    about = (("command", "bitsmith study …"), ("hash", "0123456789abcdef" * 16))
    return [drawn(s.article(s.run(Options(quick=True)), about)) for s in chosen]


@pytest.fixture(scope="module")
def page(articles, tmp_path_factory):
    absent = (Absent("cnn", "A network", "left out", "no data in /" + "very-long-name" * 12),)
    tiles = (("studies", "3", "of 4"), ("figures", "3", "drawn"))
    text = render_collection(Collection("Page", "Lead.", tiles, tuple(articles), absent))
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


WIDTHS = [(360, "light"), (360, "dark"), (800, "light"), (1440, "light"), (1440, "dark")]

#: What sticks out of the screen although it is in no box that scrolls.
STICKING_OUT = """[...document.querySelectorAll('body *')].filter(e =>
    !e.closest('.scroll') && e.getBoundingClientRect().right > innerWidth + 0.5)
    .map(e => e.tagName + '.' + e.className + ' ' + e.textContent.slice(0, 40))"""
FIGURES = """[...document.querySelectorAll('figure svg')].map(e => {
    const box = e.getBoundingClientRect(); return [box.width, box.height] })"""
#: Contrast of text against what is behind it, as WCAG 2 computes it, of every kind of text.
CONTRAST = """(() => {
    const channel = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4
    const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number)
        return 0.2126 * channel(r/255) + 0.7152 * channel(g/255) + 0.0722 * channel(b/255) }
    const behind = e => { for (; e; e = e.parentElement) {
        const c = getComputedStyle(e).backgroundColor
        if (!/, 0\\)/.test(c)) return c } return 'rgb(255, 255, 255)' }
    const worst = {}
    for (const e of document.querySelectorAll('p, li, a, th, td, h1, h2, h3, dt, dd, svg text,'
            + ' small, figcaption, .tile span, strong, em, code, summary')) {
        if (e instanceof SVGElement && e.style.fill.includes('paper')) continue  // upon a bar
        const own = e instanceof SVGElement ? getComputedStyle(e).fill : getComputedStyle(e).color
        const a = light(own), b = light(behind(e.parentElement))
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)
        worst[e.tagName] = Math.min(worst[e.tagName] ?? 99, ratio) }
    return worst })()"""


@pytest.mark.parametrize(("width", "scheme"), WIDTHS)
def test_nothing_complains_loads_or_sticks_out_and_every_figure_is_seen(
    browser, page, articles, width, scheme
):
    browser.open(page, width, scheme)
    assert browser.ask("innerWidth") == width
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.ask(STICKING_OUT) == []
    sizes = browser.ask(FIGURES)
    assert len(sizes) == sum(len(a.figures) for a in articles)
    assert all(wide >= 300 and high >= 80 for wide, high in sizes)
    assert browser.ask("document.querySelectorAll('article').length") == len(articles)
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_light_and_dark(browser, page, scheme):
    browser.open(page, 1440, scheme)
    dark = browser.ask("getComputedStyle(document.body).backgroundColor") == "rgb(23, 24, 27)"
    assert dark == (scheme == "dark")
    contrast = browser.ask(CONTRAST)
    assert {"P", "TD", "text", "A"} <= set(contrast)
    assert all(ratio >= 4.5 for ratio in contrast.values()), contrast


def test_wide_tables_scroll_in_a_box_of_their_own(browser, page):
    browser.open(page, 360, "light")
    wide = browser.ask(
        "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
        ".map(e => getComputedStyle(e).overflowX)"
    )
    assert wide
    assert set(wide) == {"auto"}


def test_contents_lead_to_every_study_and_stay_in_sight_on_wide_screens(browser, page):
    browser.open(page, 1440, "light")
    missing = browser.ask(
        "[...document.querySelectorAll('a')].map(a => a.getAttribute('href'))"
        ".filter(h => h[0] != '#' || !document.getElementById(h.slice(1)))"
    )
    assert missing == []
    browser.ask("document.getElementById('study-one-weight').scrollIntoView()")
    top = browser.ask("document.getElementById('contents').getBoundingClientRect().top")
    assert 0 <= top < 100
    browser.open(page, 360, "light")
    assert browser.ask("document.getElementById('contents').getBoundingClientRect().width") < 360


def test_the_console_is_really_read(browser, page, tmp_path):
    """A page with faults is found out: an error, a warning, something loaded, something wide."""
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<p style='width:900px'>wide</p><img src='none.png'>"
        "<script>console.warn('w'); throw new Error('e')</script>"
    )
    browser.open(bad, 360, "light")
    assert len(browser.complaints()) >= 2
    assert any(url.endswith("none.png") for url in browser.requests())
    assert browser.ask(STICKING_OUT) != []
