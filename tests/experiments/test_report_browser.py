"""The page of ``sbrrt-fast report`` in a browser: widths, colours, console, requests, print."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sbrrt_fast.cli import main
from tests.experiments.chromium import PROGRAM, Page, browser
from tests.experiments.made_up_run import made_up_run

pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="there is no Chromium; `apt-get install chromium` installs it"
)

WIDTHS = (360, 390, 1280)
# Elements with words of their own whose contrast with what is behind them is too low (WCAG 2.2:
# 4.5, and 3 for large ones): [text, contrast].
LOW_CONTRAST = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const over = (top, below) => {
    const a = top[3] / 255;
    return [0, 1, 2].map((i) => top[i] * a + below[i] * (1 - a)).concat(255);
  };
  const behind = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement)
      layers.push(rgba(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 255]);
  };
  const luminance = (color) => {
    const [r, g, b] = color.slice(0, 3).map((v) => v / 255)
      .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => {
    const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.closest('desc, title')) continue;
    const style = getComputedStyle(e), paper = behind(e);
    const color = over(rgba(e.closest('svg') ? style.fill : style.color), paper);
    const needed = parseFloat(style.fontSize) >= 24 ? 3 : 4.5;
    if (contrast(color, paper) < needed)
      found.push([e.textContent.trim().slice(0, 40), contrast(color, paper)]);
  }
  return found;
})()
"""
# Marks of pictures whose contrast with the page is below 3.
FAINT_MARKS = LOW_CONTRAST.replace("'body *'", "'svg .curve, svg .dot, svg .whisker, svg .bar'")
FAINT_MARKS = FAINT_MARKS.replace("if (!own || e.closest('desc, title')) continue;", "")
FAINT_MARKS = FAINT_MARKS.replace(
    "e.closest('svg') ? style.fill : style.color",
    "style.fill === 'none' || e.tagName === 'line' ? style.stroke : style.fill",
).replace("parseFloat(style.fontSize) >= 24 ? 3 : 4.5", "3")
TOO_WIDE = """
[...document.querySelectorAll('body *')]
  .filter((e) => !e.closest('.scroll *, svg *, .hidden'))
  .filter((e) => e.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5)
  .map((e) => e.outerHTML.slice(0, 80))
"""
SMALLEST_LETTERS = """
Math.min(...[...document.querySelectorAll('svg text')].map((text) => {
  const svg = text.ownerSVGElement;
  const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
  return scale * parseFloat(getComputedStyle(text).fontSize);
}))
"""
CUT_LETTERS = """
[...document.querySelectorAll('figure svg text')].filter((text) => {
  const box = text.getBoundingClientRect(), svg = text.ownerSVGElement.getBoundingClientRect();
  return box.left < svg.left - 1 || box.right > svg.right + 1 || box.bottom > svg.bottom + 1;
}).map((text) => text.textContent)
"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """A page about one run and one about three."""
    folder = tmp_path_factory.mktemp("pages")
    runs = [made_up_run(folder / f"a-run-with-a-long-name-{seed}", seed=seed) for seed in range(3)]
    files = {"one run": folder / "one.html", "three runs": folder / "three.html"}
    assert main(["report", str(runs[0]), "--output", str(files["one run"])]) == 0
    assert main(["report", *map(str, runs), "--output", str(files["three runs"])]) == 0
    return files


@pytest.fixture(params=["one run", "three runs"])
def file(request, pages) -> Path:
    return pages[request.param]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_console_is_silent_and_no_request_leaves_the_page(chromium, file, width):
    chromium.messages.clear()
    chromium.requests.clear()
    chromium.open(file, width)
    assert chromium.evaluate("document.title")
    assert chromium.messages == []
    assert chromium.requests == [file.resolve().as_uri()]


def test_the_console_and_the_requests_are_heard(chromium, tmp_path):
    """Where they were not, the test above could not fail."""
    other = tmp_path / "other.html"
    other.write_text("<img src='missing.png'><script>console.log('hello'); none()</script>")
    chromium.messages.clear()
    chromium.requests.clear()
    chromium.open(other, 390)
    chromium.evaluate("1")
    assert any("hello" in message for message in chromium.messages)
    assert any("none is not defined" in message for message in chromium.messages)
    assert any(request.endswith("missing.png") for request in chromium.requests)


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window(chromium, file, width):
    chromium.open(file, width)
    assert chromium.evaluate(TOO_WIDE) == []
    assert chromium.evaluate(CUT_LETTERS) == []
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert chromium.evaluate(overflow) == 0


@pytest.mark.parametrize("width", WIDTHS)
def test_words_in_pictures_are_large_enough(chromium, file, width):
    chromium.open(file, width)
    assert chromium.evaluate(SMALLEST_LETTERS) >= 10


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(chromium, file, scheme):
    chromium.emulate(scheme=scheme)
    chromium.open(file, 1280)
    paper = chromium.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(19, 22, 27)") == (scheme == "dark")
    assert chromium.evaluate(LOW_CONTRAST) == []
    assert chromium.evaluate(FAINT_MARKS) == []
    chromium.emulate()


def test_low_contrast_is_found(chromium, tmp_path):
    other = tmp_path / "other.html"
    marks = "<circle class='dot' fill='#aaa'/><line class='curve' stroke='#bbb'/>"
    other.write_text(f"<p style='color: #999'>grey</p><p>black</p><svg>{marks}</svg>")
    chromium.open(other, 390)
    assert [text for text, _ in chromium.evaluate(LOW_CONTRAST)] == ["grey"]
    assert len(chromium.evaluate(FAINT_MARKS)) == 2


def test_everything_has_a_name_for_those_who_hear_the_page(chromium, file):
    chromium.open(file, 1280)
    tree = chromium.send("Accessibility.getFullAXTree")["nodes"]
    shown = [node for node in tree if not node["ignored"]]
    for role in ("image", "region", "link", "navigation", "heading", "DisclosureTriangle"):
        names = [n["name"]["value"] for n in shown if n["role"]["value"] == role]
        assert names, role
        assert all(names), role


def test_it_prints_light_and_whole_from_a_dark_screen(chromium, file, tmp_path):
    chromium.emulate("print", "dark")
    chromium.open(file, 1280)
    assert chromium.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(255, 255, 255)"
    )
    assert chromium.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    closed = "[...document.querySelectorAll('details:not([open]) table, details:not([open]) ol')]"
    assert chromium.evaluate(f"{closed}.length") > 0
    assert chromium.evaluate(f"{closed}.filter((e) => e.getBoundingClientRect().height < 20)") == []
    assert chromium.evaluate(LOW_CONTRAST) == []
    chromium.emulate()
    chromium.print_pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
