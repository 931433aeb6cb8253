"""Every recipe in configs/ parses, says what it is, and trains: with its own settings but a small model."""

import json
from pathlib import Path

import numpy as np
import pytest
from meta_protocol import golden
from panoptic_helpers import panoptic_set
from paths import ROOT
from PIL import Image

from data.drawn.sets import make_coco_demo_set
from data.labels import label_options
from errors import run_job
from training.config import parse_training_arguments
from training.run import train

pytestmark = pytest.mark.slow

RECIPES = sorted((ROOT / "configs").glob("*.json"))
SMALL = ["--backbone", "test_vit", "--weights", "random", "--image-size", "64", "--num-workers", "0"]


def parsed(recipe: Path, *words: str):
    head = json.loads(recipe.read_text())["head"]
    return parse_training_arguments(head, ["--config", str(recipe), *words])


def pairs(folder: Path, args) -> list[str]:
    """Three images with masks that hold every class as the recipe's own data do."""
    rule, _ = label_options(
        args.num_classes, args.class_names, args.ignore_index, args.reduce_zero_label, args.label_map, args.palette
    )
    values = np.array([rule.stored_value(k) for k in range(rule.num_classes)] + [rule.ignore_index])
    draw = np.random.default_rng(0)
    for i in range(3):
        for kind, pixels in (
            ("images", draw.integers(0, 256, (64, 80, 3), np.uint8)),
            ("masks", np.resize(np.repeat(values, 4), (64, 80)).astype(np.uint8)),
        ):
            (folder / kind).mkdir(exist_ok=True, parents=True)
            Image.fromarray(pixels).save(folder / kind / f"{i}.png")
    return ["--image-paths", str(folder / "images"), "--mask-paths", str(folder / "masks")]


def test_the_recipes_that_are_promised_are_there():
    names = {path.stem for path in RECIPES}
    promised = {f"{head}_{size}" for head in ("m2f", "upernet", "linear") for size in ("vits", "vitl", "vit7b")}
    promised |= {
        "pmt_vits",
        "pmt_ade20k_vitl",
        "pmt_instance_vitl",
        "pmt_panoptic_vitl",
        "m2f_instance_vitsplus",
        "m2f_instance_vitl",
        "m2f_ade20k_vit7b_meta",
        *(f"linear_ade20k_{size}" for size in ("vits", "vitb", "vitl", "vit7b")),
    }
    assert promised <= names
    assert all(any(name in stem for stem in names) for name in ("ade20k", "cityscapes", "voc", "camvid"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_what_it_costs_and_trains(tmp_path, recipe, capsys):
    content = json.loads(recipe.read_text())
    assert "Costs:" in content["about"] and content["head"] == recipe.stem.split("_")[0]
    if content.get("task") == "instance":
        make_coco_demo_set(tmp_path / "data", 2, 1, 64)
        data = ["--coco-dir", str(tmp_path / "data")]
    elif content.get("task") == "panoptic":
        files = zip(
            ("--coco-json", "--coco-images", "--coco-segments"), panoptic_set(tmp_path / "data", 2), strict=True
        )
        data = [word for pair in files for word in pair]
    else:
        data = pairs(tmp_path / "data", parsed(recipe, "--image-paths", "x", "--mask-paths", "y"))
    small = [*SMALL, "--max-steps", "1", "--batch-size", "2", "--gradient-accumulation-steps", "1"]
    if content["head"] != "linear":
        small += ["--hidden-dim", "32"]
    if "stride" in content:
        small += ["--stride", "42"]
    if content["head"] in ("m2f", "pmt"):
        small += ["--num-points", "128"]
    args = parsed(recipe, *data, *small, "--checkpoint-dir", str(tmp_path / "run"))
    for key, value in content.items():  # all of the recipe counts, except for what stands on the command line
        if key not in ("about", "head", "label_map") and f"--{key.replace('_', '-')}" not in small:
            assert json.loads(json.dumps(getattr(args, key))) == value, key
    assert run_job(lambda: train(args)) == 0, capsys.readouterr().err
    assert list((tmp_path / "run").glob("*checkpoint_*_1.pth"))


@pytest.mark.parametrize(("size", "miou"), [("vits", 47.0), ("vitb", 51.8), ("vitl", 54.9), ("vit7b", 55.9)])
def test_the_linear_recipes_on_ade20k_are_metas(size, miou):
    recipe = ROOT / "configs" / f"linear_ade20k_{size}.json"
    published, args = (
        golden()[0]["config"]["linear_training"],
        parsed(recipe, "--image-paths", "x", "--mask-paths", "y"),
    )
    assert f" {miou} mIoU" in about(recipe)
    assert args.batch_size == published["images_per_gpu"] * published["gpus"] and args.gradient_accumulation_steps == 1
    assert (args.lr, args.weight_decay, args.decay_all) == (published["max_lr"], published["weight_decay"], True)
    assert (args.max_steps, args.warmup_steps, args.lr_schedule) == (published["steps"], published["warmup"], "meta")
    assert (args.image_size, list(args.scale_range)) == (published["short_side"], published["ratio"])
    assert (args.augmentation, args.loss_pixels, args.precision) == ("meta", "all", "fp32")
    assert (args.dropout, args.max_grad_norm, args.num_classes) == (published["dropout"], 0, published["classes"])
    inference = args.inference(args.image_size)
    assert inference.short_side_px == published["eval_short_side"] and not inference.has_flips
    assert inference.crop_hw == (published["eval_crop"],) * 2 and inference.stride_hw == (published["eval_stride"],) * 2
    assert args.checkpointing_steps == published["validate_every"]
    epochs = args.max_steps * args.batch_size / 20_210
    assert epochs < args.val_interval  # no validation between those of steps


def about(recipe: Path) -> str:
    return json.loads(recipe.read_text(encoding="utf-8"))["about"]


def test_a_recipe_for_another_head_is_refused(capsys):
    words = ["--config", str(ROOT / "configs/upernet_vits.json"), "--image-paths", "x", "--mask-paths", "y"]
    with pytest.raises(SystemExit) as stop:
        parse_training_arguments("m2f", words)
    assert stop.value.code == 2 and "demo/train_upernet_head.py" in capsys.readouterr().err
