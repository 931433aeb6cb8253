"""--class-weights: by pixel counts and from a file; the same on resuming; the losses through the script."""

import json
import math

import pytest
from messages import names
from training_helpers import assert_same_state, drawn, metrics, train_here

from checkpoint import read_checkpoint
from errors import UserError
from training.class_weights import balanced, class_weights
from training.config import parse_training_arguments

CLASSES = ["road", "tree", "7"]


def test_rare_classes_count_more_and_the_mean_over_pixels_is_one():
    pixels = [9_000, 990, 10]
    found = balanced(pixels)
    raw = [1 / math.log(1.02 + share) for share in (0.9, 0.099, 0.001)]
    assert found == pytest.approx([w * found[0] / raw[0] for w in raw])
    assert sum(w * n for w, n in zip(found, pixels, strict=True)) / 10_000 == pytest.approx(1)
    assert found[2] > found[1] > found[0]
    assert balanced([5, 0])[1] < 50 / 1.4 * balanced([5, 0])[0] + 1  # a class that never occurs has a bounded weight


def test_a_file_names_classes_or_ids(tmp_path):
    path = tmp_path / "weights.json"
    path.write_text(json.dumps({"tree": 2.5, "0": 0, "7": 3}))
    assert class_weights(str(path), CLASSES, [], None) == [0.0, 2.5, 3.0]
    path.write_text("{}")
    assert class_weights(str(path), CLASSES, [], None) == [1.0, 1.0, 1.0]
    assert class_weights(None, CLASSES, [1, 2, 3], None) is None
    assert class_weights("auto", CLASSES, [1, 2, 3], [1.0, 2.0, 3.0]) == [1.0, 2.0, 3.0]  # as the run resumed has it


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("{", ["JSON"]),
        ("[1]", ["object"]),
        ('{"house": 1}', ["'house'", "road"]),
        ('{"3": 1}', ["'3'", "0 to 2"]),
        ('{"tree": 1, "1": 2}', ["tree", "twice"]),
        ('{"tree": -1}', ["'tree'", "-1"]),
        ('{"tree": true}', ["'tree'"]),
        ('{"tree": NaN}', ["'tree'"]),
        ('{"road": 0, "tree": 0, "7": 0}', ["above 0"]),
    ],
)
def test_mistakes_in_a_file_are_reported(tmp_path, content, parts):
    path = tmp_path / "weights.json"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        class_weights(str(path), CLASSES, [], None)
    assert names(str(error.value), "--class-weights", str(path), *parts)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--loss", "lovasz", "--ohem"], "--ohem"),
        (["--loss-pixels", "all", "--ohem"], "--ohem"),
        (["--loss-pixels", "all", "--loss", "lovasz"], "--loss lovasz"),
        (["--ohem-threshold", "0"], "--ohem-threshold"),
    ],
)
def test_losses_that_make_no_sense_together_are_refused(words, part, capsys):
    for head, refused in (("linear", part), ("m2f", words[0])):  # a mask head has none of these flags
        with pytest.raises(SystemExit) as stop:
            parse_training_arguments(head, ["--image-paths", "a", "--mask-paths", "b", *words])
        assert stop.value.code == 2 and refused in capsys.readouterr().err


@pytest.mark.slow
def test_weights_that_were_counted_are_kept_on_resuming(tmp_path):
    """Also where the counts are others by then: the checkpoint has them."""
    flags = [
        *drawn(tmp_path / "data", size_px=32),
        "--class-weights",
        "auto",
        "--loss",
        "focal",
        "--save-interval",
        "1",
    ]
    flags += ["--augmentation", "aerial", "--epochs", "2"]
    assert train_here("linear", tmp_path / "whole", *flags) == 0
    first = tmp_path / "whole" / "linear_checkpoint_epoch_1.pth"
    assert train_here("linear", tmp_path / "resumed", *flags, "--resume-checkpoint", str(first)) == 0
    last = "linear_checkpoint_epoch_2.pth"
    assert_same_state(tmp_path / "whole" / last, tmp_path / "resumed" / last)
    options = read_checkpoint(tmp_path / "resumed" / last)["spec"]["options"]
    assert len(set(options["class_weights"])) > 1 and options["drops_input"]
    assert metrics(tmp_path / "whole", "linear_", "train")[-1]["focal"] > 0


@pytest.mark.slow
def test_metas_recipe_trains_through_the_script(tmp_path):
    meta = ["--augmentation", "meta", "--lr-schedule", "meta", "--warmup-steps", "2", "--decay-all"]
    flags = [*drawn(tmp_path / "data", size_px=32), *meta, "--loss-pixels", "all", "--lr", "0.1", "--log-interval", "1"]
    assert train_here("linear", tmp_path / "run", *flags, "--max-steps", "4", "--max-grad-norm", "0") == 0
    rates = [line["lr"] for line in metrics(tmp_path / "run", "linear_", "train")]
    expected = [1e-7, 1e-7, 0.1 * (1 - 0.5 * (1 - 1e-6)) * 0.75, 0.05 * (1 + math.cos(math.pi * 3 / 4))]
    assert rates == pytest.approx(expected)
