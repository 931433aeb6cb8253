"""Exported models: onnxruntime and torch.export give PyTorch's numbers, and the files say what they are."""

import json
import logging
import math
import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hub_models import NAMES, linear_head
from messages import naming
from paths import ROOT
from PIL import Image

from backbones.frozen import FrozenBackbone
from checkpoint import read_checkpoint
from data.labels import LabelRule
from demo import export as script
from errors import UserError
from evaluation.drawing import class_colors
from export.about import about
from export.config import parse_export_arguments
from export.files import LOCAL, aside, portable_weights, write_onnx
from export.model import ExportedHead, ExportedModel, check_parity, largest_difference, trace
from heads.build import HeadSpec
from heads.options import HEADS
from released.model import load_model
from released.sources import read_released
from segmenter import Segmenter
from training.checkpoints import read_resumed
from training.config import config_of

pytestmark = pytest.mark.slow

onnxruntime = pytest.importorskip("onnxruntime", reason="pip install onnx onnxscript onnxruntime")

SPECS = {
    "linear": HeadSpec("linear", "auto", 3, 0, 0.0, {"drops_input": True}),
    "dpt": HeadSpec("dpt", "auto", 3, 8),
    "upernet": HeadSpec("upernet", "pyramid", 3, 8),
    "m2f": HeadSpec("m2f", "dinov3", 3, 32, 0.0, {"m2f_size": "paper", "num_queries": 4}),
    "pmt": HeadSpec("pmt", "auto", 3, 0, 0.0, {"num_queries": 4, "num_blocks": 1}),
}
TOLERANCE = 1e-3


def test_every_head_has_a_case():
    assert SPECS.keys() == HEADS.keys()


def build(head: str, task: str = "semantic") -> Segmenter:
    torch.manual_seed(0)
    with torch.random.fork_rng():
        model = timm.create_model("test_vit", num_classes=0, dynamic_img_size=True, depth=4)
    segmenter = Segmenter(FrozenBackbone(model, "test_vit", "random", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)), SPECS[head])
    segmenter.task, segmenter.class_names = task, NAMES
    is_thing = [True, True, False]
    coded = LabelRule(3, reduce_zero_label=True).as_dict()
    segmenter.labels = coded if task == "semantic" else {"category_ids": [7, 3, 9], "is_thing": is_thing}
    segmenter.arguments = {"image_size": 32, "max_megapixels": 180.0, "weights": "random"}
    return segmenter.eval()


@pytest.fixture
def one_layer(monkeypatch):
    """Mask2Former with one layer of each decoder: the others are traced alike."""
    monkeypatch.setattr("heads.mask2former.mask_decoder.NUM_LAYERS", 1)
    monkeypatch.setattr("heads.mask2former.pixel_decoder.NUM_LAYERS", 1)


@pytest.fixture(autouse=True)
def no_traces():
    """pytest listens to all loggers, and torch.export formats all that it traces where anybody does."""
    trace_log = logging.getLogger("torch.__trace")
    trace_log.propagate = False
    yield
    trace_log.propagate = True


@pytest.mark.parametrize("head", SPECS)
def test_a_head_on_features_is_the_model_on_images(head):
    segmenter = build(head)
    model, on_features = ExportedModel(segmenter), ExportedHead(segmenter, (32, 64))
    with torch.no_grad():
        expected, found = model(*model.example(1, (32, 64))), on_features(*on_features.example(1, (32, 64)))
        scores = segmenter.scores(model.normalised(*model.example(1, (32, 64))), (32, 64))
    assert largest_difference(found, expected) < 1e-5 and expected[0].shape == (1, 3, 32, 64)
    whole = expected[0].softmax(1) if head in ("linear", "dpt", "upernet") else expected[0]
    torch.testing.assert_close(whole, scores)
    assert ("images" in on_features.input_names) == (segmenter.spec.adapter == "dinov3")


@pytest.mark.skipif(not os.environ.get("EXPORT_ALL"), reason="a minute and a half: EXPORT_ALL=1 runs it")
@pytest.mark.parametrize("size_hw", [(64, 32), (64, 96)])
@pytest.mark.parametrize("head", SPECS)
def test_onnx_gives_pytorchs_numbers(head, size_hw, tmp_path, one_layer, monkeypatch):
    monkeypatch.setitem(SPECS, "m2f", replace(SPECS["m2f"], adapter="pyramid"))
    model = ExportedHead(build(head), size_hw)
    assert write_onnx(model, tmp_path / "head.onnx", size_hw, False, {}, TOLERANCE) < 1e-4


def test_onnx_of_a_head_with_means_over_the_backbone(tmp_path):
    """UPerNet pools by means, whose names in ONNX are not those of the normalisation."""
    model = ExportedModel(build("upernet"))
    assert write_onnx(model, tmp_path / "model.onnx", (32, 64), False, {}, TOLERANCE) < 1e-4


def test_objects_of_mask2former_are_traced_for_any_batch(one_layer, monkeypatch):
    """Deformable attention is that of grid_sample: no runtime has the CPU's function."""
    monkeypatch.setitem(SPECS, "m2f", replace(SPECS["m2f"], adapter="pyramid"))
    model = ExportedHead(build("m2f", "instance"), (64, 32))
    assert model.output_names == ["class_logits", "mask_logits"]
    said = about(model.segmenter)
    assert json.loads(said["class_ids"]) == [7, 3, 9] and json.loads(said["is_thing"]) == [True, True, False]
    program = trace(model, (64, 32), False)
    assert any("grid_sampler" in str(node.target) for node in program.graph.nodes)
    assert check_parity(model, lambda example: program.module()(*example), (64, 32), False, TOLERANCE) < 1e-4


@pytest.fixture(scope="module")
def linear_file(tmp_path_factory) -> Path:
    """A head as .safetensors, on the backbone that its name stands for."""
    return linear_head(tmp_path_factory.mktemp("linear") / "linear.safetensors")


def run(*words: object) -> int:
    """In this process; returns the exit code."""
    config = parse_export_arguments([str(word) for word in words])
    return script.run_job(lambda: script.export(config))


def test_the_script_of_the_page_needs_none_of_this_program(linear_file, tmp_path):
    onnx, image, mask = tmp_path / "linear.onnx", tmp_path / "image.png", tmp_path / "mask.png"
    assert run("-m", linear_file, "-o", onnx) == 0
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(image)
    code = re.search(
        r"```python\n(import json.+?)```", (ROOT / "docs/export.md").read_text(encoding="utf-8"), re.DOTALL
    )[1]
    allowed = {"onnxruntime", "numpy", "PIL"}
    assert set(re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE)) == allowed | {"json", "sys"}
    code += "\nassert not {'torch', 'timm', 'export', 'segmenter', 'heads'} & set(sys.modules)\n"
    words = [sys.executable, "-I", "-c", code, onnx, image, mask]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == NAMES
    segmenter = load_model(linear_file)
    with torch.no_grad():
        (logits,) = ExportedModel(segmenter)(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    found = Image.open(mask)
    assert np.array_equal(np.array(found), logits[0].argmax(0).numpy())
    assert np.array_equal(np.array(found.getpalette()[:9]).reshape(3, 3), class_colors(3))
    said = onnxruntime.InferenceSession(onnx).get_modelmeta().custom_metadata_map
    assert json.loads(said["class_names"]) == NAMES and json.loads(said["class_ids"]) == [1, 2, 3]
    assert (said["task"], said["backbone"], said["backbone_licence"]) == ("semantic", "test_vit", "none")
    assert said["backbone_fingerprint"] == segmenter.backbone.fingerprint


def test_a_program_of_torch_export(linear_file, tmp_path):
    words = ["--format", "torch-export", "--dynamic-size"]
    assert run("-m", linear_file, "-o", tmp_path / "linear.pt2", *words) == 0
    said = {"about.json": ""}
    program = torch.export.load(tmp_path / "linear.pt2", extra_files=said).module()
    model = ExportedModel(load_model(linear_file))
    example = model.example(3, (32, 160))
    torch.testing.assert_close(program(*example), model(*example))
    assert json.loads(json.loads(said["about.json"])["class_names"]) == NAMES


@pytest.mark.parametrize("head", ["linear", "pmt"])
def test_dinov3s_positions_take_any_size(head):
    model = timm.create_model(
        "vit_small_patch16_dinov3", num_classes=0, dynamic_img_size=True, depth=4, embed_dim=64, num_heads=2
    )
    spec = replace(SPECS[head], options={**SPECS[head].options, **({"num_blocks": 1} if head == "pmt" else {})})
    segmenter = Segmenter(FrozenBackbone(model, "test", "random", (0.5,) * 3, (0.2,) * 3), spec).eval()
    segmenter.task = "semantic"
    exported = ExportedModel(segmenter)
    program = trace(exported, (64, 96), is_dynamic=True).module()
    for size_hw in ((32, 160), (64, 96)):
        example = exported.example(1, size_hw)
        torch.testing.assert_close(program(*example), exported(*example))
    assert "get_embed" not in vars(model.rope)


def test_safetensors_are_a_checkpoint(linear_file):
    segmenter = load_model(linear_file)
    assert (segmenter.class_names, segmenter.task, segmenter.labels["reduce_zero_label"]) == (NAMES, "semantic", True)
    assert "image_paths" not in segmenter.arguments and segmenter.arguments["weights"] == "random"
    released = read_released(linear_file)
    assert released.class_names == NAMES and released.fingerprint == segmenter.backbone.fingerprint
    assert all(torch.equal(t, segmenter.trainable_state()[name]) for name, t in released.state.items())
    with pytest.raises(UserError, match=naming("optimizer", "--init-head")):
        read_resumed(linear_file)


def test_altered_safetensors_are_refused(linear_file, tmp_path):
    content = linear_file.read_bytes()
    for name, changed in {
        "names": content.replace(b"road", b"rold"),
        "values": content[:-1] + bytes([content[-1] ^ 1]),
        "end": content[:-8],
        "header": content.replace(b"segmentation_head", b"segmentation_hood"),
    }.items():
        assert changed != content
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(changed)
        with pytest.raises(UserError, match=f"{name}.safetensors"):
            read_checkpoint(path)


def test_a_difference_above_the_tolerance_writes_nothing(tmp_path):
    model = ExportedModel(build("linear"))
    good = tmp_path / "good.pt2"
    good.write_text("before")
    with pytest.raises(UserError, match="--tolerance"):
        check_parity(model, lambda example: [x + 0.01 for x in model(*example)], (32, 32), False, TOLERANCE)
    with pytest.raises(UserError, match="--tolerance"), aside(good) as written:
        written.write_text("after")
        raise UserError("--tolerance")
    assert good.read_text() == "before" and list(tmp_path.iterdir()) == [good]
    assert largest_difference([torch.tensor([1.0, math.nan])], [torch.zeros(2)]) == math.inf
    assert largest_difference([torch.zeros(2)], [torch.zeros(3)]) == math.inf


@pytest.mark.parametrize(
    "words",
    [
        ["-o", "a.onnx"],
        ["-m", "run", "-o", "a.onnx", "--image-size", "50", "64"],
        ["-m", "run", "-o", "a.onnx", "--dynamic-size", "--image-size", "64", "64"],
        ["-m", "run", "-o", "a.onnx", "--dynamic-size", "--without-backbone"],
        ["-m", "run", "-o", "a.onnx", "--format", "safetensors"],
        ["-m", "run", "-o", "a.safetensors", "--format", "safetensors", "--dynamic-size"],
    ],
)
def test_mistakes_in_the_call(words):
    with pytest.raises(SystemExit) as stop:
        parse_export_arguments(words)
    assert stop.value.code == 2


def test_features_of_a_coarser_backbone_are_not_exported(linear_file, tmp_path, monkeypatch, capsys):
    segmenter = load_model(linear_file)
    segmenter.arguments["backbone_dtype"] = "int8"
    monkeypatch.setattr("released.model.load_model", lambda *words: segmenter)
    assert run("-m", linear_file, "-o", tmp_path / "a.onnx") == 2
    assert "--without-backbone" in capsys.readouterr().err


def test_weights_that_another_machine_finds():
    assert portable_weights("random") == "random" and portable_weights("timm/vit") == "timm/vit"
    assert portable_weights("/data/vit.pth") == portable_weights("https://secret") == portable_weights("auto") == "auto"


def test_no_flag_that_names_a_file_leaves_the_machine():
    """Weights aside, of which portable_weights keeps hub names."""
    places = ("FILE", "DIR", "PATH", "GLOB", "FOLDER")
    flags = [field for head in HEADS for field in fields(config_of(head)) if field.name != "weights"]
    named = {field.name for field in flags if any(word in (field.metadata["metavar"] or "") for word in places)}
    assert {"data", "image_paths"} <= named <= LOCAL
