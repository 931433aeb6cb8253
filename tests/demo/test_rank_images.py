"""The label loop through its scripts: train, rank, correct the pre-annotations, train further on all labels."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from messages import names
from PIL import Image
from training_helpers import metrics, train_here

from data.drawn.sets import DEMO_CLASSES, make_coco_demo_set, make_demo_set
from demo import rank_images as script
from prediction.predictor import Predictor

pytestmark = pytest.mark.slow

SIZE_PX = 32
STEPS = ["--image-size", str(SIZE_PX), "--max-steps", "4", "--lr", "0.01", "--no-augmentation"]


def run(*words: object) -> int:
    """In this process; returns the exit code."""
    config = script.parse_rank_arguments([str(word) for word in words])
    return script.run_job(lambda: script.rank_images(config))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """labelled/ with four images and masks, pool/ with images, truth/ with their masks, run/ of the labelled ones."""
    folder = tmp_path_factory.mktemp("loop")
    make_demo_set(folder / "drawn", 10, 1, SIZE_PX)
    for kind in ("images", "masks"):
        for number, path in enumerate(sorted((folder / "drawn" / kind / "train").glob("*.png"))):
            into = f"labelled/{kind}" if number < 4 else "pool" if kind == "images" else "truth"
            (folder / into).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / into)
    shutil.copy(folder / "drawn" / "classes.txt", folder / "labelled")
    assert train_here("linear", folder / "run", "--data", str(folder / "labelled"), *STEPS) == 0
    return folder


def test_the_loop_as_it_is_documented(folder, tmp_path, capsys):
    shutil.copytree(folder / "labelled", tmp_path / "labelled")
    shutil.copy(folder / "labelled/images/0000.png", folder / "pool")  # it is labelled already
    out = tmp_path / "round_1"
    pool = ["--image-paths", folder / "pool", "--labelled", folder / "labelled/images"]
    assert run("-m", folder / "run", *pool, "--top", 3, "--output-dir", out) == 0
    ranking = json.loads((out / "ranking.json").read_text())
    scores = [one["uncertainty"] for one in ranking["images"]]
    assert len(scores) == 6 and scores == sorted(scores, reverse=True) and 0 < scores[-1] < scores[0] < 1
    chosen = sorted(one["image"] for one in ranking["images"][:3])
    assert chosen == sorted(path.name for path in (out / "masks/masks").iterdir()) and "0000.png" not in chosen
    predictor = Predictor.load(folder / "run")
    for name in chosen:  # what the model predicts, from which a person starts
        mask = np.array(Image.open(out / "masks/masks" / name))
        assert np.array_equal(mask, predictor.predict(folder / "pool" / name).classes)

    for name in chosen:  # the person
        shutil.copy(folder / "truth" / name, out / "masks/masks")
    for kind in ("images", "masks"):
        shutil.copytree(out / "masks" / kind, tmp_path / "labelled" / kind, dirs_exist_ok=True)
    capsys.readouterr()
    words = ["--data", str(tmp_path / "labelled"), "--init-head", str(folder / "run/linear_checkpoint_epoch_2.pth")]
    assert train_here("linear", tmp_path / "run_2", *words, *STEPS) == 0
    record = json.loads((tmp_path / "run_2/linear_run.json").read_text())
    assert record["init_head"]["reset"]["count"] == 0 and record["init_head"]["loaded"]["count"] > 0
    assert record["data"]["train"]["pictures"] == 7
    first = [metrics(folder_, "linear_", "train")[-1]["loss"] for folder_ in (folder / "run", tmp_path / "run_2")]
    assert first[1] < first[0]


def test_flips_and_heads_rank_the_same_images(folder, tmp_path):
    assert train_here("linear", tmp_path / "other", "--data", str(folder / "labelled"), *STEPS, "--seed", "1") == 0
    pool = ["--image-paths", f"{folder}/pool/*.png", "--save", "coco"]
    rankings = {}
    for by, models in (("flips", [folder / "run"]), ("heads", [folder / "run", tmp_path / "other"])):
        assert run("-m", *models, *pool, "--by", by, "--top", 1, "--output-dir", tmp_path / by) == 0
        rankings[by] = json.loads((tmp_path / by / "ranking.json").read_text())["images"]
        assert [path.name for path in (tmp_path / by).iterdir() if path.is_dir()] == ["coco"]
    assert {one["image"] for one in rankings["flips"]} == {one["image"] for one in rankings["heads"]}
    assert rankings["flips"] != rankings["heads"]


def test_objects_are_pre_annotated_as_objects(tmp_path, capsys):
    make_coco_demo_set(tmp_path / "data", 2, 1, SIZE_PX)
    data = ["--task", "instance", "--data", str(tmp_path / "data"), *STEPS]
    assert train_here("pmt", tmp_path / "run", *data, "--max-steps", "1") == 0
    images = ["--image-paths", f"{tmp_path}/data/train/*.png"]
    assert run("-m", tmp_path / "run", *images, "--output-dir", tmp_path / "round") == 0
    assert names(capsys.readouterr().err, "--save masks")
    content = json.loads((tmp_path / "round/coco/annotations/instances_default.json").read_text())
    assert [one["name"] for one in content["categories"]] == list(DEMO_CLASSES[1:]) and len(content["images"]) == 2
    assert not (tmp_path / "round/masks").exists()


def test_what_cannot_be_ranked_is_named(folder, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/broken.png").write_bytes(b"no image")
    shutil.copy(folder / "pool/0005.png", tmp_path / "images")
    words = ["-m", folder / "run", "--image-paths", tmp_path / "images"]
    assert run(*words, "--output-dir", tmp_path / "out") == 1
    assert names(capsys.readouterr().err, "broken.png") and (tmp_path / "out/masks/masks/0005.png").exists()
    assert run(*words, "--output-dir", tmp_path / "out") == 2  # a round is never mixed with another
    assert names(capsys.readouterr().err, "--output-dir")
    (tmp_path / "images/broken.png").unlink()
    shutil.copy(folder / "pool/0005.png", tmp_path / "images/0005.tif")
    assert run(*words, "--output-dir", tmp_path / "both") == 2  # one mask for two images
    assert names(capsys.readouterr().err, "0005.png")
    assert (tmp_path / "both/ranking.json").exists()  # what took the time is kept
    with pytest.raises(SystemExit) as stop:
        script.parse_rank_arguments([*map(str, words), "--output-dir", "x", "--by", "heads"])
    assert stop.value.code == 2 and names(capsys.readouterr().err, "--by heads", "--model-path")


def test_models_that_take_other_values_are_not_compared(folder, tmp_path, capsys):
    data = ["--data", str(folder / "labelled"), "--value-range", "0", "200"]
    assert train_here("linear", tmp_path / "other", *data, *STEPS) == 0
    words = ["-m", folder / "run", tmp_path / "other", "--by", "heads", "--image-paths", folder / "pool"]
    assert run(*words, "--output-dir", tmp_path / "ranked") == 2
    assert names(capsys.readouterr().err, "-m")
