"""For torch.hub: torch.hub.load(REPO, "segmenter", checkpoint="runs/upernet", source="local")."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

dependencies = ["torch", "torchvision", "numpy", "PIL", "timm", "safetensors", "huggingface_hub", "filelock"]

if TYPE_CHECKING:
    from prediction.predictor import Predictor


def segmenter(checkpoint: str, **options: Any) -> "Predictor":
    """Return a trained model whose predict(image) takes a file or RGB pixels.

    checkpoint: a checkpoint, a folder of a run or for the hub, a released head, or a hub name. options: of
    Predictor.load, such as weights="..." or threshold=0.3. The network itself is its attribute `segmenter`.
    Raises UserError where the model or its backbone's weights cannot be had.
    """
    from prediction.predictor import Predictor

    return Predictor.load(checkpoint, **options)
