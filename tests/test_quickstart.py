"""docs/quickstart.ipynb, cell by cell in one process, as a reader runs it from its folder."""

import ast
import json
import sys
from unittest.mock import patch

import numpy as np
import pytest
from paths import ROOT
from PIL import Image
from training_helpers import metrics, remembered_estimate

pytestmark = pytest.mark.slow

NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


def run_cell(source: str, names: dict) -> object:
    """Run a cell; returns the value of its last line where that is an expression, as a notebook shows it."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(NOTEBOOK), "exec"), names)
    return eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names) if last else None


def test_the_notebook_runs_and_shows_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(NOTEBOOK.parent)
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    names, shown = {"__name__": "__main__"}, []
    with patch("training.summary.estimated_memory_bytes", remembered_estimate):
        for cell in cells:
            if cell["cell_type"] == "code":
                assert not cell["outputs"] and cell["execution_count"] is None  # kept without outputs
                shown.append(run_cell("".join(cell["source"]), names))
    summary, image, report = [value for value in shown if value is not None]
    pixels = sum(one["pixels"] for one in summary["classes"])
    assert pixels == 64 * 64 and isinstance(image, Image.Image) and np.ptp(np.array(image)) > 0
    assert report.is_file() and report.is_relative_to(tmp_path)
    losses = [line["loss"] for line in metrics(names["FOLDER"] / "upernet", "upernet_", "train")]
    assert losses[-1] < losses[0] / 2 and len(names["validations"]) == 2
    assert {standing.name for standing in names["verdict"].standings} == {"UPerNet", "linear"}
    assert names["verdict"].headline in capsys.readouterr().out
