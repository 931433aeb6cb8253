"""Pictures of a COCO set as training and evaluation samples, with one mask an object.

N objects, S the training size in pixels, h w a picture's size in evaluation.
"""

from collections.abc import Sequence

from torch.utils.data import Dataset

from data.coco.coco_set import CocoImage
from data.coco.read import read_image
from data.dataset import Sample, Skipped, first_readable, seed_of
from data.decode import MAX_PIXELS
from data.image_rule import PLAIN, ImageRule
from data.transforms import EvalTransform, TrainTransform, resized_pixels
from errors import UserError


class CocoTrainDataset(Dataset):
    """Augmented samples, indexed by (epoch, number); what one looks like depends on (seed, epoch, sample id) alone."""

    def __init__(
        self,
        images: Sequence[CocoImage],
        transform: TrainTransform,
        seed: int,
        max_pixels: int = MAX_PIXELS,
        rule: ImageRule = PLAIN,
    ) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed
        self.max_pixels = max_pixels
        self.rule = rule

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> Sample:
        """Picture (3, S, S), masks (N, S, S) and labels (N,); N may be 0.

        Crowds are left out, and objects of which the view shows nothing. Where a picture cannot be read, the next one
        takes its place, as in TrainDataset. Raises UserError only where none can be read.
        """
        epoch, first = epoch_and_index
        image, content, skipped = first_readable(
            self.images, first, lambda image: read_image(image, self.max_pixels, self.rule)
        )
        view = self.transform.view(*image.size_hw, seed_of(self.seed, epoch, image.sample_id))
        target = content.target(*view.pixels(*image.size_hw))
        return Sample(view.image(content.pixels), target, image.sample_id, skipped)


class CocoEvalDataset(Dataset):
    """Whole pictures in their own aspect. The targets, at the size of evaluation, are for the loss only: metrics take
    the truth at full size from `truth_objects` or `truth_segments`, by the sample id."""

    def __init__(
        self,
        images: Sequence[CocoImage],
        transform: EvalTransform,
        max_pixels: int = MAX_PIXELS,
        rule: ImageRule = PLAIN,
    ) -> None:
        self.images = images
        self.transform = transform
        self.max_pixels = max_pixels
        self.rule = rule

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample | Skipped:
        """Picture (3, h, w), masks (N, h, w) and labels (N,); Skipped where the picture cannot be used."""
        image = self.images[index]
        try:
            content = read_image(image, self.max_pixels, self.rule)
        except UserError as error:
            return Skipped(image.sample_id, str(error))
        pixels = self.transform(content.pixels)
        size_hw = [pixels.shape[1], pixels.shape[2]]
        return Sample(pixels, content.target(*resized_pixels(*image.size_hw, size_hw)), image.sample_id)
