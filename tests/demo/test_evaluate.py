"""Evaluating a checkpoint: the numbers of validation, and an interrupted evaluation that resumes."""

import json
import math
import signal
from pathlib import Path

import numpy as np
import pytest
from forked import start_forked
from panoptic_helpers import panoptic_set
from PIL import Image
from training_helpers import data_flags, drawn, metrics, run_ranks, train_here, wait_for

from data.drawn.sets import make_coco_demo_set
from demo import evaluate as script
from evaluation.semantic import SemanticEvaluator
from prediction.predictor import Predictor
from training.evaluate.results import finished_lines

pytestmark = pytest.mark.slow

NUM_IMAGES = 4


def run(*words: object) -> int:
    """In this process; returns the exit code."""
    config = script.parse_evaluate_arguments([str(word) for word in ("--num-workers", 0, *words)])
    return script.run_job(lambda: script.evaluate(config))


@pytest.fixture(scope="module")
def semantic(tmp_path_factory) -> Path:
    """A folder with run/, of a UPerNet head, and data/, whose images are of two sizes."""
    folder = tmp_path_factory.mktemp("semantic")
    data = drawn(folder / "data", train=4, val=NUM_IMAGES)
    for path in (folder / "data").glob("*/val/0001.png"):
        one = np.array(Image.open(path))
        Image.fromarray(np.concatenate((one, one[:40]), axis=0)).save(path)
    assert train_here("upernet", folder / "run", *data, "--max-steps", "20", "--lr", "2e-3") == 0
    return folder


def masks(folder: Path) -> list[str]:
    val = folder / "data"
    return ["--image-paths", f"{val}/images/val/*.png", "--mask-paths", f"{val}/masks/val/*.png"]


def evaluated(folder: Path, out: Path, *more: object) -> dict:
    assert run("-m", folder / "run", *masks(folder), "--output-dir", out, "--json", out / "all.json", *more) == 0
    return json.loads((out / "all.json").read_text())


def best_validation(folder: Path, prefix: str) -> dict:
    """Of the checkpoint that the folder of a run stands for."""
    return min(metrics(folder, prefix, "val"), key=lambda line: line["loss"])


def assert_close(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value == pytest.approx(second[name], abs=1e-6, nan_ok=True), name


def test_the_numbers_are_those_of_validation_and_of_the_saved_masks(semantic, tmp_path, capsys):
    found = evaluated(semantic, tmp_path / "out", "--save-predictions", tmp_path / "saved", "--worst", "2")
    said = capsys.readouterr().out
    assert "miou" in said and "lowest miou" in said and "boundary_iou" in said
    validated = best_validation(semantic / "run", "upernet_")
    assert_close(found["metrics"], {name: validated[name] for name in found["metrics"]})
    assert found["images"] == NUM_IMAGES and found["skipped"] == []

    confusion = np.zeros((5, 5))
    for path in sorted((semantic / "data" / "masks" / "val").glob("*.png")):
        truth, predicted = (np.array(Image.open(p)) for p in (path, tmp_path / "saved" / "masks" / path.name))
        assert truth.shape == predicted.shape
        for t in range(5):
            for p in range(5):
                confusion[t, p] += ((truth == t) & (predicted == p)).sum()
    assert found["confusion"] == confusion.tolist()
    hit, either = confusion.diagonal(), confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    assert found["metrics"]["miou"] == pytest.approx((hit[either > 0] / either[either > 0]).mean(), abs=1e-9)
    values = [one["miou"] for one in found["per_image"]]
    assert values == sorted(values) and len(values) == NUM_IMAGES
    assert Image.open(tmp_path / "out" / "worst.png").width > 100


def test_windows_and_views_are_those_of_prediction(semantic, tmp_path):
    words = ("--eval-mode", "slide", "--crop", "64", "--stride", "30", "--native", "--tta", "--tta-scales", "1", "1.5")
    evaluated(semantic, tmp_path / "out", *words, "--save-predictions", tmp_path / "saved")
    options = {"crop": 64, "stride": 30, "native": True, "tta": True, "tta_scales": (1, 1.5)}
    predictor = Predictor.load(semantic / "run", eval_mode="slide", **options)
    for path in sorted((semantic / "data" / "images" / "val").glob("*.png")):
        saved = np.array(Image.open(tmp_path / "saved" / "masks" / path.name))
        assert np.array_equal(saved, predictor.predict(path).mask())


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """Grows by each image that is evaluated, in no matter which pass."""
    seen: list[str] = []
    add = SemanticEvaluator.add

    def spy(self, model, batch):
        seen.extend(batch.sample_ids)
        add(self, model, batch)

    monkeypatch.setattr(SemanticEvaluator, "add", spy)
    return seen


def test_an_interrupted_evaluation_resumes_where_it_stopped(semantic, tmp_path, counted, monkeypatch):
    whole = evaluated(semantic, tmp_path / "whole", "--worst", "0")
    out, saved = tmp_path / "out", tmp_path / "saved"
    words = ("--save-predictions", saved, "--worst", "0")
    save = script.save_prediction

    def fail_at_the_third(job, one, segmenter):
        if one.sample_id == "0002":
            raise KeyboardInterrupt
        save(job, one, segmenter)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(script, "save_prediction", fail_at_the_third)
        run("-m", semantic / "run", *masks(semantic), "--output-dir", out, *words)
    with (out / "results.jsonl").open("a") as file:
        file.write('{"sample_id": "0002", "state": {"lo')  # as a full disk or a lost machine leaves it
    counted.clear()
    resumed = evaluated(semantic, out, *words)
    assert counted == ["0002", "0003"]
    assert resumed["metrics"] == whole["metrics"] and resumed["per_image"] == whole["per_image"]

    counted.clear()
    assert evaluated(semantic, out, *words)["metrics"] == whole["metrics"] and counted == []
    (saved / "masks" / "0001.png").unlink()  # what was to be saved is missing: that image is evaluated again
    assert evaluated(semantic, out, *words)["metrics"] == whole["metrics"] and counted == ["0001"]
    counted.clear()
    evaluated(semantic, out, *words, "--overwrite")
    assert len(counted) == NUM_IMAGES


def ranks(*words: object, first: str = "pass") -> list[int]:
    """The exit codes of an evaluation in two processes."""
    code = f"""
        {first}
        import sys
        from demo import evaluate
        config = evaluate.parse_evaluate_arguments({[str(word) for word in ("--num-workers", 0, *words)]!r})
        raise SystemExit(evaluate.run_job(lambda: evaluate.evaluate(config)))
    """
    return [done.returncode for done in run_ranks([code, code])]


def test_two_processes_find_what_one_finds(semantic, tmp_path, counted):
    whole = evaluated(semantic, tmp_path / "whole", "--worst", "0")
    out, saved = tmp_path / "out", tmp_path / "saved"
    words = ("-m", semantic / "run", *masks(semantic), "--output-dir", out, "--json", out / "all.json", "--worst", "0")
    words = (*words, "--precision", "fp32")  # of processes of their own, see conftest.py
    interrupted = "import training.evaluate.results as r; own = r.ResultFiles.add; n = []; "
    interrupted += "r.ResultFiles.add = lambda self, *a: (own(self, *a), n.append(1), len(n) < 2 or sys.exit(3))"
    assert 3 in ranks(*words, "--save-predictions", saved, first=f"import sys; {interrupted}")
    assert len(list(out.glob("results.*.jsonl"))) == 1  # of the second process
    assert ranks(*words, "--save-predictions", saved) == [0, 0]
    found = json.loads((out / "all.json").read_text())
    assert found["metrics"] == whole["metrics"] and found["per_image"] == whole["per_image"]
    assert len(list((saved / "masks").iterdir())) == NUM_IMAGES and not list(out.glob("results.*.jsonl"))
    counted.clear()
    evaluated(semantic, out, "--worst", "0", "--save-predictions", saved)
    assert counted == []  # one process takes over what two have found


def test_two_evaluations_in_one_folder_are_refused(semantic, tmp_path, capsys):
    holder = (
        "import sys, time; from pathlib import Path; from checkpoint import locked\n"
        "with locked(Path(sys.argv[1]) / '.evaluation.lock'):\n"
        "    (Path(sys.argv[1]) / 'held').touch()\n"
        "    time.sleep(600)"
    )
    process = start_forked(holder, ["program", str(tmp_path)], tmp_path)
    wait_for(process, (tmp_path / "held").exists)
    assert run("-m", semantic / "run", *masks(semantic), "--output-dir", tmp_path) == 2
    assert f"--output-dir {tmp_path}" in capsys.readouterr().err
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_another_protocol_data_set_or_model_starts_over(semantic, tmp_path, counted, capsys):
    out = tmp_path / "out"
    evaluated(semantic, out, "--worst", "0")
    classes = {f"class {k}": value for k, value in enumerate((0, 2, 1, 3, 4))}
    (tmp_path / "map.json").write_text(json.dumps({"classes": classes}))
    flags = {"protocol": ["--eval-mode", "slide"], "labels": ["--label-map", tmp_path / "map.json"]}
    for change in ("protocol", "labels", "data", "model"):
        words = flags.get(change, [])
        model = semantic / "run"
        if change == "data":
            path = next((semantic / "data" / "masks" / "val").glob("0000.png"))
            path.write_bytes(path.read_bytes())
        if change == "model":
            data = data_flags(semantic / "data")
            assert train_here("upernet", tmp_path / "other", *data, "--max-steps", "1") == 0
            model = tmp_path / "other"
        counted.clear()
        capsys.readouterr()
        assert run("-m", model, *masks(semantic), "--output-dir", out, "--worst", "0", *words) == 0
        assert len(counted) == NUM_IMAGES and "starting over" in capsys.readouterr().err, change


def test_images_that_cannot_be_read_are_reported(semantic, tmp_path, capsys):
    drawn(tmp_path / "data", train=1, val=3)
    (tmp_path / "data" / "images" / "val" / "0001.png").write_bytes(b"no image")
    (tmp_path / "data" / "images" / "val" / "alone.png").write_bytes(b"no mask either")
    out = tmp_path / "out"
    assert run("-m", semantic / "run", *masks(tmp_path), "--output-dir", out, "--json", out / "all.json") == 1
    err = capsys.readouterr().err
    assert "0001.png" in err and "1 images and masks have no partner" in err
    found = json.loads((out / "all.json").read_text())
    assert found["images"] == 2 and len(found["skipped"]) == 1


def test_objects_have_the_numbers_of_validation(tmp_path):
    make_coco_demo_set(tmp_path / "data", 4, 3, 64)
    options = ["--task", "instance", "--coco-dir", str(tmp_path / "data"), "--image-size", "64", "--no-augmentation"]
    steps = ["--max-steps", "40", "--val-interval", "40", "--batch-size", "4", "--lr", "2e-3", "--validate"]
    assert train_here("pmt", tmp_path / "run", *options, *steps) == 0
    data = ["--coco-dir", tmp_path / "data", "--output-dir", tmp_path / "out", "--save-predictions", tmp_path / "saved"]
    assert run("-m", tmp_path / "run", *data, "--json", tmp_path / "all.json") == 0
    found = json.loads((tmp_path / "all.json").read_text())
    validated = best_validation(tmp_path / "run", "pmt_")
    known = {name: value for name, value in found["metrics"].items() if value is not None and name != "loss"}
    assert_close(known, {name: validated[name] for name in known})
    assert len(found["per_image"]) == 3 and len(list((tmp_path / "saved" / "json").glob("**/*.json"))) == 3
    # of what is in the file alone, too: the state of an image is written and read without a loss
    assert run("-m", tmp_path / "run", *data, "--json", tmp_path / "again.json") == 0
    assert json.loads((tmp_path / "again.json").read_text()) == found


def test_segments_have_the_numbers_of_validation(tmp_path):
    files = panoptic_set(tmp_path / "set", 4)
    flags = ["--coco-json", "--coco-images", "--coco-segments"]
    data = [word for pair in zip(flags, files, strict=True) for word in pair]
    val = [word.replace("--coco", "--val-coco") for word in data]
    options = ["--task", "panoptic", "--image-size", "64", "--no-augmentation", "--lr", "2e-3", "--batch-size", "4"]
    steps = ["--max-steps", "40", "--val-interval", "40"]
    assert train_here("pmt", tmp_path / "run", *data, *val, *options, *steps) == 0
    words = ["--output-dir", tmp_path / "out", "--save-predictions", tmp_path / "saved", "--json", tmp_path / "a.json"]
    assert run("-m", tmp_path / "run", *data, *words) == 0
    found = json.loads((tmp_path / "a.json").read_text())
    validated = best_validation(tmp_path / "run", "pmt_")
    known = {name: value for name, value in found["metrics"].items() if value is not None and name != "loss"}
    assert_close(known, {name: validated[name] for name in known})
    assert len(list((tmp_path / "saved" / "masks").glob("**/*.png"))) == 4
    assert run("-m", tmp_path / "run", *data, *words) == 0
    assert json.loads((tmp_path / "a.json").read_text()) == found


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--image-paths", "a"], "--mask-paths"),
        ([], "--image-paths"),
        (["--coco-dir", "a", "--coco-json", "b", "--coco-images", "c"], "--coco-dir"),
        (["--coco-json", "a"], "--coco-images"),
    ],
)
def test_flags_that_do_not_fit(words, named, capsys):
    with pytest.raises(SystemExit) as stop:
        run("-m", "run", *words)
    assert stop.value.code == 2 and named in capsys.readouterr().err


def test_mistakes_are_one_line(semantic, tmp_path, capsys):
    out = ["--output-dir", tmp_path / "out"]
    for words, named in (
        (["--coco-dir", tmp_path], "--image-paths"),
        ([*masks(semantic), "--num-classes", "4"], "--label-map"),
        ([*masks(semantic), "--crop", "64"], "--crop 64"),
        ([*masks(semantic), "--value-range", "5", "1"], "--value-range 5 1"),
        (["--image-paths", tmp_path / "*.png", "--mask-paths", tmp_path / "*.png"], "--image-paths"),
    ):
        assert run("-m", semantic / "run", *words, *out) == 2, named
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and named in err


def test_lines_after_one_that_was_cut_off_do_not_count(tmp_path):
    path = tmp_path / "results.jsonl"
    assert finished_lines(path) == []
    path.write_text('{"a": 1}\n{"b": 2}\n{"c": \n{"d": 4}\n')
    assert finished_lines(path) == [{"a": 1}, {"b": 2}]
    path.write_text("[1]\n")
    assert finished_lines(path) == []


def test_a_value_that_is_unknown_is_null_in_json():
    assert script.known_numbers({"a": [math.nan, 1.5]}) == {"a": [None, 1.5]}
