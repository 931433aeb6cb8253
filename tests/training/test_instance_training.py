"""Instance and panoptic segmentation by really training: COCO data in, average precision and panoptic quality out."""

import json
import shutil
from pathlib import Path

import pytest
from messages import naming
from panoptic_helpers import panoptic_set
from training_helpers import assert_same_state, log_without_speed, metrics, run_script, train_here

from data.drawn.sets import make_coco_demo_set
from errors import UserError
from training.config import parse_training_arguments
from training.sets import CocoSets

pytestmark = pytest.mark.slow

INSTANCE = ["--task", "instance", "--image-size", "64", "--no-random-scale"]


@pytest.fixture
def coco(tmp_path) -> list[str]:
    make_coco_demo_set(tmp_path / "data", 5, 3, 64)
    return [*INSTANCE, "--coco-dir", str(tmp_path / "data")]


def test_a_few_images_are_learned(tmp_path):
    """Trained and validated on the same two images: the head finds their objects."""
    make_coco_demo_set(tmp_path / "data", 2, 1, 64)
    folder = tmp_path / "data" / "train"
    files = ["--coco-json", str(folder / "_annotations.coco.json"), "--coco-images", str(folder)]
    same = [f"--val-{word[2:]}" if word.startswith("--") else word for word in files]
    options = ["--no-augmentation", "--weight-decay", "0.05", "--lr", "4e-3", "--batch-size", "2"]
    steps = ["--max-steps", "55", "--val-interval", "55", "--best-metric", "map"]
    assert train_here("m2f", tmp_path / "run", *INSTANCE, *files, *same, *options, *steps) == 0
    last = metrics(tmp_path / "run", "", "val")[-1]
    assert last["ap50"] > 0.5 and last["map"] > 0.3
    assert set(last) >= {"loss", "ap75", "ap_small", "ap_medium", "ap_large", "ar100", "ap"}
    assert (tmp_path / "run" / "pictures" / "best.png").stat().st_size > 1000


def test_resuming_equals_an_unbroken_run(tmp_path, coco):
    options = [*coco, "--epochs", "2", "--checkpointing-steps", "2", "--log-interval", "1", "--drop-path", "0.3"]
    assert train_here("m2f", tmp_path / "whole", *options) == 0
    start = tmp_path / "whole" / "checkpoint_step_2.pth"  # of three steps an epoch
    assert train_here("m2f", tmp_path / "resumed", *options, "--resume-checkpoint", str(start)) == 0
    assert_same_state(*(tmp_path / run / "checkpoint_epoch_2.pth" for run in ("whole", "resumed")))
    later = [line for line in log_without_speed(tmp_path / "whole") if line["step"] > 2]
    assert log_without_speed(tmp_path / "resumed") == later


def test_the_test_split_is_evaluated_at_the_end_with_the_best_model(tmp_path, coco):
    data = tmp_path / "data"
    (data / "test").mkdir()
    for path in (data / "valid").iterdir():
        (data / "test" / path.name).write_bytes(path.read_bytes())
    options = [*coco, "--epochs", "3", "--lr", "1e-2", "--best-metric", "loss"]
    assert train_here("m2f", tmp_path / "run", *options) == 0
    best = min(metrics(tmp_path / "run", "", "val"), key=lambda line: line["loss"])
    (tested,) = metrics(tmp_path / "run", "", "test")
    for name in ("loss", "map", "ap50"):
        assert tested[name] == pytest.approx(best[name], rel=1e-5)
    assert tested["step"] == 9


def test_validation_comes_with_every_step_checkpoint(tmp_path, coco):
    assert train_here("m2f", tmp_path / "run", *coco, "--epochs", "2", "--checkpointing-steps", "2") == 0
    assert [line["step"] for line in metrics(tmp_path / "run", "", "val")] == [2, 3, 4, 6]
    names = {path.name for path in (tmp_path / "run").glob("*.pth")}
    assert names == {"checkpoint_step_2.pth", "checkpoint_step_4.pth", "checkpoint_epoch_2.pth"}


def test_more_objects_than_queries_is_said(tmp_path, coco, capsys):
    assert train_here("m2f", tmp_path / "run", *coco, "--num-queries", "1", "--max-steps", "1") == 0
    assert "--num-queries 1 " in capsys.readouterr().err


def test_that_coco_counts_100_objects_of_a_class_is_said(tmp_path, coco, capsys):
    path = tmp_path / "data" / "train" / "_annotations.coco.json"
    content = json.loads(path.read_text())
    first, box = content["images"][0]["id"], [2.0, 2.0, 9.0, 2.0, 9.0, 9.0]
    content["annotations"] += [
        {"id": 10_000 + k, "image_id": first, "category_id": 1, "segmentation": [box], "iscrowd": 0} for k in range(120)
    ]
    path.write_text(json.dumps(content))
    assert train_here("m2f", tmp_path / "run", *coco, "--num-queries", "130", "--max-steps", "1") == 0
    err = capsys.readouterr().err
    assert "--num-queries" not in err and "counts the 100 best" in err


def test_a_mistake_in_the_file_is_reported_before_the_first_step(tmp_path, coco, capsys):
    path = tmp_path / "data" / "train" / "_annotations.coco.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"] = [[0, 0, float("nan"), 4, 4, 4]]
    path.write_text(json.dumps(content))
    assert train_here("m2f", tmp_path / "run", *coco, "--max-steps", "1") == 2
    err = capsys.readouterr().err
    assert len([line for line in err.splitlines() if line.startswith("error:")]) == 1
    assert "--on-bad-sample skip" in err and not list(tmp_path.rglob("*.pth"))
    assert train_here("m2f", tmp_path / "run", *coco, "--max-steps", "1", "--on-bad-sample", "skip") == 0


def test_a_test_split_without_annotations_is_skipped_and_its_warnings_are_reported(tmp_path, coco, capsys):
    data = tmp_path / "data"
    shutil.copytree(data / "valid", data / "test")
    assert train_here("m2f", tmp_path / "first", *coco, "--max-steps", "1") == 0
    assert "as a validation image" in capsys.readouterr().err
    assert len(metrics(tmp_path / "first", "", "test")) == 1
    path = data / "test" / "_annotations.coco.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": []}))
    assert train_here("m2f", tmp_path / "second", *coco, "--max-steps", "1") == 0
    assert "test set has no annotations" in capsys.readouterr().err
    assert metrics(tmp_path / "second", "", "test") == []


def test_validation_is_on_the_file_that_is_named(tmp_path, coco):
    make_coco_demo_set(tmp_path / "other", 1, 4, 64, seed=9)
    folder = tmp_path / "other" / "valid"
    named = ["--val-coco-json", str(folder / "_annotations.coco.json"), "--val-coco-images", str(folder)]
    args = parse_training_arguments("m2f", [*coco, *named])
    sets = CocoSets.of(args)
    assert args.is_validated and not sets.is_held_out
    assert [image.path.parent for image in sets.splits["val"].images] == [folder] * 4
    assert len(sets.splits["train"].images) == 5


def test_another_number_of_classes_than_the_file_has_is_refused(coco):
    for given, found in (("3", 4), ("91", 4)):
        with pytest.raises(UserError, match=naming(f"--num-classes {given}", f"{found} categories")):
            CocoSets.of(parse_training_arguments("m2f", [*coco, "--num-classes", given]))
    for fine in (["--num-classes", "4"], ["--num-classes", "150"], []):
        assert len(CocoSets.of(parse_training_arguments("m2f", [*coco, *fine])).class_names) == 4


@pytest.mark.parametrize("inner", ["images", "images/default"])
def test_a_cvat_export_is_a_folder_of_coco(tmp_path, coco, inner):
    made, cvat = tmp_path / "data" / "train", tmp_path / "cvat"
    (cvat / "annotations").mkdir(parents=True)
    shutil.copy(made / "_annotations.coco.json", cvat / "annotations" / "instances_default.json")
    shutil.copytree(made, cvat / inner, ignore=shutil.ignore_patterns("*.json"))
    args = parse_training_arguments("m2f", [*INSTANCE, "--coco-dir", str(cvat)])
    splits = CocoSets.of(args).splits
    assert set(splits) == {"train"} and all(image.path.is_file() for image in splits["train"].images)


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        (["--val-coco-json", "a.json", "--image-paths", "a", "--mask-paths", "b"], "--val-coco-json"),
        (["--task", "instance"], "--coco-dir, or --coco-json with --coco-images"),
        (["--task", "instance", "--coco-json", "a.json"], "--coco-json and --coco-images"),
        (["--task", "panoptic", "--coco-dir", "d"], "--coco-json, --coco-images and --coco-segments"),
        (["--task", "instance", "--coco-dir", "d", "--image-paths", "x"], "--image-paths"),
        (["--task", "instance", "--coco-dir", "d", "--eval-mode", "slide"], "--eval-mode slide"),
        (["--coco-dir", "d"], "--image-paths and --mask-paths"),
    ],
)
def test_flags_that_do_not_fit(tmp_path, words, flags, capsys):
    with pytest.raises(SystemExit) as stop:
        train_here("m2f", tmp_path / "run", *words)
    assert stop.value.code == 2 and flags in capsys.readouterr().err


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> tuple[Path, list[str]]:
    """A run in one process, and its options except for the batch: without batch norms and stochastic depth, which
    see one process's share."""
    folder = tmp_path_factory.mktemp("one")
    make_coco_demo_set(folder / "data", 8, 3, 64)
    data = [*INSTANCE, "--coco-dir", str(folder / "data")]
    options = [*data, "--epochs", "2", "--log-interval", "1", "--adapter", "pyramid", "--best-metric", "map"]
    assert train_here("m2f", folder / "run", *options, "--batch-size", "4") == 0
    return folder / "run", options


def test_two_processes_give_the_losses_of_one(tmp_path, one_process):
    """The same data, seed and global batch."""
    run, options = one_process
    done = run_script("m2f", tmp_path / "two", *options, "--batch-size", "2", launcher="accelerate")
    assert done.returncode == 0, done.stderr
    one, two = metrics(run, "", "train"), metrics(tmp_path / "two", "", "train")
    assert len(one) == len(two) == 4
    for a, b in zip(one, two, strict=True):
        for name in ("class", "mask", "dice", "loss"):
            assert b[name] == pytest.approx(a[name], rel=1e-4)
    # Metrics over all images once, and files from one process alone.
    for a, b in zip(*(metrics(folder, "", "val") for folder in (run, tmp_path / "two")), strict=True):
        assert b["ar100"] == pytest.approx(a["ar100"], abs=1e-3) and b["map"] == pytest.approx(a["map"], abs=1e-3)
    assert {p.name for p in (tmp_path / "two").glob("*.pth")} == {"checkpoint_epoch_2.pth"}


def test_panoptic_segmentation_is_learned(tmp_path):
    files = panoptic_set(tmp_path / "set", 4)
    flags = ["--coco-json", "--coco-images", "--coco-segments"]
    data = [word for pair in zip(flags, files, strict=True) for word in pair]
    data += [word for flag, path in zip(flags, files, strict=True) for word in (f"--val-{flag[2:]}", path)]
    options = ["--task", "panoptic", "--image-size", "64", "--no-augmentation", "--lr", "4e-3", "--batch-size", "4"]
    steps = ["--max-steps", "40", "--val-interval", "40", "--best-metric", "pq", "--weight-decay", "0.05"]
    assert train_here("m2f", tmp_path / "run", *data, *options, *steps) == 0
    last = metrics(tmp_path / "run", "", "val")[-1]
    assert last["pq"] > 0.6 and last["pq_stuff"] > 0.6 and last["pq_things"] > 0.4
    assert set(last["pq_of_class"]) == {"sky", "ground", "box"}


def test_the_test_split_is_checked_and_its_evaluation_made_up_for(tmp_path, capsys):
    make_coco_demo_set(tmp_path / "data", 4, 2, 64)
    (tmp_path / "data" / "test").mkdir()
    for path in (tmp_path / "data" / "valid").iterdir():
        (tmp_path / "data" / "test" / path.name).write_bytes(path.read_bytes())
    options = ["--task", "instance", "--image-size", "64", "--coco-dir", str(tmp_path / "data"), "--max-steps", "2"]
    options += ["--resume-checkpoint", "auto"]
    image = next((tmp_path / "data" / "test").glob("*.png"))
    content = image.read_bytes()
    image.unlink()
    assert train_here("m2f", tmp_path / "run", *options) == 2
    assert str(image) in capsys.readouterr().err
    image.write_bytes(content)
    assert train_here("m2f", tmp_path / "run", *options) == 0

    log = tmp_path / "run" / "metrics.jsonl"
    (tested,) = metrics(tmp_path / "run", "", "test")
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(line for line in lines if '"split": "test"' not in line))  # as if killed before
    assert train_here("m2f", tmp_path / "run", *options) == 0
    assert metrics(tmp_path / "run", "", "test") == [tested]
    assert train_here("m2f", tmp_path / "run", *options) == 0
    assert "nothing is left to do" in capsys.readouterr().err
