"""The base of heads that give an image a set of queries, each with a class and a mask.

A head of this kind is a `forward` that returns MaskOutputs; loss, semantic scores, objects and panoptic maps are here.
B batch, Q queries, K classes, L predictions.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from heads.head import Head
from heads.masks import results
from heads.masks.loss import MaskLossSettings, MaskOutputs, mask_loss, mask_normalizers, to_mask_target
from rows import resize_rows
from structures import Instance, LossScope, Segment, Target

# Upsampled masks of this many values at a time (256 MiB of float32): a big image with 100 queries needs gigabytes.
CHUNK_ELEMENTS = 2**26


class MaskHead(Head):
    """Set loss; per-pixel class scores, objects, and panoptic maps. A subclass has a `forward` to MaskOutputs."""

    def __init__(self, num_queries: int, loss_settings: MaskLossSettings | None = None):
        super().__init__()
        self.num_queries = num_queries
        self.loss_settings = loss_settings or MaskLossSettings()

    def normalizers(self, targets: list[Target]) -> dict[str, Tensor]:
        masks = [to_mask_target(t) for t in targets]
        return mask_normalizers(masks, self.num_queries, self.loss_settings.no_object_weight)

    def loss(self, outputs: MaskOutputs, targets: list[Target], scope: LossScope | None = None) -> dict[str, Tensor]:
        """{"class", "mask", "dice"}; in float32 also under autocast: matching and losses in half precision diverge."""
        device_type = outputs.class_logits[0].device.type
        with torch.autocast(device_type, enabled=False):
            return mask_loss(outputs, [to_mask_target(t) for t in targets], self.loss_settings, scope)

    def semantic(self, outputs: MaskOutputs, size_hw: tuple[int, int], rows: slice | None = None) -> Tensor:
        """Scores (B, K, H, W), float32, or only some rows of them: not logits, but the sum over queries of class
        probability x mask probability.

        (MaskFormer, Cheng et al. 2021, section 3.4, semantic inference.) Pixels that no query claims have low scores.
        """
        rows = rows or slice(0, size_hw[0])
        class_probability = outputs.class_logits[-1].float().softmax(-1)[..., :-1]
        masks = outputs.last_masks.float()
        batch, num_queries = masks.shape[:2]
        num_pixels = (rows.stop - rows.start) * size_hw[1]
        # How many fit depends on the batch, which an exported program must not be fixed to.
        is_exported = torch.compiler.is_exporting()
        chunk = num_queries if is_exported else max(1, CHUNK_ELEMENTS // (batch * num_pixels))
        scores = masks.new_zeros(batch, class_probability.shape[-1], rows.stop - rows.start, size_hw[1])
        for start in range(0, num_queries, chunk):
            part = slice(start, start + chunk)
            resized = resize_rows(masks[:, part], size_hw, rows).sigmoid()
            scores.flatten(2).baddbmm_(class_probability[:, part].transpose(1, 2), resized.flatten(2))
        return scores

    def window_scores(self, outputs: MaskOutputs, size_hw: tuple[int, int], rows: slice | None = None) -> Tensor:
        """Return what is averaged over sliding windows: the scores of `semantic`. Queries of different windows have
        nothing to do with one another, so that nothing before their sum can be averaged."""
        return self.semantic(outputs, size_hw, rows)

    def instances(
        self,
        outputs: MaskOutputs,
        image: int,
        size_hw: tuple[int, int],
        top_k: int | None = None,
        threshold: float = 0.0,
        thing_classes: list[bool] | None = None,
    ) -> Iterator[Instance]:
        """Objects of image number `image` of the batch, best first, one mask (H, W) at a time; at most top_k, None = as
        many as there are queries."""
        classes, masks = outputs.class_logits[-1][image], outputs.last_masks[image]
        return results.instances(classes, masks, size_hw, top_k, threshold, thing_classes)

    def panoptic(
        self,
        outputs: MaskOutputs,
        image: int,
        size_hw: tuple[int, int],
        is_thing: list[bool],
        threshold: float = 0.8,
        overlap_threshold: float = 0.8,
    ) -> tuple[Tensor, list[Segment]]:
        """Map (H, W) int32 of segment numbers, 0 = none, of image number `image` of the batch, and its segments."""
        classes, masks = outputs.class_logits[-1][image], outputs.last_masks[image]
        return results.panoptic(classes, masks, size_hw, is_thing, threshold, overlap_threshold)
