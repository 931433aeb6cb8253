"""Objects and panoptic maps from mask outputs: against transformers, the algorithm written out, and in memory."""

import weakref
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from largest_tensor import LargestTensor
from torch import Tensor
from torch.nn import functional as F
from transformers import Mask2FormerImageProcessor

import rows
from evaluation.instance import InstanceEvaluator
from heads.mask2former.head import Mask2FormerHead, mask2former_size
from heads.masks.loss import MaskOutputs
from heads.masks.results import instances, panoptic
from structures import Batch, Target

CLASSES, QUERIES = 5, 12
THEIR_SIZE = (384, 384)  # transformers resizes all masks to it first


def blobs(seed: int, num_queries: int = QUERIES, size_hw: tuple[int, int] = (48, 64)) -> tuple[Tensor, Tensor]:
    """Class logits (Q, K + 1) and mask logits (Q, h, w): smooth spots that overlap, the last one over everything."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size_hw
    y = torch.arange(height)[:, None] / height
    x = torch.arange(width) / width
    centre = torch.rand(num_queries, 2, 1, 1, generator=generator)
    radius = 0.08 + 0.25 * torch.rand(num_queries, 1, 1, generator=generator)
    distance = ((y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2).sqrt()
    masks = 20 * (radius - distance) + 0.2 * torch.randn(num_queries, height, width, generator=generator)
    masks[-1] = 1.0
    class_logits = 3 * torch.randn(num_queries, CLASSES + 1, generator=generator)
    class_logits[-1, 0] = 9.0
    return class_logits, masks


def certain(class_logits: Tensor) -> Tensor:
    """The same classes with a probability of exactly 1 in float32."""
    return 200.0 * F.one_hot(class_logits.argmax(-1), CLASSES + 1)


def theirs(class_logits: Tensor, mask_logits: Tensor) -> SimpleNamespace:
    return SimpleNamespace(class_queries_logits=class_logits[None], masks_queries_logits=mask_logits[None])


@pytest.mark.parametrize("seed", range(3))
def test_instances_equal_transformers(seed):
    """It takes as many pairs as there are queries and has them in no order; scores are rounded to six digits."""
    class_logits, mask_logits = blobs(seed)
    (expected,) = Mask2FormerImageProcessor().post_process_instance_segmentation(
        theirs(class_logits, mask_logits), threshold=0.1, return_binary_maps=True
    )
    known = [
        (s["label_id"], s["score"], m.bool())
        for s, m in zip(expected["segments_info"], expected["segmentation"], strict=True)
    ]
    found = list(instances(class_logits, mask_logits, THEIR_SIZE, top_k=QUERIES, threshold=0.1))
    assert len(found) == len(known) > 5
    assert [o.score for o in found] == sorted((o.score for o in found), reverse=True)
    for ours in found:
        assert any(
            ours.label == label and abs(ours.score - score) < 2e-6 and torch.equal(ours.mask, mask)
            for label, score, mask in known
        )


def test_what_is_skipped_in_the_instances():
    """By hand: query 0 is of class 0 (0.75) or 1 (0.25), query 1 has an empty mask, query 2 is of class 2 (0.9)."""
    class_logits = torch.tensor([[0.75, 0.25, 0, 0], [0, 1, 0, 0], [0, 0, 0.9, 0.1]]).log()
    mask_logits = torch.full((3, 2, 2), -50.0)
    mask_logits[0, 0] = torch.tensor(3.0).log()  # a probability of 3/4
    mask_logits[2, 0, 0] = 50.0

    def seen(**options) -> list[tuple[int, float, int]]:
        return [
            (o.label, round(o.score, 4), int(o.mask.sum()))
            for o in instances(class_logits, mask_logits, (2, 2), **options)
        ]

    every = [(2, 0.9, 1), (0, 0.5625, 2), (1, 0.1875, 2)]
    found = seen(top_k=100)
    assert found[:3] == every and {(label, score) for label, score, _ in found[3:]} == {(0, 0.0), (1, 0.0), (2, 0.0)}
    assert seen() == every[:2]  # as many pairs as queries, one of them with an empty mask
    assert seen(top_k=100, threshold=0.1) == every
    assert seen(threshold=0.5625) == every[:2] and seen(top_k=100, threshold=0.6) == every[:1]
    assert seen(top_k=3) == every[:2]  # the most probable of the three pairs has an empty mask
    assert seen(top_k=4, thing_classes=[True, True, False]) == every[1:]
    assert seen(top_k=2, thing_classes=[True, True, False]) == []  # stuff takes up places, as in the official code


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_panoptic_equals_transformers_where_both_do_the_same(seed, fuse):
    """transformers compares score x mask probability with 0.5, not the mask probability alone, and leaves pixels below
    it in: the same with classes of probability 1 and a query that covers the image. After a merged segment it gives
    its number again to the next one: the same where all stuff comes last.
    """
    class_logits, mask_logits = blobs(seed)
    order = class_logits.argmax(-1).argsort(stable=True) if fuse else torch.arange(QUERIES)
    class_logits, mask_logits = certain(class_logits)[order], mask_logits[order]
    stuff = {int(class_logits[class_logits.argmax(-1) < CLASSES].argmax(-1).max())} if fuse else set()
    (expected,) = Mask2FormerImageProcessor().post_process_panoptic_segmentation(
        theirs(class_logits, mask_logits.clone()), overlap_mask_area_threshold=0.2, label_ids_to_fuse=stuff
    )
    is_thing = [k not in stuff for k in range(CLASSES)]
    ours, segments = panoptic(class_logits, mask_logits, THEIR_SIZE, is_thing, overlap_threshold=0.2)
    their_labels = {s["id"]: s["label_id"] for s in expected["segments_info"]}
    assert [(s.number, s.label) for s in segments] == list(their_labels.items())
    assert len(segments) >= 3
    assert (ours == expected["segmentation"]).double().mean() > 0.9999  # rounding at a mask's edge


def official_panoptic(class_logits, mask_logits, size_hw, is_thing, threshold, overlap_threshold):
    """The published algorithm as it reads, all masks at once: (class map with -1 = none, number of segments)."""
    scores, labels = class_logits.softmax(-1).max(-1)
    masks = F.interpolate(mask_logits[None], size=size_hw, mode="bilinear", align_corners=False)[0].sigmoid()
    kept = [q for q in range(len(labels)) if labels[q] < CLASSES and scores[q] > threshold]
    result = torch.full(size_hw, -1)
    if not kept:
        return result, 0
    best = torch.stack([scores[q] * masks[q] for q in kept]).argmax(0)
    seen, things = set(), 0
    for i, q in enumerate(kept):
        visible = (best == i) & (masks[q] >= 0.5)
        if visible.any() and (best == i).sum() / (masks[q] >= 0.5).sum() >= overlap_threshold:
            result[visible] = labels[q]
            things += is_thing[labels[q]]
            seen |= set() if is_thing[labels[q]] else {int(labels[q])}
    return result, things + len(seen)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.4, 0.8]), st.sampled_from([0.0, 0.5, 0.8]), st.integers(1, 9))
def test_panoptic_equals_the_published_algorithm(seed, threshold, overlap_threshold, strip_rows):
    class_logits, mask_logits = blobs(seed, size_hw=(12, 16))
    is_thing = [k % 2 == 0 for k in range(CLASSES)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "STRIP_ELEMENTS", strip_rows * 50 * QUERIES)
        ours, segments = panoptic(class_logits, mask_logits, (40, 50), is_thing, threshold, overlap_threshold)
    expected, count = official_panoptic(class_logits, mask_logits, (40, 50), is_thing, threshold, overlap_threshold)
    assert len(segments) == count and [s.number for s in segments] == list(range(1, count + 1))
    assert set(ours.unique().tolist()) - {0} == {s.number for s in segments}
    assert all(threshold < s.score <= 1 for s in segments)
    labels = torch.tensor([-1] + [s.label for s in segments])
    assert (labels[ours.long()] == expected).double().mean() > 0.998  # rounding at a mask's edge


def test_stuff_of_one_class_is_one_segment_and_things_are_not():
    """Two queries of class 0 (left and right half, scores 0.9 and 0.95), and one of "no object" over both."""
    class_logits = torch.tensor([[0.9, 0.05, 0.05], [0.95, 0.03, 0.02], [0.0, 0.0, 1.0]]).log()
    mask_logits = torch.full((3, 4, 8), -9.0)
    mask_logits[0, :, :4] = mask_logits[1, :, 4:] = mask_logits[2] = 9.0
    result, (segment,) = panoptic(class_logits, mask_logits, (4, 8), [False, True])
    assert result.dtype == torch.int32 and (result == 1).all()
    assert (segment.number, segment.label, round(segment.score, 4)) == (1, 0, 0.95)
    result, segments = panoptic(class_logits, mask_logits, (4, 8), [True, True])
    assert result[0].tolist() == [1] * 4 + [2] * 4 and [round(s.score, 4) for s in segments] == [0.9, 0.95]
    result, segments = panoptic(class_logits, mask_logits, (4, 8), [True, True], threshold=0.96)
    assert not result.any() and segments == []


@pytest.fixture
def head() -> Mask2FormerHead:
    return Mask2FormerHead([8] * 4, CLASSES, 32, mask2former_size("paper", 32), QUERIES)


def test_the_head_takes_the_last_prediction_of_the_image_asked_for(head):
    pictures = [blobs(0), blobs(1)]
    last = [torch.stack(part) for part in zip(*pictures, strict=True)]
    outputs = MaskOutputs.of_masks([torch.zeros_like(last[0]), last[0]], [torch.zeros_like(last[1]), last[1]])

    def plain(objects) -> list[tuple]:
        return [(o.label, o.score, int(o.mask.sum())) for o in objects]

    for image, (class_logits, mask_logits) in enumerate(pictures):
        ours = plain(head.instances(outputs, image, (30, 40), top_k=7, threshold=0.1))
        assert ours == plain(instances(class_logits, mask_logits, (30, 40), 7, 0.1)) and ours
        is_thing = [True] * CLASSES
        number_map, segments = head.panoptic(outputs, image, (30, 40), is_thing, overlap_threshold=0.1)
        expected, expected_segments = panoptic(class_logits, mask_logits, (30, 40), is_thing, 0.8, 0.1)
        assert torch.equal(number_map, expected) and segments == expected_segments != []


def test_semantic_maps_equal_transformers(head):
    class_logits, mask_logits = blobs(0)
    (expected,) = Mask2FormerImageProcessor().post_process_semantic_segmentation(theirs(class_logits, mask_logits))
    scores = head.semantic(MaskOutputs.of_masks([class_logits[None]], [mask_logits[None]]), THEIR_SIZE)
    assert (scores[0].argmax(0) == expected).double().mean() > 0.9999


def test_a_large_image_is_never_held_once_a_query():
    """3000 x 4000 pixels, 100 queries: all masks at once would be 4.8 GB; one in float32 is 48 MB, in bool 12 MB."""
    size_hw = (3000, 4000)
    class_logits, mask_logits = blobs(0, num_queries=100, size_hw=(16, 20))
    class_logits[5:] = 0.0  # below the threshold, to be quick
    class_logits[:5, 0] = 9.0
    with LargestTensor() as largest:
        objects = instances(class_logits, mask_logits, size_hw, top_k=100, threshold=0.5)
        first = next(objects)
        assert first.mask.shape == size_hw and 0.5 <= next(objects).score <= first.score
    assert largest.num_bytes <= 3000 * 4000
    with LargestTensor() as largest:
        number_map, segments = panoptic(class_logits, mask_logits, size_hw, [True] * CLASSES, overlap_threshold=0.1)
    assert number_map.shape == size_hw and len(segments) > 1
    assert largest.num_bytes <= 4 * rows.STRIP_ELEMENTS


def test_one_mask_is_alive_at_a_time():
    class_logits, mask_logits = blobs(0, num_queries=100, size_hw=(16, 20))
    masks = []
    for found in instances(class_logits, mask_logits, (30, 40), top_k=100):
        masks.append(weakref.ref(found.part))
        assert len({id(mask()) for mask in masks} - {id(None)}) == 1
    assert len(masks) > 50


def test_an_image_can_have_as_many_objects_as_there_are_queries():
    """Through evaluation and prediction, which ask for no number."""
    queries = 130
    head = Mask2FormerHead([32] * 4, 2, 32, mask2former_size("paper", 32), queries).eval()
    generator = torch.Generator().manual_seed(0)
    classes = torch.zeros(1, queries, 3)
    classes[..., 0] = 5
    outputs = MaskOutputs.of_masks([classes], [torch.randn(1, queries, 8, 8, generator=generator)])
    assert len(list(head.instances(outputs, 0, (16, 16)))) == queries

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = head

        def forward(self, images, features=None):
            return outputs

        def loss(self, outputs, targets, scope=None):
            return {"loss": torch.zeros(())}

    evaluator = InstanceEvaluator(["a", "b"], lambda sample_id: ((16, 16), []))
    batch = Batch(torch.zeros(1, 3, 32, 32), [Target(masks=torch.zeros(0, 32, 32).bool())], ["x"])
    with torch.no_grad():
        evaluator.add(Model(), batch)
    assert len(evaluator.state()[0].objects) == queries


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.tuples(*[st.integers(1, 70)] * 2), st.sampled_from([0.5, 1.5, 2.5]))
def test_parts_of_masks_are_those_of_whole_masks(seed, size_hw, level):
    """Resized as a whole and cut at 0, the score as the mean over all its pixels; few positive values or many."""
    generator = torch.Generator().manual_seed(seed)
    mask_logits = torch.randn(4, 9, 7, generator=generator) - level
    class_logits = torch.randn(4, CLASSES + 1, generator=generator)
    found = {(o.label, round(o.score, 5)): o for o in instances(class_logits, mask_logits, size_hw, top_k=10**6)}
    whole = F.interpolate(mask_logits[None], size=size_hw, mode="bilinear", align_corners=False)[0]
    probability, num_pixels = class_logits.softmax(-1), 0
    for query, logits in enumerate(whole):
        inside = logits > 0
        if not inside.any():
            continue
        mean = logits.sigmoid()[inside].mean()
        for label in range(CLASSES):
            near = [
                o for o in found.values() if o.label == label and abs(o.score - probability[query, label] * mean) < 2e-5
            ]
            wrong = min(int(((o.mask != inside) & (logits.abs() > 1e-4)).sum()) for o in near)
            assert wrong == 0 and near[0].mask.shape == size_hw
            num_pixels += int(inside.sum())
    assert bool(found) == bool(num_pixels)
