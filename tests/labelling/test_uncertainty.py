"""How unsure a model is of an image, against scipy and in closed form."""

import math

import numpy as np
import pytest
import torch
from messages import naming
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy as scipy_entropy
from training_helpers import drawn, train_here

from errors import UserError
from labelling.config import MEASURES
from labelling.uncertainty import (
    UNCERTAINTIES,
    Probabilities,
    check_same_classes,
    entropy,
    flip_disagreement,
    head_disagreement,
    image_entropy,
)
from prediction.predictor import Predictor

pytestmark = pytest.mark.slow

SIZE_PX = 32


@pytest.fixture(scope="module")
def predictors(tmp_path_factory) -> list[Predictor]:
    """Two linear heads of other seeds, on the same four images."""
    folder = tmp_path_factory.mktemp("uncertainty")
    data = drawn(folder / "data", train=2, val=1, size_px=SIZE_PX)
    for seed in "01":
        assert train_here("linear", folder / seed, *data, "--max-steps", "2", "--lr", "0.1", "--seed", seed) == 0
    return [Predictor.load(folder / seed) for seed in "01"]


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (SIZE_PX, SIZE_PX, 3), np.uint8)


def probabilities(predictor: Predictor, pixels: np.ndarray) -> np.ndarray:
    """(K, H, W), by hand."""
    view = predictor.transform(torch.from_numpy(pixels.transpose(2, 0, 1).copy()))
    return predictor.segmenter.scores(view[None], (SIZE_PX, SIZE_PX))[0].double().numpy()


def test_entropy_and_disagreements_are_those_of_scipy(predictors, pixels):
    one, two = (probabilities(predictor, pixels) for predictor in predictors)
    by_scipy = (scipy_entropy(one) / math.log(5)).mean()
    assert image_entropy(predictors[:1], pixels) == pytest.approx(by_scipy, abs=1e-5) and 0.01 < by_scipy < 1
    of_mean = (scipy_entropy((one + two) / 2) / math.log(5)).mean()
    assert image_entropy(predictors, pixels) == pytest.approx(of_mean, abs=1e-5)
    of_heads = (jensenshannon(one, two, base=2) ** 2).mean()
    assert head_disagreement(predictors, pixels) == pytest.approx(of_heads, abs=1e-5) and of_heads > 1e-3
    assert head_disagreement([predictors[0]] * 2, pixels) == pytest.approx(0, abs=1e-6)

    mirrored = probabilities(predictors[0], pixels[:, ::-1].copy())[..., ::-1]
    of_flips = (jensenshannon(one, mirrored, base=2) ** 2).mean()
    assert flip_disagreement(predictors[:1], pixels) == pytest.approx(of_flips, abs=1e-5) and of_flips > 1e-4


def test_windows_are_ranked_too(predictors, pixels):
    """Overlapping windows of a larger image give one distribution of each pixel."""
    model = predictors[0].segmenter
    sliding = Predictor(model, eval_mode="slide", crop=SIZE_PX, native=True)
    assert 0 < image_entropy([sliding], np.tile(pixels, (2, 2, 1))) < 1


def test_entropy_in_closed_form():
    sure, undecided = torch.tensor([1.0, 0, 0, 0]), torch.full((4,), 0.25)
    maps = torch.stack([sure, undecided], dim=1)[..., None]  # (K, 2, 1)
    assert torch.allclose(entropy(maps), torch.tensor([[0.0], [math.log(4)]]))


class FakePredictor:
    """Of a mask head whose two queries claim a part of the pixels."""

    def __init__(self, task: str, scores: list[float]) -> None:
        self.segmenter = self.head = self
        self.task, self.class_names, self.path = task, ["a", "b"][: len(scores)], f"{task}.pth"
        self.scores = torch.tensor(scores)[None, :, None, None]

    def semantic(self, outputs: None, size_hw: tuple[int, int], rows: slice | None) -> torch.Tensor:
        return self.scores


@pytest.mark.parametrize(
    ("task", "scores", "expected"),
    [
        ("semantic", [0.3, 0.1], [0.75, 0.25]),
        ("semantic", [0.0, 0.0], [0.5, 0.5]),  # no query claims the pixel: nothing is known
        ("instance", [0.3, 0.1], [0.3, 0.1, 0.6]),
        ("panoptic", [0.0, 0.0], [0, 0, 1]),  # no object is known
        ("instance", [0.9, 0.9], [0.5, 0.5, 0]),
    ],
)
def test_scores_of_mask_heads_become_distributions(task, scores, expected):
    found = Probabilities(FakePredictor(task, scores)).window_scores(None, (1, 1))
    assert found.ravel().tolist() == pytest.approx(expected, abs=1e-5)


def test_every_measure_has_its_flag():
    assert tuple(UNCERTAINTIES) == MEASURES


def test_models_of_other_classes_are_refused():
    check_same_classes([FakePredictor("semantic", [0.0, 0.0])] * 2)
    with pytest.raises(UserError, match=naming("--model-path", "instance.pth", "semantic.pth")):
        check_same_classes([FakePredictor("semantic", [0.0, 0.0]), FakePredictor("instance", [0.0, 0.0])])
    with pytest.raises(UserError, match=naming("--model-path", "semantic.pth")):
        check_same_classes([FakePredictor("semantic", [0.0])])
