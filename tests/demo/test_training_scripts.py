"""The training scripts: the files that they promise, and one message for a mistake."""

import json

import pytest
from training_helpers import drawn, metrics, run_script

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("head", ["m2f", "upernet", "linear", "dpt", "pmt"])
def test_script_writes_what_it_promises(tmp_path, head):
    data = drawn(tmp_path / "data")
    options = [*data, "--epochs", "3", "--save-interval", "2", "--best-metric", "miou"]
    done = run_script(head, tmp_path / "run", *options, is_fresh=head == "m2f")
    assert done.returncode == 0, done.stderr
    prefix = "" if head == "m2f" else f"{head}_"
    run = tmp_path / "run"
    names = {p.name for p in run.iterdir() if not p.name.startswith(".")}
    folders = {f"{prefix}{n}" for n in ("best_model", "pictures", "tensorboard", "metrics.jsonl", "run.json")}
    assert names == folders | {f"{prefix}checkpoint_epoch_{e}.pth" for e in (2, 3)}

    record = json.loads((run / f"{prefix}run.json").read_text())
    assert record["arguments"]["epochs"] == 3 and record["backbone"]["name"] == "test_vit"
    validations = metrics(run, prefix, "val")
    assert [line["epoch"] for line in validations] == [1, 2, 3]
    assert set(validations[0]) >= {"step", "loss", "miou", "mean_accuracy", "pixel_accuracy", "iou"}
    best = max(validations, key=lambda line: line["miou"])
    (kept,) = (run / f"{prefix}best_model").iterdir()
    assert kept.name == f"{prefix}checkpoint_epoch_{best['epoch']}.pth"
    assert f"{best['miou']:.4f}" in done.stdout and str(kept) in done.stdout
    assert (run / f"{prefix}pictures" / "best.png").stat().st_size > 1000
    assert list((run / f"{prefix}tensorboard").glob("events.*"))
