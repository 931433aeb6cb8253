"""Released heads as they are: evaluated and predicted with, without a training."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from messages import naming
from PIL import Image
from training_helpers import drawn
from transformers_reference import whole_mask2former

import released.sources as sources
from backbones.frozen import build_backbone
from data.known_classes import ADE20K, COCO_IDS, COCO_STUFF, COCO_THINGS
from demo import evaluate, predict
from errors import UserError
from heads.build import HeadSpec
from prediction.predictor import Predictor
from released.model import load_model
from segmenter import Segmenter

TINY = "test_vit"
NAMES = ["background", "circle", "square", "triangle"]


@pytest.fixture(scope="module")
def mask2former(tmp_path_factory) -> tuple[Path, torch.nn.Module]:
    """transformers' folder of a Mask2Former on Swin with the classes of the drawn set, and the model."""
    model = whole_mask2former("swin", len(NAMES), 64, 12)
    model.config.id2label = dict(enumerate(NAMES))
    folder = tmp_path_factory.mktemp("swin")
    model.save_pretrained(folder)
    return folder, model


def pmt_file(folder: Path, num_classes: int) -> Path:
    torch.manual_seed(0)
    spec = HeadSpec("pmt", "auto", num_classes, 0, options={"num_queries": 6, "num_blocks": 2})
    head = Segmenter(build_backbone(TINY, "random"), spec).head
    path = folder / "pytorch_model.bin"
    torch.save({"state_dict": {f"network.{name}": t for name, t in head.state_dict().items()}}, path)
    return path


def test_a_whole_mask2former_gives_its_own_logits(mask2former):
    folder, reference = mask2former
    model = load_model(folder)
    assert (model.task, model.class_names, model.spec.adapter) == ("semantic", NAMES, "stage_norm")
    assert model.path == str(folder) and not model.training
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs, expected = model(images), reference(pixel_values=images)
    torch.testing.assert_close(outputs.class_logits[-1], expected.class_queries_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outputs.last_masks, expected.masks_queries_logits, rtol=1e-4, atol=1e-4)


def test_a_released_head_is_evaluated_and_predicts_the_same(mask2former, tmp_path):
    folder, _ = mask2former
    drawn(tmp_path / "data", train=1, val=2)
    val = tmp_path / "data"
    words = ["-m", folder, "--image-paths", f"{val}/images/val/*.png", "--mask-paths", f"{val}/masks/val/*.png"]
    words += ["--short-side", 64, "--num-workers", 0, "--output-dir", tmp_path / "out", "--json", tmp_path / "all.json"]
    words += ["--save-predictions", tmp_path / "saved"]
    config = evaluate.parse_evaluate_arguments([str(word) for word in words])
    assert evaluate.run_job(lambda: evaluate.evaluate(config)) == 0
    found = json.loads((tmp_path / "all.json").read_text())
    assert found["model"] == str(folder) and found["class_names"] == NAMES and 0 <= found["metrics"]["miou"] <= 1
    predictor = Predictor.load(folder, short_side=64)
    for path in (val / "images" / "val").glob("*.png"):
        saved = np.array(Image.open(tmp_path / "saved" / "masks" / path.name))
        assert np.array_equal(saved, predictor.predict(path).mask())


@pytest.mark.parametrize(("number", "task"), [(80, "instance"), (133, "panoptic"), (150, "semantic"), (7, "semantic")])
def test_the_number_of_classes_tells_the_task(tmp_path, number, task):
    model = load_model(pmt_file(tmp_path, number), "random", TINY)
    assert model.task == task and len(model.class_names) == number
    assert model.arguments["image_size"] == (512 if task == "semantic" else 480)
    assert model.arguments["eval_mode"] == ("slide" if task == "semantic" else "whole")
    if task == "semantic":
        assert model.labels["reduce_zero_label"] == (number == len(ADE20K))
    else:
        assert model.labels["category_ids"] == list(COCO_IDS[:number])
        assert sum(model.labels["is_thing"]) == len(COCO_THINGS)
    assert Predictor(model, short_side=64, eval_mode="whole").predict(np.zeros((64, 64, 3), np.uint8))


def test_the_ids_of_coco():
    assert len(COCO_IDS) == len(COCO_THINGS + COCO_STUFF) and sorted(set(COCO_IDS)) == list(COCO_IDS)
    ids = dict(zip(COCO_THINGS + COCO_STUFF, COCO_IDS, strict=True))
    known = {"person": 1, "stop sign": 13, "toothbrush": 90, "banner": 92, "tree-merged": 184, "rug-merged": 200}
    assert known.items() <= ids.items()


def test_a_released_head_predicts_from_the_script(tmp_path):
    Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(tmp_path / "image.png")
    words = ["-m", pmt_file(tmp_path, 133), "--weights", "random", "--backbone", TINY, "--short-side", 64]
    words += ["-i", tmp_path / "image.png", "-o", tmp_path / "found.png", "--save", "masks"]
    args = predict.parse_arguments([str(word) for word in words])
    assert predict.run_job(lambda: predict.predict(args)) == 0
    assert (tmp_path / "found.png").is_file()


@pytest.mark.parametrize(
    ("number", "options", "words"),
    [
        (7, {"backbone": TINY, "task": "panoptic"}, ["--task panoptic", "7"]),
        (7, {}, ["--backbone"]),
        (7, {"backbone": "dinov3_vits16"}, ["another shape"]),
    ],
)
def test_what_is_missing_is_named(tmp_path, number, options, words):
    with pytest.raises(UserError, match=naming(*words)):
        load_model(pmt_file(tmp_path, number), "random", **options)


def test_a_hub_name_is_downloaded_once(tmp_path, monkeypatch):
    pmt_file(tmp_path, 80)
    asked = []
    monkeypatch.setattr(sources, "fetch", lambda repo: asked.append(repo) or tmp_path)
    assert load_model("tue-mps/coco_instance_pmt", "random", TINY).task == "instance"
    assert sources.read_released("hf-hub:tue-mps/coco_instance_pmt").head == "pmt"
    assert asked == ["tue-mps/coco_instance_pmt"] * 2
