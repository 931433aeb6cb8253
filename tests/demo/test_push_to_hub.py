"""A folder for the hub: what it holds, who takes it, and what is uploaded."""

import json
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from training_helpers import data_flags, drawn, metrics, train_here

import released.sources
from demo import evaluate, predict, push_to_hub
from export.card import FILES
from released.model import load_model

pytestmark = pytest.mark.slow


def run(*words: object) -> int:
    """In this process; returns the exit code."""
    args = push_to_hub.parse_arguments([str(word) for word in words])
    return push_to_hub.run_job(lambda: push_to_hub.push(args))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with data/ and run/, of a linear head."""
    folder = tmp_path_factory.mktemp("trained")
    data = drawn(folder / "data", 2, 1, 32)
    assert train_here("linear", folder / "run", *data, "--epochs", "2", "--lr", "1e-2", "--class-names", *"abcde") == 0
    return folder


@pytest.fixture(scope="module")
def pushed(trained) -> Path:
    """What --dry-run makes of it, with a text in the card that would break a table and YAML."""
    folder = trained / "hub"
    words = ["--repo", "me/linear", "--data", 'drawn | "set"\n---', "--licence", "mit", "--dry-run"]
    assert run("-m", trained / "run", "--output-dir", folder, *words) == 0
    return folder


def test_the_folder_holds_weights_card_curves_and_record(trained, pushed):
    assert {path.name for path in pushed.iterdir()} == set(FILES)
    assert Image.open(pushed / "curves.png").size[0] > 500
    record = json.loads((pushed / "run.json").read_text())
    best = min(metrics(trained / "run", "linear_", "val"), key=lambda line: line["loss"])
    assert record["validation"]["miou"] == best["miou"] and record["arguments"]["image_size"] == 32
    assert str(trained) not in (pushed / "run.json").read_text() and "image_paths" not in record["arguments"]
    assert str(trained).encode() not in (pushed / "model.safetensors").read_bytes()
    start, front, card = (pushed / "README.md").read_text().split("---\n", 2)
    assert start == "" and 'license: "mit"' in front and f"value: {best['miou']:.6g}" in front
    assert r'name: "drawn | \"set\"\n---"' in front
    assert record["backbone"]["fingerprint"] in card and r"drawn \| " in card and f"{best['miou']:.4f}" in card


def test_predict_evaluate_and_init_head_take_the_folder(trained, pushed, tmp_path, monkeypatch):
    original, model = load_model(trained / "run"), load_model(pushed)
    state = original.trainable_state()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.trainable_state().items())
    image = trained / "data" / "images" / "val" / "0000.png"
    masks = []
    # By its name on the hub it is the download that is read.
    monkeypatch.setattr(released.sources, "fetch", lambda repo: {"me/linear": pushed}[repo])
    for number, word in enumerate((trained / "run", pushed, "me/linear")):
        out = tmp_path / f"{number}.png"
        args = predict.parse_arguments(["-m", str(word), "-i", str(image), "-o", str(out), "--save", "masks"])
        assert predict.run_job(lambda args=args: predict.predict(args)) == 0
        masks.append(np.array(Image.open(out)))
    assert np.array_equal(masks[0], masks[1]) and np.array_equal(masks[0], masks[2])
    val = [*("--image-paths", str(image)), *("--mask-paths", str(image).replace("images", "masks"))]
    words = ["-m", str(pushed), *val, "--output-dir", str(tmp_path / "e"), "--num-workers", "0", "--worst", "0"]
    config = evaluate.parse_evaluate_arguments(words)
    assert evaluate.run_job(lambda: evaluate.evaluate(config)) == 0
    more = ["--init-head", str(pushed), "--max-steps", "1", "--lr", "0", "--no-validate", "--class-names", *"abcde"]
    assert train_here("linear", tmp_path / "next", *data_flags(trained / "data", 32), *more) == 0
    begun = load_model(tmp_path / "next").trainable_state()
    assert torch.equal(begun["head.classifier.weight"], state["head.classifier.weight"])


def test_what_is_uploaded(trained, tmp_path, monkeypatch, capsys):
    calls = []

    class FakeApi:
        def create_repo(self, repo, **options):
            calls.append((repo, options))

        def upload_folder(self, **options):
            calls.append(options)
            return f"https://hub/{options['repo_id']}"

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    words = ["-m", trained / "run", "--output-dir", tmp_path / "hub", "--repo", "me/linear"]
    assert run(*words, "--private") == 0
    assert calls == [
        ("me/linear", {"private": True, "exist_ok": True}),
        {"folder_path": tmp_path / "hub", "repo_id": "me/linear", "allow_patterns": list(FILES)},
    ]
    assert "https://hub/me/linear" in capsys.readouterr().out

    def refuse(*_, **__):
        raise OSError("403 Forbidden")

    monkeypatch.setattr(FakeApi, "upload_folder", refuse)
    assert run(*words) == 2
    assert "HF_TOKEN" in capsys.readouterr().err and (tmp_path / "hub" / "README.md").is_file()
    assert run("-m", trained / "run", "--output-dir", trained / "run", "--repo", "me/linear", "--dry-run") == 2


def test_a_name_without_an_owner_is_refused():
    with pytest.raises(SystemExit) as stop:
        push_to_hub.parse_arguments(["-m", "run", "--repo", "linear"])
    assert stop.value.code == 2
