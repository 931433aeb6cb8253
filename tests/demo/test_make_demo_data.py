"""The script that draws the demo sets."""

import subprocess
import sys
from pathlib import Path

from paths import ROOT


def script(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "demo" / "make_demo_data.py"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


def test_the_script_works_from_any_folder(tmp_path):
    made = script("--output", "mine", "--train", "2", "--val", "1", "--size", "64", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "mine" in made.stdout and "striped box" in made.stdout
    assert len(list((tmp_path / "mine/images/train").glob("*.png"))) == 2

    refused = script("--output", "mine", "--train", "0", cwd=tmp_path)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert refused.stderr.startswith("error:") and "1 training" in refused.stderr


def test_the_script_draws_a_coco_set(tmp_path):
    command = [sys.executable, str(ROOT / "demo" / "make_demo_data.py"), "--coco", "--output", "mine"]
    numbers = ["--train", "2", "--val", "1", "--size", "64"]
    made = subprocess.run([*command, *numbers], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert made.returncode == 0, made.stderr
    assert "dotted flower" in made.stdout and "background" not in made.stdout
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["demo_set.json", "train", "valid"]
