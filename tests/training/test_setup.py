"""What is checked before the first step: a mistake gives one message that names the culprit, and exit code 2."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from messages import names
from PIL import Image
from training_helpers import drawn, train_here

from data.reduced_jpeg import JpegPixels
from heads.options import with_defaults
from training.checkpoints import Resumed
from training.config import parse_training_arguments
from training.setup import head_spec

pytestmark = pytest.mark.slow


class TestMistakes:
    """One message that names the culprit, exit code 2, no traceback."""

    def fails(self, capsys, tmp_path, *options: str) -> str:
        capsys.readouterr()
        assert train_here("upernet", tmp_path / "run", *options) == 2
        return capsys.readouterr().err

    def test_no_images(self, tmp_path, capsys):
        err = self.fails(capsys, tmp_path, "--image-paths", "nowhere/*.png", "--mask-paths", "nowhere/*.png")
        assert err.startswith("error: --image-paths 'nowhere/*.png' ")

    def test_folder_holds_a_run(self, tmp_path, capsys):
        data = drawn(tmp_path / "data")
        assert train_here("upernet", tmp_path / "run", *data, "--max-steps", "1") == 0
        assert names(self.fails(capsys, tmp_path, *data, "--max-steps", "1"), tmp_path / "run", "--overwrite")
        assert train_here("linear", tmp_path / "run", *data, "--max-steps", "1") == 0  # another head may join
        elsewhere = tmp_path / "elsewhere"
        assert train_here("upernet", elsewhere, *data, "--max-steps", "1") == 0
        foreign = str(elsewhere / "upernet_checkpoint_step_1.pth")
        more = ["--max-steps", "9", "--resume-checkpoint", foreign]
        assert names(self.fails(capsys, tmp_path, *data, *more), tmp_path / "run", "--overwrite")
        assert train_here("upernet", tmp_path / "run", *data, "--max-steps", "4") == 2
        old = tmp_path / "run" / "upernet_checkpoint_epoch_9.pth"
        old.write_bytes(b"of the old run")
        assert train_here("upernet", tmp_path / "run", *data, "--max-steps", "1", "--overwrite") == 0
        assert not old.exists() and (tmp_path / "run" / "linear_checkpoint_step_1.pth").exists()

    def test_a_first_start_that_failed_does_not_block_the_second(self, tmp_path, capsys):
        data = drawn(tmp_path / "data")
        wrong = [word if word != "5" else "2" for word in data]
        assert names(self.fails(capsys, tmp_path, *wrong, "--max-steps", "1"), "--num-classes", "train/0000.png")
        assert train_here("upernet", tmp_path / "run", *data, "--max-steps", "1") == 0

    def test_folder_that_cannot_be_written_to(self, tmp_path, capsys):
        data = drawn(tmp_path / "data")
        (tmp_path / "run").write_text("a file")
        assert names(self.fails(capsys, tmp_path, *data), "--checkpoint-dir", tmp_path / "run")

    @pytest.mark.parametrize("name", [".upernet_lock", "upernet_metrics.jsonl", "upernet_run.json"])
    def test_a_folder_in_the_place_of_a_file(self, tmp_path, capsys, name):
        (tmp_path / "run" / name).mkdir(parents=True)
        assert name in self.fails(capsys, tmp_path, *drawn(tmp_path / "data"))

    @pytest.mark.parametrize("name", ["upernet_tensorboard", "upernet_best_model", "upernet_pictures"])
    def test_a_file_in_the_place_of_a_folder(self, tmp_path, capsys, name):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / name).write_text("a file")
        assert name in self.fails(capsys, tmp_path, *drawn(tmp_path / "data"))

    def test_broken_checkpoint(self, tmp_path, capsys):
        data = drawn(tmp_path / "data")
        broken = tmp_path / "broken.pth"
        broken.write_bytes(b"PK\x03\x04 half a file")
        assert str(broken) in self.fails(capsys, tmp_path, *data, "--resume-checkpoint", str(broken))
        missing = str(tmp_path / "missing.pth")
        assert missing in self.fails(capsys, tmp_path, *data, "--resume-checkpoint", missing)

    def test_adapter_that_does_not_fit(self, tmp_path, capsys):
        data = drawn(tmp_path / "data")
        assert "--adapter none" in self.fails(capsys, tmp_path, *data, "--backbone", "resnet18", "--adapter", "dinov3")
        assert "--adapter dinov3" in self.fails(capsys, tmp_path, *data, "--adapter", "none")


def test_mask_value_out_of_range(tmp_path, capsys):
    """Reported before the first step, with every file."""
    data = drawn(tmp_path / "data")
    data[data.index("--num-classes") + 1] = "2"
    assert train_here("upernet", tmp_path / "run", *data) == 2
    err = capsys.readouterr().err
    assert len([line for line in err.splitlines() if line.startswith("error:")]) == 1
    assert names(err, "6 masks", "--num-classes")
    assert all(f"train/000{i}.png" in err for i in range(4)) and not list(tmp_path.rglob("*.pth"))


def test_a_resumed_run_keeps_what_no_flag_says():
    """Order of dropout and norm, and the map of ConvNeXt, of a run from before there was another."""
    words = ["--image-paths", "a", "--mask-paths", "b", "--backbone", "convnext_atto"]
    config = parse_training_arguments("linear", words)
    new = head_spec(config, 3, None, None)
    assert new.options["drops_input"] and new.adapter == "auto"
    older = {
        "head": "linear",
        "adapter": "none",
        "options": {"use_all_maps": False, "dropout": 0.1, "dice_weight": 0.0},
    }
    resumed = Resumed(Path("x.pth"), {"spec": older, "backbone": {"name": "convnext_atto"}})
    spec = head_spec(config, 3, resumed, None)
    assert "drops_input" not in spec.options and spec.adapter == "none"
    assert with_defaults({**older, "hidden_dim": 0})["options"] == spec.options
    now = Resumed(Path("x.pth"), {"spec": asdict(new), "backbone": {"name": "convnext_tiny"}})
    assert head_spec(config, 3, now, None) == new


def test_training_decodes_reduced_jpegs_and_validation_whole_ones(tmp_path, monkeypatch):
    """Its numbers are those of the images as they are."""
    data = [word.replace("images/train/*.png", "images/train/*.jpg") for word in drawn(tmp_path / "data", 4, 2)]
    data = [word.replace("images/val/*.png", "images/val/*.jpg") for word in data]
    for path in (tmp_path / "data" / "images").glob("*/*.png"):
        Image.open(path).save(path.with_suffix(".jpg"), quality=95)
    decoded, reduced = [], JpegPixels.reduced
    monkeypatch.setattr(JpegPixels, "reduced", lambda *args: decoded.append(args[0].path) or reduced(*args))
    options = [*data, "--image-size", "32", "--no-augmentation", "--epochs", "2"]
    for name, more in (("off", []), ("on", ["--reduced-jpeg"])):
        assert train_here("linear", tmp_path / name, *options, *more) == 0
        assert json.loads((tmp_path / name / "linear_run.json").read_text())["arguments"]["reduced_jpeg"] == (
            name == "on"
        )
        assert [path.parent.name for path in decoded] == (["train"] * 8 if name == "on" else [])
