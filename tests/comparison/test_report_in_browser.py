"""The page in a real browser: Debian's chromium through playwright; skipped where one of them is missing."""

import shutil
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from comparison_helpers import made_comparison

from comparison.report import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]
HEADS = {"m2f": 0.75, "upernet": 0.7, "linear": 0.55}
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
LEAST_CONTRAST = 4.5
"""Of text, by WCAG 2.2 level AA."""

MAX_BYTES, MAX_LOAD_MS = 20_000_000, 2000


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # containers run as root
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    long_names = ["road", "a class with a name that is far too long for one column", *"abcdefghi"]
    comparison = made_comparison(
        HEADS, 40, 11, seeds=2, train_sizes=(20, 100), seed_noise=0.004, gallery=3, class_names=long_names
    )
    return write_report(comparison, tmp_path_factory.mktemp("report"))


@contextmanager
def opened(browser, path: Path, viewport=DESK, dark: bool = False):
    """The page, and in the end the certainty that it had no error and asked for nothing but itself."""
    context = browser.new_context(viewport=viewport, color_scheme="dark" if dark else "light")
    page, messages, requests = context.new_page(), [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    yield page
    assert not messages
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
    context.close()


def visible_layers(page, card: int) -> list[int]:
    return page.evaluate(
        """card => [...document.querySelectorAll('.card')[card].querySelectorAll('.stage img')]
        .flatMap((image, i) => getComputedStyle(image).visibility === 'visible' ? [i] : [])""",
        card,
    )


def test_the_gallery_is_switched_by_keyboard_and_mouse(browser, report):
    with opened(browser, report) as page:
        assert [visible_layers(page, card) for card in range(3)] == [[0, 1]] * 3  # image, and ground truth over it
        page.focus("#view-1-1")
        seen = []
        for _ in range(5):
            page.keyboard.press("ArrowRight")
            seen.append(visible_layers(page, 0))
        assert seen == [[0, 2], [0, 3], [0, 4], [0], [0, 1]] and visible_layers(page, 1) == [0, 1]
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        assert visible_layers(page, 0) == [0, 4]
        page.click("label[for='view-2-3']")
        assert visible_layers(page, 1) == [0, 3]
        page.click("label[for='view-all-2']")
        assert [visible_layers(page, card) for card in range(3)] == [[0, 2]] * 3
        page.keyboard.press("ArrowRight")
        assert [visible_layers(page, card) for card in range(3)] == [[0, 3]] * 3


def test_focus_is_seen(browser, report):
    """Everything that Tab reaches has an outline, radio inputs on their labels."""
    with opened(browser, report) as page:
        reached = 0
        for _ in range(40):
            page.keyboard.press("Tab")
            width = page.evaluate(
                """() => { const at = document.activeElement;
                const drawn = at.type === 'radio' ? at.nextElementSibling : at;
                return at === document.body ? -1 : parseFloat(getComputedStyle(drawn).outlineWidth); }"""
            )
            if width < 0:
                break
            assert width >= 2
            reached += 1
        assert reached > 15


@pytest.mark.parametrize("viewport", [PHONE, {"width": 320, "height": 600}, DESK], ids=["390", "320", "1280"])
def test_no_page_is_wider_than_the_window(browser, report, viewport):
    with opened(browser, report, viewport) as page:
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        outside = page.evaluate(
            """() => [...document.querySelectorAll('body *:not(.hidden)')]
            .filter(e => !e.closest('.scroll, pre, .skip, svg') && e.getBoundingClientRect().right > innerWidth + 1)
            .map(e => e.outerHTML.slice(0, 80))"""
        )
        assert not outside
        smallest = page.evaluate(
            """() => Math.min(...[...document.querySelectorAll('svg.chart text')].map(t =>
            parseFloat(getComputedStyle(t).fontSize) * t.ownerSVGElement.clientWidth
            / t.ownerSVGElement.viewBox.baseVal.width))"""
        )
        assert smallest >= (8 if viewport["width"] >= 390 else 6)  # pixels, of the letters of charts


CONTRASTS = """() => {
  const parts = color => { const c = color.match(/[\\d.]+/g).map(Number); return c.length < 4 ? [...c, 1] : c; };
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const behind = e => {
    const color = parts(getComputedStyle(e).backgroundColor);
    return color[3] === 1 ? color : behind(e.parentElement);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; node = walker.nextNode();) {
    const e = node.parentElement;
    if (!node.data.trim() || e.closest('script, style')) continue;
    const style = getComputedStyle(e);
    const both = [luminance(parts(e.closest('svg') ? style.fill : style.color)), luminance(behind(e))];
    found.push([(Math.max(...both) + 0.05) / (Math.min(...both) + 0.05), node.data.trim().slice(0, 40)]);
  }
  return found;
}"""
"""Of each text in the page, also in charts: its contrast by WCAG with what is behind it."""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_stands_out_from_its_background(browser, report, dark):
    with opened(browser, report, dark=dark) as page:
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        found = page.evaluate(CONTRASTS)
        assert len(found) > 300  # texts of the charts are among them
        assert not [text for contrast, text in found if contrast < LEAST_CONTRAST]
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, background[4:-1].split(","))) < 200) == dark


def test_a_large_comparison_is_small_and_opens_at_once(browser, tmp_path):
    """200 images, all of them in the gallery, and 150 classes."""
    comparison = made_comparison(HEADS, images=200, classes=150, gallery=20, size_hw=(240, 320))
    path = write_report(replace(comparison, gallery=comparison.gallery * 10), tmp_path)
    assert path.stat().st_size < MAX_BYTES
    times = []
    for _ in range(3):  # other work of the machine may disturb one
        start = time.perf_counter()
        with opened(browser, path) as page:
            times.append(1000 * (time.perf_counter() - start))
            assert page.locator(".card").count() == 200
            assert page.locator("#classes tbody tr").count() == 150
            # The last image of all is there when somebody comes to it.
            page.locator(".stage").last.scroll_into_view_if_needed()
            last = page.locator(".card").last.locator("img")
            decoded = "image => image.decode().then(() => image.naturalWidth)"
            assert all(last.nth(i).evaluate(decoded) for i in range(5))
    assert min(times) < MAX_LOAD_MS, times
