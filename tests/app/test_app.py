"""The page's parts without a browser: flags, the table of areas, the layer of colours, and curves."""

import json
import sys

import numpy as np
import pytest
from messages import names, naming
from PIL import Image
from pycocotools import mask as coco_mask

from app.config import AppConfig, parse_app_arguments
from app.predictions import ModelResult, class_areas, display_size, error_html, image_html, layer
from app.runs import curves, find_runs, points, read_lines, run_html
from data.labels import LabelRule
from demo import app as script
from errors import UserError
from evaluation.drawing import class_colors, object_colors
from prediction.results import FoundObject, InstanceResult, SemanticResult

NAMES = ["background", "<script>", "line"]
SIZE_HW = (4, 6)


def objects() -> InstanceResult:
    def found(label: int, columns: slice, score: float) -> FoundObject:
        mask = np.zeros(SIZE_HW, np.uint8, order="F")
        mask[:, columns] = 1
        return FoundObject(label, NAMES[label], label + 1, score, coco_mask.encode(mask))

    return InstanceResult(
        [found(1, slice(0, 2), 0.9), found(2, slice(1, 5), 0.8), found(1, slice(5, 6), 0.7)], NAMES, SIZE_HW
    )


def class_map() -> SemanticResult:
    classes = np.zeros(SIZE_HW, np.uint8)
    classes[:, 4:] = 1
    return SemanticResult(classes, NAMES, LabelRule(3))


def test_areas_and_scores_are_those_of_the_result():
    assert [(label, one.pixels, one.scores) for label, one in class_areas(class_map()).items()] == [
        (0, 16, []),
        (1, 8, []),
    ]
    assert [(label, one.pixels, one.scores) for label, one in class_areas(objects()).items()] == [
        (2, 16, [0.8]),
        (1, 12, [0.9, 0.7]),
    ]


def test_the_layer_has_the_colours_of_overlays():
    colors = np.asarray(layer(class_map(), (6, 4)))
    assert np.array_equal(colors[..., :3], class_colors(3)[class_map().classes]) and (colors[..., 3] == 255).all()
    found = np.asarray(layer(objects(), (12, 8)))  # of twice the size; the better object lies on top
    assert np.array_equal(found[0, ::2, :3][:5], object_colors(3)[[1, 1, 2, 2, 2]])
    assert display_size(4000, 2000) == (960, 480) and display_size(30, 20) == (30, 20)


def test_names_are_no_markup():
    html = image_html("<img>.png", np.zeros((*SIZE_HW, 3), np.uint8), [ModelResult("<m>", class_map(), 0.25)])
    assert "<script>" not in html and "<m>" not in html and "<img>" not in html
    assert names(html, "&lt;script&gt;", "33.3 %", ">8<", "0.250")
    assert "<b>" not in error_html("<b>", "<b>")


def log(folder, lines: list) -> None:
    folder.mkdir(parents=True)
    (folder / "upernet_metrics.jsonl").write_text("\n".join(lines))


def test_curves_are_read_while_a_line_is_being_written(tmp_path):
    train = {"epoch": 1, "step": 5, "split": "train", "loss": 2.0, "lr": 0.1}
    val = {"epoch": 1, "step": 5, "split": "val", "loss": 1.5, "miou": 0.25, "pixel_accuracy": 0.5, "iou": [0.25]}
    log(tmp_path / "runs/a", [json.dumps(train), json.dumps(val), '{"epoch": 2, "st'])
    (run,) = find_runs([str(tmp_path / "runs")])
    assert run.name == "runs/a (upernet)"
    lines = read_lines(run.metrics)
    assert lines == [train, val] and points(lines, "loss") == [(5, 2.0), (5, 1.5)]
    assert [chart.title for chart in curves(lines)] == ["loss", "miou", "pixel_accuracy"]
    before = run.state()
    html = run_html(run)
    assert html.count("<svg") == 3 and "data:image" not in html
    (tmp_path / "runs/a/upernet_pictures").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "runs/a/upernet_pictures/latest.png")
    assert run_html(run).count("data:image/png") == 1 and run.state() != before
    assert [chart.title for chart in curves([train])] == ["loss"]
    (tmp_path / "runs/a/upernet_metrics.jsonl").write_text("")
    assert "<svg" not in run_html(run)
    with pytest.raises(UserError, match=naming("--runs", "nowhere")):
        find_runs(["nowhere"])


def test_runs_of_folders_with_the_same_name_are_told_apart(tmp_path, monkeypatch):
    for day in ("monday", "tuesday"):
        log(tmp_path / day / "runs/a", [])
    found = find_runs([str(tmp_path / day / "runs") for day in ("monday", "tuesday")])
    assert [run.name for run in found] == ["monday/runs/a (upernet)", "tuesday/runs/a (upernet)"]
    monkeypatch.chdir(tmp_path / "monday/runs")
    assert [run.name for run in find_runs(["."])] == ["runs/a (upernet)"]


@pytest.mark.parametrize(
    ("host", "is_local"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("lab", False)]
)
def test_only_this_machine_reaches_the_page_unless_asked(host, is_local):
    assert AppConfig(runs=("runs",), host=host).is_local == is_local
    assert AppConfig(runs=("runs",)).is_local


def test_mistakes_in_the_call(capsys):
    for words, named in (([], ["--model-path", "--runs"]), (["--runs", "a", "--image-paths", "b"], ["--image-paths"])):
        with pytest.raises(SystemExit) as stop:
            parse_app_arguments(words)
        assert stop.value.code == 2 and names(capsys.readouterr().err, *named)


def test_a_missing_gradio_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")
    monkeypatch.delitem(sys.modules, "app.page", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)  # importing it fails
    with pytest.raises(UserError, match=naming("requirements-app.txt")):
        script.open_page(AppConfig(runs=(str(tmp_path),)))
    assert not list(tmp_path.iterdir())  # what was dropped is removed
