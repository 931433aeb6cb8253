"""From the masks and classes of one image's queries to objects and to a panoptic map, as Mask2Former does it.

Cheng et al. 2022, "Masked-attention Mask Transformer for Universal Image Segmentation"; panoptic inference is that of
Cheng et al. 2021, section 3.4. Q queries, K classes, h w size of the mask logits, H W the wanted size.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from rows import resize_box, resize_rows, strips
from structures import Instance, Segment

PART_ELEMENTS = 2**18
"""Values of a mask that are worked on at a time: 1 MiB of float32 stays in the processor's cache."""


@torch.no_grad()
def instances(
    class_logits: Tensor,
    mask_logits: Tensor,
    size_hw: tuple[int, int],
    top_k: int | None = None,
    threshold: float = 0.0,
    thing_classes: list[bool] | None = None,
) -> Iterator[Instance]:
    """Objects of one image, best first; an object is a pair of a query and a class, so a query can give several.

    class_logits: (Q, K + 1), the last class is "no object"; mask_logits: (Q, h, w). Of all pairs the top_k most
    probable (None = Q) are looked at; those of stuff classes (thing_classes: one per class, None = all are things),
    empty masks and scores below `threshold` are dropped. Score = class probability x mean mask probability over the
    mask's own pixels. Only one mask is held at a time, the one that was handed out last, and of it only the part where
    the logits can be positive: each is resized twice, for its score and for the caller, because all scores are needed
    to know the best.
    """
    probability = class_logits.float().softmax(-1)[:, :-1]
    num_classes = probability.shape[1]
    values, pairs = probability.flatten().topk(min(top_k or len(probability), probability.numel()))
    mean_of_query: dict[int, float] = {}
    found = []
    for class_probability, pair in zip(values.tolist(), pairs.tolist(), strict=True):
        query, label = divmod(pair, num_classes)
        if class_probability < threshold or (thing_classes is not None and not thing_classes[label]):
            continue  # the mask's share of the score is at most 1
        if query not in mean_of_query:
            mean_of_query[query] = mean_mask_probability(mask_logits[query], size_hw)
        score = class_probability * mean_of_query[query]
        if mean_of_query[query] > 0 and score >= threshold:
            found.append((score, query, label))

    last_query, mask, box = None, None, None
    for score, query, label in sorted(found, key=lambda item: -item[0]):
        if query != last_query:
            mask = None  # before the next one is made
            last_query, box = query, box_of(mask_logits[query], size_hw)
            mask = torch.cat([logits > 0 for logits in strips_of_columns(mask_logits[query], size_hw, box)]).t()
        yield Instance(label, score, mask, (box[0].start, box[1].start), size_hw)


def mean_mask_probability(mask_logits: Tensor, size_hw: tuple[int, int]) -> float:
    """Over the pixels that are more likely inside than outside; 0 where there is none. mask_logits: (h, w)."""
    total, count = mask_logits.new_zeros(2, dtype=torch.float32)
    for logits in strips_of_columns(mask_logits, size_hw, box_of(mask_logits, size_hw)):
        inside = logits > 0
        total += logits.sigmoid_().mul_(inside).sum()
        count += inside.sum()
    return (total / count.clamp(min=1)).item()


def box_of(mask_logits: Tensor, size_hw: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of size_hw outside of which no resized logit is positive; empty where none is."""
    is_positive = mask_logits > 0
    return tuple(_reached(is_positive.any(1 - axis), size_hw[axis]) for axis in (0, 1))


def _reached(is_positive: Tensor, size: int) -> slice:
    """Along one axis: a resized value is made of its two neighbours, so each reaches to the next one on both sides."""
    places = is_positive.nonzero()[:, 0]
    if not len(places):
        return slice(0, 0)
    first, last = places[[0, -1]].tolist()
    zoom = size / len(is_positive)
    return slice(max(0, math.floor((first - 0.5) * zoom - 0.5)), min(size, math.ceil((last + 1.5) * zoom + 0.5)))


def strips_of_columns(mask_logits: Tensor, size_hw: tuple[int, int], box: tuple[slice, slice]) -> Iterator[Tensor]:
    """The box of the resized mask, float32, some columns at a time, (columns, rows): a column lies in one piece, as
    run-length codes want it. mask_logits: (h, w)."""
    turned = mask_logits.float().t()
    step = max(1, PART_ELEMENTS // max(1, box[0].stop - box[0].start))
    for start in range(box[1].start, box[1].stop, step):
        columns = slice(start, min(start + step, box[1].stop))
        yield resize_box(turned, size_hw[::-1], columns, box[0])


@torch.no_grad()
def panoptic(
    class_logits: Tensor,
    mask_logits: Tensor,
    size_hw: tuple[int, int],
    is_thing: list[bool],
    threshold: float = 0.8,
    overlap_threshold: float = 0.8,
) -> tuple[Tensor, list[Segment]]:
    """Map (H, W) int32 of segment numbers, 0 = none, and its segments; every one of them has pixels.

    class_logits: (Q, K + 1), mask_logits: (Q, h, w), is_thing: K. Queries of "no object" and those not above
    `threshold` are dropped; a pixel goes to the query with the highest class probability x mask probability, if its
    mask probability there is at least 0.5; a query that wins less than `overlap_threshold` of its own mask is
    dropped, and its pixels stay empty. Queries of one stuff class become one segment with the highest of their scores.
    """
    num_classes = class_logits.shape[1] - 1
    assert len(is_thing) == num_classes
    scores, labels = class_logits.float().softmax(-1).max(-1)
    kept = (labels != num_classes) & (scores > threshold)
    if not kept.any():
        return torch.zeros(size_hw, dtype=torch.int32, device=mask_logits.device), []
    scores, labels = scores[kept], labels[kept]
    owner, won, own, shown = owners(mask_logits[kept], scores, size_hw)

    numbers = torch.zeros(len(scores) + 1, dtype=torch.int32)  # of each query's segment; the last: nobody's pixels
    segments: list[Segment] = []
    stuff: dict[int, Segment] = {}
    areas = zip(won.tolist(), own.tolist(), shown.tolist(), strict=True)
    queries = zip(scores.tolist(), labels.tolist(), areas, strict=True)
    for query, (score, label, (won_area, own_area, shown_area)) in enumerate(queries):
        if shown_area == 0 or won_area / own_area < overlap_threshold:
            continue
        segment = stuff.get(label)
        if segment is None:
            segment = Segment(len(segments) + 1, label, score)
            segments.append(segment)
            if not is_thing[label]:
                stuff[label] = segment
        segment.score = max(segment.score, score)
        numbers[query] = segment.number
    return numbers.to(owner.device)[owner], segments


def owners(mask_logits: Tensor, scores: Tensor, size_hw: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The query that owns each pixel, (H, W) int32 with Q = nobody, and the pixels (Q,) that each query has, thrice:
    where it scores highest; where its mask probability is at least 0.5; where both hold, which are those it owns.

    mask_logits: (Q, h, w), scores: (Q,). A strip of rows at a time: Q masks of a large image take gigabytes.
    """
    num_queries = len(scores)
    owner = torch.empty(size_hw, dtype=torch.int32, device=mask_logits.device)
    won, own, shown = torch.zeros(3, num_queries, dtype=torch.int64, device=mask_logits.device)
    for rows in strips(size_hw, num_queries):
        probability = resize_rows(mask_logits[None].float(), size_hw, rows)[0].sigmoid_()
        inside = probability >= 0.5
        best = probability.mul_(scores[:, None, None]).argmax(0)
        is_own = inside.gather(0, best[None])[0]
        won += best.flatten().bincount(minlength=num_queries)
        own += inside.flatten(1).sum(1)
        shown += best[is_own].bincount(minlength=num_queries)
        owner[rows] = best.masked_fill_(~is_own, num_queries)
    return owner, won, own, shown
