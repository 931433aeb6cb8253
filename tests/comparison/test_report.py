"""The report: what it says is what the comparison holds, names from outside stay text, and files stay small."""

import json
import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from comparison_helpers import made_comparison, made_result
from PIL import Image

from comparison.chart_style import LOOKS
from comparison.charts import draw_charts, looks_of
from comparison.files import read_comparison
from comparison.formats import amount, duration, markdown_code, markdown_text, percent, short, size
from comparison.gallery import classes_in, most_different, shown_images
from comparison.per_image import PanopticPerImage
from comparison.report import write_report
from comparison.tables import class_order, frequent_confusions, labelling_pays, metrics_table, per_class_of
from comparison.verdict import decide, runs_to_compare
from errors import UserError

pytestmark = pytest.mark.slow

HEADS = {"m2f": 0.75, "upernet": 0.7, "linear": 0.55}
VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """Tags with their attributes, text, and whether each tag that is opened is closed in its place."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def made():
    return made_comparison(HEADS, images=40, classes=6, seeds=2, train_sizes=(20, 100), seed_noise=0.004, gallery=3)


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    return write_report(made, tmp_path_factory.mktemp("report")).parent


@pytest.fixture(scope="module")
def page(folder):
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_every_file_is_there(folder, made):
    assert {path.name for path in folder.iterdir()} == {"report.html", "report.md", "comparison.json", "charts"}
    charts = {path.stem for path in (folder / "charts").iterdir()}
    assert charts == {
        *("standings", "margins", "curves_step", "curves_minutes", "cost_training", "cost_inference"),
        *("classes", "confusion_1", "confusion_2", "confusion_3", "train_sizes", "gallery"),
    }
    for path in (folder / "charts").iterdir():
        with Image.open(path) as image:
            assert image.format == "PNG" and min(image.size) > 200
    assert decide(read_comparison(folder / "comparison.json")) == decide(made)


def test_the_page_says_the_verdict(page, made):
    verdict = decide(made)
    assert page.open == [] and verdict.headline in page.text
    for sentence in [*verdict.sentences, *verdict.costs]:
        assert sentence in page.text
    assert json.dumps(verdict.code) in json.dumps([a.get("class") for a in page.of("span")]).replace("badge ", "")


def test_the_page_says_the_numbers(page, made):
    for run in made.results:
        assert run.command in page.text and run.checkpoint in page.text
    for text in [*made.class_names, *made.commands, *made.facts, *made.facts.values()]:
        assert text in page.text
    table = metrics_table(made, runs_to_compare(made))
    for _, cells in table.rows:
        for cell in cells:
            assert cell.text in page.text
    for sentence in labelling_pays(made):
        assert sentence in page.text
    for image in made.gallery:
        for name, value in image.values.items():
            assert f"{name} {100 * value:.1f} %" in page.text


def test_the_page_loads_nothing(folder):
    text = (folder / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert sources and all(source.startswith(("data:", "#")) for source in sources)
    assert not re.search(r"@import|url\((?!#)", text)
    assert "http" not in re.sub(r'http-equiv|xmlns(:\w+)?="[^"]*"', "", text)


def test_the_page_can_be_read_by_all(page):
    """Each image has a text, each control a label, each region a name, headings are in order, ids are unique."""
    assert all(image["alt"] for image in page.of("img"))
    assert all(a.get("aria-label") for _, a in page.tags if a.get("role") in ("img", "region"))
    labels = {label["for"] for label in page.of("label")}
    assert {control["id"] for control in page.of("input")} == labels
    assert len(page.of("legend")) == len(page.of("fieldset"))
    assert all(a.get("scope") for a in page.of("th"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels.count(1) == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    links = {link["href"][1:] for link in page.of("a")}
    assert links <= set(ids)


def test_markdown_says_the_same(folder, made):
    text = (folder / "report.md").read_text(encoding="utf-8")
    verdict = decide(made)
    assert text.startswith(f"# {markdown_text(verdict.headline)}\n")
    for sentence in [*verdict.sentences, *verdict.costs]:
        assert f"- {markdown_text(sentence)}\n" in text
    for path in re.findall(r"\]\((charts/\w+\.png)\)", text):
        assert (folder / path).exists()
    assert text.count("](charts/") == 12 and "\n\n\n\n" not in text
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):  # tables have as many cells in each row
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


@pytest.mark.slow
def test_equal_comparisons_give_equal_files(folder, made, tmp_path):
    write_report(made, tmp_path)
    for path in sorted(p for p in folder.glob("**/*") if p.is_file()):
        assert (tmp_path / path.relative_to(folder)).read_bytes() == path.read_bytes(), path.name


EVIL = '<script>alert("x")</script>'


def test_names_from_outside_stay_text(tmp_path):
    names = [EVIL, "a|b `c` $x$", "</svg><img src=x onerror=alert(1)>", "café \udce9\x1b[31m", "{{ 7*7 }}", "日本"]
    comparison = made_comparison({"m2f": 0.7, "linear": 0.6}, images=25, classes=6, gallery=1, class_names=names)
    (image,) = comparison.gallery
    head = "</title><script>x</script>"
    results = [
        replace(
            run,
            name=head if run.head == "m2f" else run.name,
            checkpoint=f"{EVIL}.pth",
            command=f"python x.py --name '{EVIL}' ```",
            metrics={**run.metrics, EVIL: 0.5},
        )
        for run in comparison.results
    ]
    overlays = {head if name == "Mask2Former" else name: overlay for name, overlay in image.predictions.items()}
    comparison = replace(
        comparison,
        results=results,
        gallery=[replace(image, sample_id=f'"{EVIL}"', predictions=overlays, values=dict.fromkeys(overlays))],
        facts={EVIL: EVIL, "\n# heading": "a\n# b"},
        commands=[EVIL],
    )
    text = write_report(comparison, tmp_path).read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == [] and len(page.of("script")) == 1
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert all(image["src"].startswith("data:") for image in page.of("img"))
    assert EVIL in page.text and "{{ 7*7 }}" in page.text and "日本" in page.text and "\x1b" not in text
    assert "$x$" in text
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    outside_code = re.sub(r"^( *)(`{3,})bash\n.*?\n\1\2$|`[^`\n]*`", "", markdown, flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in outside_code.replace("\\<", "") and "\n# heading" not in markdown
    assert read_comparison(tmp_path / "comparison.json").class_names == names


def test_charts_are_sound_xml_in_the_colours_of_the_page(folder, made):
    charts = re.findall('<svg class="chart".*?</svg>', (folder / "report.html").read_text(), flags=re.DOTALL)
    assert len(charts) == 11 and len(looks_of(made)) == 3
    for chart in charts:
        ET.fromstring(chart)
        assert "currentColor" in chart and "#010203" not in chart and "font-family: inherit" in chart
    (curves,) = [chart for chart in charts if 'id="curves_step-' in chart]
    assert all(name in curves and look.color.lower() in curves for name, look in looks_of(made).items())


def test_heads_differ_by_more_than_their_colour():
    for part in ("color", "line", "marker", "hatch"):
        assert len({getattr(look, part) for look in LOOKS}) == len(LOOKS)
    comparison = made_comparison({f"head{i}": 0.5 for i in range(20)}, images=5, classes=2)
    assert len(set(looks_of(comparison).values())) == 20


@pytest.mark.slow
def test_more_heads_than_looks_are_drawn():
    comparison = made_comparison({f"head{i}": 0.5 + 0.03 * i for i in range(8)}, images=25, classes=3)
    named = [replace(run, name=f"A head with a rather long name {run.head}") for run in comparison.results]
    charts = draw_charts(replace(comparison, results=named), decide(replace(comparison, results=named)))
    assert len([name for name in charts if name.startswith("confusion")]) == 8


@pytest.mark.slow
def test_one_head_without_gallery_matrix_or_sizes(tmp_path):
    comparison = made_comparison({"m2f": 0.7}, images=25, classes=3)
    results = [replace(run, confusion=None, curve=run.curve[:1]) for run in comparison.results]
    comparison = replace(comparison, results=results, task="instance", metric="AP", facts={}, commands=[])
    page = Page(write_report(comparison, tmp_path).read_text(encoding="utf-8"))
    assert {"confusions", "gallery", "labelling"}.isdisjoint(a.get("id") for _, a in page.tags)
    assert "objects" in page.text and "AP" in page.text


@pytest.mark.slow
def test_absent_classes_and_unknown_values_are_dashes(tmp_path):
    comparison = made_comparison({"m2f": 0.7, "linear": 0.6}, images=25, classes=3, gallery=1)
    results = [
        replace(run, per_class=[None, 0.5, None], metrics={"mIoU": math.nan}, training_seconds=0.0, peak_memory_bytes=0)
        for run in comparison.results
    ]
    gallery = [replace(image, values=dict.fromkeys(image.values)) for image in comparison.gallery]
    page = Page(write_report(replace(comparison, results=results, gallery=gallery), tmp_path).read_text())
    assert "nan" not in page.text and "None" not in page.text and "Mask2Former \N{EN DASH}" in page.text


@pytest.mark.slow
def test_no_labelled_pixel_and_no_curve_make_a_report_too(tmp_path):
    comparison = made_comparison({"m2f": 0.7, "linear": 0.6}, images=25, classes=2)
    results = [replace(made_result(run.head, np.zeros((25, 2, 3), np.int64)), curve=[]) for run in comparison.results]
    page = Page(write_report(replace(comparison, results=results), tmp_path).read_text(encoding="utf-8"))
    assert "Nothing is labelled" in page.text and "curves" not in {a.get("id") for _, a in page.tags}


@pytest.mark.slow
def test_panoptic_maps_have_segments(tmp_path):
    comparison = made_comparison({"m2f": 0.7, "linear": 0.6}, images=25, classes=3)
    rng = np.random.default_rng(0)
    results = []
    for run in comparison.results:
        matched = rng.integers(1, 5, (25, 3))
        sums = np.stack([0.8 * matched, matched, rng.integers(0, 2, (25, 3)), rng.integers(0, 2, (25, 3))], axis=-1)
        results.append(replace(run, per_image=PanopticPerImage(sums.astype(float)), confusion=None))
    page = Page(write_report(replace(comparison, results=results, task="panoptic", metric="PQ"), tmp_path).read_text())
    assert "PQ per class" in page.text and "segments" in page.text


def test_nothing_to_compare_writes_nothing(made, tmp_path):
    with pytest.raises(UserError):
        write_report(replace(made, results=[]), tmp_path)
    assert not list(tmp_path.iterdir())


def test_means_over_seeds_by_hand(made):
    runs = runs_to_compare(made)["UPerNet"]
    first, second = (run.metrics["mIoU"] for run in runs)
    rows = dict(metrics_table(made, runs_to_compare(made)).rows)
    half = abs(first - second) / math.sqrt(2)
    assert rows["UPerNet"][0].text == f"{50 * (first + second):.1f} % ± {100 * half:.1f}"
    assert [row[0].is_best for row in rows.values()] == [True, False, False]
    parameters = [row[2] for row in rows.values()]
    assert [cell.is_best for cell in parameters] == [False, False, True] and parameters[2].text == "4,616"
    values = per_class_of([replace(runs[0], per_class=[0.2, None, None]), replace(runs[1], per_class=[0.6, 0.5, None])])
    assert values == pytest.approx([0.4, 0.5, None])


def test_many_classes_come_by_the_gap_between_the_heads():
    comparison = made_comparison({"m2f": 0.7, "linear": 0.6}, images=20, classes=30)
    first = [0.5] * 30
    second = [0.5 - 0.01 * (k % 7) for k in range(29)] + [None]
    order = class_order(comparison, {"a": first, "b": second})
    assert all(k % 7 == 6 for k in order[:4]) and order[-1] in (29, *range(0, 29, 7)) and sorted(order) == [*range(30)]
    few = replace(comparison, class_names=["a", "b"], class_amounts=[5, 9])
    assert class_order(few, {"a": [0.5, 0.5]}) == [1, 0]


def test_frequent_confusions_by_hand():
    comparison = made_comparison({"m2f": 0.7}, images=20, classes=3, class_names=["road", "car", "sky"])
    confusion = np.array([[90, 8, 2], [0, 5, 0], [30, 0, 70]])
    found = frequent_confusions(comparison, [replace(comparison.results[0], confusion=confusion)] * 2)
    assert [(error.truth, error.prediction, error.pixels) for error in found] == [
        ("sky", "road", 60),
        ("road", "car", 16),
        ("road", "sky", 4),
    ]
    assert found[0].share == pytest.approx(0.3)


def test_what_labelling_pays_by_hand():
    comparison = made_comparison({"m2f": 0.7}, images=30, classes=3, train_sizes=(25, 100))
    whole = np.ones(30, int)
    few, many = (run.per_image.value(whole) for run in comparison.results)
    (sentence,) = labelling_pays(comparison)
    assert sentence == (
        f"From 25 to 100 training images Mask2Former gains {100 * (many - few):.1f} points of mIoU: "
        f"+{50 * (many - few):.1f} for each doubling."
    )


def test_gallery_images_come_with_the_widest_gap_first_and_within_the_budget(made, monkeypatch):
    images = [replace(made.gallery[0], sample_id=str(i), values={"a": 0.5, "b": 0.5 + 0.1 * i}) for i in range(3)]
    images.append(replace(images[0], sample_id="one value", values={"a": 0.9, "b": None}))
    assert [image.sample_id for image in most_different(images)] == ["2", "1", "0", "one value"]
    large = shown_images(images, made.class_colors)
    assert len(large) == 4 and max(large[0].width, large[0].height) == 480  # never larger than it is
    monkeypatch.setattr("comparison.gallery.GALLERY_BYTES", 2 * large[0].text_bytes)
    small = shown_images(images, made.class_colors)
    assert (
        0 < len(small) < 5
        and small[0].width == 320
        and sum(image.text_bytes for image in small) < 2 * large[0].text_bytes
    )


def test_the_legend_of_an_image_has_the_classes_that_are_drawn():
    colors = [(1, 2, 3), (9, 9, 9), (200, 0, 0), (9, 9, 9)]
    overlay = np.zeros((60, 60, 4), np.uint8)
    overlay[:30] = (9, 9, 9, 100)
    overlay[30:40] = (200, 0, 0, 0)  # not to be seen
    assert classes_in([overlay], colors) == [1]
    assert classes_in([overlay, np.full((60, 60, 4), (1, 2, 3, 255), np.uint8)], colors) == [0, 1]


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (duration(0.0433), "43.3 ms"),
        (duration(1.3), "1.3 s"),
        (duration(600), "10 min"),
        (duration(7200), "2 h"),
        (duration(0), "\N{EN DASH}"),
        (size(2_150_000_000), "2.15 GB"),
        (size(512), "512 B"),
        (percent(None), "\N{EN DASH}"),
        (percent(0.4567), "45.7 %"),
        (amount(950), "950"),
        (amount(1_234_567), "1.23 M"),
        (short("a" * 30), "a" * 21 + "…"),
        (markdown_text("a|b*<c>"), r"a\|b\*\<c\>"),
        (markdown_code("a ``` b"), "````bash\na ``` b\n````"),
    ],
)
def test_how_values_are_shown(shown, text):
    assert shown == text
