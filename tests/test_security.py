"""Files from outside run nothing, reach nothing outside their folder, and do not fill the memory."""

import json
import os

import pytest
import torch
from messages import naming
from PIL import Image
from training_helpers import drawn, train_here

from backbones.weight_files import read_state
from checkpoint import read_checkpoint
from segmenter import Segmenter


class Payload:
    """What a malicious checkpoint holds: unpickling it would run a command."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch '{self.target}'",)


@pytest.fixture
def malicious(tmp_path):
    path = tmp_path / "malicious.pth"
    torch.save({"format": 2, "model": Payload(tmp_path / "it ran"), "progress": {}}, path)
    yield path
    assert not (tmp_path / "it ran").exists()


def test_a_malicious_checkpoint_is_refused_and_runs_nothing(tmp_path, malicious):
    for read in (read_checkpoint, Segmenter.load):
        with pytest.raises(ValueError, match=naming(malicious)):
            read(malicious)


def test_nor_as_weights_or_resumed(tmp_path, malicious, capsys):
    data = drawn(tmp_path / "data")
    assert train_here("linear", tmp_path / "run", *data, "--resume-checkpoint", str(malicious)) == 2
    assert "nothing in it was run" in capsys.readouterr().err
    options = ["--backbone", "dinov3_vits16", "--weights", str(malicious)]
    assert train_here("linear", tmp_path / "other", *data, *options) == 2
    err = capsys.readouterr().err
    assert err.count("error:") == 1 and "malicious.pth" in err
    assert train_here("linear", tmp_path / "run", *data, "--max-steps", "1") == 0
    (tmp_path / "run" / "linear_checkpoint_epoch_9.pth").write_bytes(malicious.read_bytes())
    assert train_here("linear", tmp_path / "run", *data, "--max-steps", "2", "--resume-checkpoint", "auto") == 0
    assert "nothing in it was run" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors", "..", "a\\b"])
def test_a_shard_index_cannot_leave_its_folder(tmp_path, name):
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a.weight": name}}))
    with pytest.raises(ValueError, match=naming("model.safetensors.index.json", repr(name))):
        read_state(folder)


def test_an_image_above_the_limit_is_refused_unread_and_a_flag_raises_it(tmp_path, capsys):
    data = drawn(tmp_path / "data")
    for kind in ("images", "masks"):
        path = tmp_path / "data" / kind / "train" / "0001.png"
        Image.open(path).resize((300, 200), Image.Resampling.NEAREST).save(path)
    small = ["--max-megapixels", "0.05", "--max-steps", "1"]
    assert train_here("linear", tmp_path / "run", *data, *small) == 2
    err = capsys.readouterr().err
    assert "0001.png" in err and "--max-megapixels" in err
    assert train_here("linear", tmp_path / "run", *data, "--max-megapixels", "0.06", "--max-steps", "1") == 0
