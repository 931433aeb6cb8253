"""A mask in a training view, made whole with torchvision: what views of masks are compared with."""

import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from data.sources.masks import ReadPair
from data.transforms import TrainTransform, View


def seen(
    transform: TrainTransform, image: torch.Tensor, mask: torch.Tensor, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The view of an image (3, H, W) uint8 and of its class ids (H, W), as training sees them."""
    view = transform.view(*mask.shape, seed)
    target = view.target(ReadPair(image, mask.numpy()))
    return view.image(image), target.semantic


def whole_mask_in(view: View, mask: torch.Tensor) -> torch.Tensor:
    """(H, W) bool -> (S, S) bool: cut, resized to the nearest pixel, padded and flipped."""
    window = view.window
    rows = slice(max(window.top, 0), window.top + window.height)
    columns = slice(max(window.left, 0), window.left + window.width)
    left, top, right, bottom = padding = window.resized(torch.zeros(3, *mask.shape, dtype=torch.uint8), view.size)[1]
    size_hw = [view.size - top - bottom, view.size - left - right]
    resized = F.resize(mask[None, rows, columns].to(torch.uint8), size_hw, InterpolationMode.NEAREST_EXACT)
    padded = F.pad(resized, padding, fill=0)[0].bool()
    return padded.flip(1) if view.is_flipped else padded
