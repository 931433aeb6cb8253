"""torch.hub finds the model of a checkpoint in a clone of the repository."""

import sys

import numpy as np
import pytest
import torch
from hub_models import linear_head
from paths import ROOT


@pytest.fixture
def as_a_stranger(monkeypatch):
    """Nothing of ours is imported under this name before."""
    monkeypatch.delitem(sys.modules, "hubconf", raising=False)


def test_torch_hub_gives_a_predictor(tmp_path, as_a_stranger):
    checkpoint = linear_head(tmp_path / "linear.safetensors")
    predictor = torch.hub.load(str(ROOT), "segmenter", checkpoint=str(checkpoint), eval_mode="whole", source="local")
    result = predictor.predict(np.zeros((40, 60, 3), np.uint8))
    assert result.classes.shape == (40, 60) and result.class_names == ["road", "tree", "sky"]
    assert predictor.segmenter.backbone.name == "test_vit"
