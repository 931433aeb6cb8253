"""The page in a real browser: Debian's chromium through playwright, at desktop and phone width; skipped where one of
them, or gradio, is missing."""

import json
import shutil
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from training_helpers import drawn, metrics, train_here

from app.config import AppConfig
from app.runs import find_runs
from checkpoint import append_line
from labelling.pool import find_pool
from prediction.predictor import Predictor

pytest.importorskip("gradio", reason="gradio is not installed: pip install -r requirements-app.txt")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]
ANSWER_S = 20
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """run/, of a linear head, data/, and dropped/, which the page does not know."""
    folder = tmp_path_factory.mktemp("app")
    data = drawn(folder / "data", train=2, val=2, size_px=32)
    steps = ["--max-steps", "2", "--val-interval", "1", "--log-interval", "1"]
    assert train_here("linear", folder / "run", *data, *steps) == 0
    shutil.copytree(folder / "data/images/train", folder / "dropped")
    return folder


@pytest.fixture(scope="module")
def address(folder, tmp_path_factory):
    from app.page import Page

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        patched.setattr("app.page.REFRESH_S", 0.5)
        models = {name: Predictor.load(folder / "run") for name in ("one", "two <b>")}
        images = find_pool([f"{folder}/data/images/val"], ())[0]
        page = Page(models, images, find_runs([str(folder)]))
        blocks, address = page.launch(AppConfig(model_path=("run",), port=0))
        yield address
        blocks.close()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # containers run as root
        yield opened
        opened.close()


@contextmanager
def opened(browser, address: str, viewport=DESK):
    """The page, and in the end the certainty that it had no error, is not too wide, and asked no other server."""
    context = browser.new_context(viewport=viewport)
    page, messages, requests = context.new_page(), [], []
    page.on("console", lambda message: messages.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    page.wait_for_selector("#predict")
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    assert not messages
    assert all(url.startswith((address, "data:", "blob:")) for url in requests)
    context.close()


@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_dropped_images_are_predicted_by_all_models(browser, address, folder, viewport):
    with opened(browser, address, viewport) as page:
        paths = sorted((folder / "dropped").iterdir())
        page.set_input_files("input[type=file] >> nth=0", paths)
        page.wait_for_function("document.querySelectorAll('.file-preview tr').length === 2")
        page.click("#predict")
        page.wait_for_selector(".shown .layer")
        assert page.locator(".shown h3").all_inner_texts() == [f"{path.name} 32 x 32 px" for path in paths]
        assert [text.partition(" unsure")[0] for text in page.locator("figcaption").all_inner_texts()] == [
            "one",
            "two <b>",
        ] * 2
        decoded = "image => image.decode().then(() => image.naturalWidth)"
        assert {page.locator(".stage img").nth(k).evaluate(decoded) for k in range(8)} == {32}
        lefts = page.evaluate(
            "[...document.querySelectorAll('.shown')[0].querySelectorAll('.stage')].map(e => e.offsetLeft)"
        )
        assert (lefts[0] < lefts[1]) == (viewport == DESK)  # beside each other, or below on a phone
        opacity = "getComputedStyle(document.querySelector('.layer')).opacity"
        assert page.evaluate(opacity) == "0.5"
        page.fill("#opacity input[type=number]", "0.25")
        page.keyboard.press("Tab")
        page.wait_for_function(f"{opacity} === '0.25'")


def test_named_images_are_predicted_by_the_models_that_are_ticked(browser, address):
    with opened(browser, address) as page:
        page.uncheck("input[type=checkbox] >> nth=0")
        page.click("input[aria-label='Images of --image-paths']")
        page.click("role=option[name='0001.png']")
        page.keyboard.press("Escape")
        page.click("#predict")
        page.wait_for_selector(".shown .layer")
        assert page.locator(".shown .stage").count() == 1


def test_curves_follow_the_run(browser, address, folder):
    with opened(browser, address) as page:
        page.click("role=tab[name='Runs']")
        page.wait_for_selector("#curves svg")
        assert page.locator("#curves svg").count() == 3 and page.locator("#curves .drawn img").count() == 2
        assert "step 2," in page.inner_text("#curves")
        line = metrics(folder / "run", "linear_", "train")[-1]
        append_line(folder / "run/linear_metrics.jsonl", json.dumps({**line, "step": 3}))
        page.wait_for_selector("text=step 3,", timeout=15_000)


def status_and_bytes(url: str, content: object = None) -> tuple[int, bytes]:
    body = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"} if body else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def answer_to(address: str, session: str, data: list) -> bytes:
    """Of the button, asked as a program would: what is sent until it is done, refused, or ANSWER_S have passed."""
    config = json.loads(status_and_bytes(f"{address}config")[1])
    (predict,) = (one for one in config["dependencies"] if one["api_name"] == "predict")
    asked = {"data": data, "fn_index": predict["id"], "session_hash": session}
    status, found = status_and_bytes(f"{address}gradio_api/queue/join", asked)
    if status != 200:
        return found
    end = time.monotonic() + ANSWER_S
    with urllib.request.urlopen(f"{address}gradio_api/queue/data?session_hash={session}", timeout=ANSWER_S) as lines:
        for line in lines:
            found += line
            if b"process_completed" in line or time.monotonic() > end:
                return found
    return found


def test_no_other_file_is_read_through_the_page(address, folder):
    """Neither by its address nor as the image of a prediction, be it an image, even one that the page may show."""
    outside = folder / "dropped/0000.png"
    named = folder / "data/images/val/0000.png"
    secret = folder / "run/linear_run.json"
    for path in (outside, named, secret, "README.md", "../README.md", "/etc/passwd"):
        for prefix in ("gradio_api/file=", "file=", "static/", "assets/"):
            status, _ = status_and_bytes(f"{address}{prefix}{quote(str(path), safe='/')}")
            assert status in (403, 404), path
    for session, path in (("a", outside), ("b", named), ("c", secret)):
        file = {"path": str(path), "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}
        answer = answer_to(address, session, [[file], None, [], ["one"]])
        assert b"process_completed" in answer and b"data:image" not in answer
    for session, name, is_shown in (("d", str(outside), False), ("e", "0001.png", True)):  # of those that it offers
        assert (b"data:image" in answer_to(address, session, [None, None, [name], ["one"]])) == is_shown
    assert json.loads(status_and_bytes(f"{address}gradio_api/info")[1])["named_endpoints"] == {}
