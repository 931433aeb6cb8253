"""The PMT head by really training: its recipe's defaults, objects and panoptic maps, beside other heads."""

import shlex

import pytest
import torch
from panoptic_helpers import panoptic_set
from training_helpers import SMALL, assert_same_state, drawn, metrics, train_here

from checkpoint import read_checkpoint
from comparison.compare import compare
from comparison.config import parse_compare_arguments
from comparison.files import read_comparison
from data.drawn.sets import make_coco_demo_set
from errors import run_job
from heads.pmt import mask_chance
from segmenter import Segmenter
from training.config import config_of, parse_training_arguments
from training.run import train

PAIRS = ["--image-paths", "a", "--mask-paths", "b"]


def test_its_recipes_weight_decay_and_clipping_are_its_defaults(tmp_path):
    args = parse_training_arguments("pmt", PAIRS)
    assert (args.weight_decay, args.max_grad_norm, args.num_queries, args.num_blocks) == (0.05, 0.01, 200, 6)
    assert args == config_of("pmt")(image_paths=("a",), mask_paths=("b",))
    assert parse_training_arguments("pmt", [*PAIRS, "--weight-decay", "0.1"]).weight_decay == 0.1
    recipe = tmp_path / "recipe.json"
    recipe.write_text('{"max_grad_norm": 2}')
    assert parse_training_arguments("pmt", [*PAIRS, "--config", str(recipe)]).max_grad_norm == 2
    other = parse_training_arguments("m2f", PAIRS)
    assert (other.weight_decay, other.max_grad_norm) == (1e-4, 1.0)


@pytest.mark.slow
def test_objects_of_a_few_images_are_learned(tmp_path):
    make_coco_demo_set(tmp_path / "data", 2, 1, 64)
    folder = tmp_path / "data" / "train"
    files = ["--coco-json", str(folder / "_annotations.coco.json"), "--coco-images", str(folder)]
    same = [f"--val-{word[2:]}" if word.startswith("--") else word for word in files]
    options = ["--task", "instance", "--image-size", "64", "--no-augmentation", "--lr", "2e-3", "--batch-size", "2"]
    steps = ["--max-steps", "60", "--val-interval", "60", "--best-metric", "map"]
    assert train_here("pmt", tmp_path / "run", *files, *same, *options, *steps) == 0
    last = metrics(tmp_path / "run", "pmt_", "val")[-1]
    assert last["ap50"] > 0.9 and last["map"] > 0.7
    (path,) = (tmp_path / "run" / "pmt_best_model").iterdir()
    assert not read_checkpoint(path)["model"]["head.decoder.attn_mask_probs"].any()


@pytest.mark.slow
def test_panoptic_segmentation_is_learned(tmp_path):
    files = panoptic_set(tmp_path / "set", 4)
    flags = ["--coco-json", "--coco-images", "--coco-segments"]
    data = [word for pair in zip(flags, files, strict=True) for word in pair]
    data += [word for flag, path in zip(flags, files, strict=True) for word in (f"--val-{flag[2:]}", path)]
    options = ["--task", "panoptic", "--image-size", "64", "--no-augmentation", "--lr", "4e-3", "--batch-size", "4"]
    steps = ["--max-steps", "40", "--val-interval", "40", "--best-metric", "pq"]
    assert train_here("pmt", tmp_path / "run", *data, *options, *steps) == 0
    last = metrics(tmp_path / "run", "pmt_", "val")[-1]
    assert last["pq"] > 0.8 and last["pq_things"] > 0.8


@pytest.mark.slow
def test_a_checkpoint_knows_which_blocks_still_had_their_masks(tmp_path):
    data = drawn(tmp_path / "data")
    assert train_here("pmt", tmp_path / "run", *data, "--max-steps", "6", "--checkpointing-steps", "2") == 0
    for path in (tmp_path / "run").glob("pmt_checkpoint_*.pth"):
        saved = read_checkpoint(path)
        share = saved["progress"]["step"] / 6
        chances = Segmenter.load(path).head.decoder.chances
        assert chances == pytest.approx([mask_chance(share, block, 2) for block in range(2)])


@pytest.mark.slow
def test_a_comparison_gives_what_the_script_gives(tmp_path):
    data = drawn(tmp_path / "data", train=5, val=3)
    pairs = zip(SMALL["pmt"][::2], SMALL["pmt"][1::2], strict=True)
    words = [
        *data,
        *("--backbone", "test_vit", "--weights", "random", "--batch-size", "2", "--num-workers", "0"),
        *("--warmup-epochs", "0", "--checkpoint-dir", str(tmp_path / "both"), "--budget", "epochs=2"),
        *("--save-interval", "1", "--heads", "linear", "pmt", "--set", *(f"pmt.{f[2:]}={v}" for f, v in pairs)),
    ]
    assert run_job(lambda: compare(parse_compare_arguments(words)) and None) == 0
    result = read_comparison(tmp_path / "both" / "report" / "comparison.json").results[1]
    python, script, *argv = shlex.split(result.command)
    assert (result.head, python, script) == ("pmt", "python", "demo/train_pmt_head.py")
    argv[argv.index("--checkpoint-dir") + 1] = str(tmp_path / "alone")
    assert run_job(lambda: train(parse_training_arguments("pmt", argv))) == 0
    checkpoint = "pmt_checkpoint_epoch_2.pth"
    assert_same_state(tmp_path / "both" / "seed_0" / checkpoint, tmp_path / "alone" / checkpoint)


@pytest.mark.slow
def test_the_average_of_the_weights_takes_over_the_progress(tmp_path):
    data = drawn(tmp_path / "data")
    assert train_here("pmt", tmp_path / "run", *data, "--max-steps", "20", "--ema-decay", "0.99") == 0
    (path,) = (tmp_path / "run").glob("pmt_checkpoint_*.pth")
    saved = read_checkpoint(path)
    assert torch.equal(saved["model"]["head.decoder.attn_mask_probs"], torch.zeros(2))
