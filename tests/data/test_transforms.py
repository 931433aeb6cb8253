"""Augmentation: deterministic, image and mask move together, and labels are never invented."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import naming
from torchvision.transforms.v2 import functional as F
from views import seen, whole_mask_in

from data.sources.masks import ReadPair
from data.transforms import Augmentation, EvalTransform, TrainTransform, Window, eval_size_hw

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OFF = Augmentation(scale=None, crop=False, flip=False, color_jitter=False)
AUGMENTATIONS = st.builds(
    Augmentation,
    scale=st.sampled_from([None, (0.5, 2.0), (0.1, 0.1), (8.0, 8.0)]),
    crop=st.just(True),
    flip=st.booleans(),
    color_jitter=st.booleans(),
)


def picture_of(mask: torch.Tensor) -> torch.Tensor:
    """The image whose grey value is the mask's id."""
    return mask.to(torch.uint8).expand(3, -1, -1).contiguous()


def ids_in(image: torch.Tensor) -> torch.Tensor:
    """The grey values of a normalised image."""
    return (image * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]) * 255


def coarse_mask(height: int, width: int) -> torch.Tensor:
    """Ids that grow from left to right and from top to bottom, so that every place and direction is known."""
    return (torch.arange(height)[:, None] * 100 // height + torch.arange(width) * 100 // width).long()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), AUGMENTATIONS, st.integers(0, 2**63 - 1))
def test_shapes_and_labels_for_any_image(height, width, augmentation, seed):
    mask = torch.randint(0, 7, (height, width), generator=torch.Generator().manual_seed(seed))
    image, out = seen(TrainTransform(64, augmentation, MEAN, STD), picture_of(mask), mask, seed)
    assert image.shape == (3, 64, 64) and image.dtype == torch.float32 and type(image) is torch.Tensor
    assert out.shape == (64, 64) and out.dtype == torch.int64 and type(out) is torch.Tensor
    assert set(out.unique().tolist()) <= {*mask.unique().tolist(), 255}
    assert (out != 255).any()
    assert (image[:, out == 255] == 0).all()  # padding is the mean colour


@settings(max_examples=40, deadline=None)
@given(st.integers(40, 120), st.integers(40, 120), st.integers(0, 10_000))
def test_image_and_mask_move_together(height, width, seed):
    """Both ramps must agree to within the rounding of ids and the blur of bilinear resizing, flipped or not."""
    mask = coarse_mask(height, width)
    augmentation = Augmentation(color_jitter=False)
    image, out = seen(TrainTransform(64, augmentation, MEAN, STD), picture_of(mask), mask, seed)
    labelled = out != 255
    difference = ids_in(image)[0][labelled] - out[labelled]
    assert difference.abs().max() <= 6
    assert abs(difference.mean()) < 1  # far zoomed in, a few source pixels fill the view and round alike


@pytest.mark.parametrize("size", [32, 64, 96, 224, 352])
def test_resized_masks_are_not_shifted_against_the_image(size):
    """A ramp of 96 columns: the mean difference to the bilinear image is the mask's shift, in source pixels."""
    mask = torch.arange(96).expand(96, 96).contiguous()
    image, out = seen(TrainTransform(size, OFF, MEAN, STD), picture_of(mask), mask, seed=0)
    assert abs((ids_in(image)[0] - out).mean()) < 0.01


def test_both_directions_of_flip_occur_and_flip_both():
    mask = coarse_mask(64, 64)
    transform = TrainTransform(64, Augmentation(None, crop=False, flip=True, color_jitter=False), MEAN, STD)
    flips = []
    for seed in range(64):
        image, out = seen(transform, picture_of(mask), mask, seed)
        assert torch.allclose(ids_in(image)[0], out.float(), atol=0.01)
        flips.append(torch.equal(out, mask.flip(1)))
        assert flips[-1] or torch.equal(out, mask)
    assert 20 < sum(flips) < 44


@pytest.mark.parametrize("size_hw", [(50, 70), (64, 64), (300, 40)])
def test_all_off_is_a_plain_resize(size_hw):
    image = torch.randint(0, 256, (3, *size_hw), dtype=torch.uint8)
    mask = torch.randint(0, 5, size_hw)
    out, out_mask = seen(TrainTransform(64, OFF, MEAN, STD), image, mask, seed=1)
    plain = F.normalize(F.resize(image, [64, 64], antialias=True).float() / 255, list(MEAN), list(STD))
    assert torch.allclose(out, plain, atol=1e-6)
    rows, columns = (((torch.arange(64) + 0.5) * side / 64).long() for side in size_hw)
    assert torch.equal(out_mask, mask[rows][:, columns])


def test_zoom_spans_the_range_evenly_in_its_logarithm():
    """A mark's size in the output gives the zoom: halving and doubling must be equally likely."""
    transform = TrainTransform(64, Augmentation(flip=False, color_jitter=False), MEAN, STD)
    torch.manual_seed(0)
    sides = [transform._random_window(1000, 3000, 1000).height for _ in range(400)]
    zooms = torch.tensor([1000 / side for side in sides])
    assert 0.499 < zooms.min() < 0.52 and 1.9 < zooms.max() < 2.003
    assert abs((zooms > 1).float().mean() - 0.5) < 0.1


@pytest.mark.parametrize(("zoom", "side"), [(1.0, 64), (0.8, 80)])
def test_crops_lie_at_every_place_up_to_both_borders(zoom, side):
    transform = TrainTransform(64, Augmentation((zoom, zoom)), MEAN, STD)
    torch.manual_seed(0)
    windows = [transform._random_window(64, 72, 64) for _ in range(300)]
    assert {window.top for window in windows} == set(range(min(0, 64 - side), max(0, 64 - side) + 1))
    assert {window.left for window in windows} == set(range(min(0, 72 - side), max(0, 72 - side) + 1))
    assert {(window.height, window.width) for window in windows} == {(side, side)}


def test_a_window_beyond_the_image_is_padded_in_proportion():
    mask = coarse_mask(40, 80)
    window = Window(top=-20, left=0, height=80, width=80)
    image, padding = window.resized(picture_of(mask), 160)
    assert image.shape == (3, 80, 160) and padding == [0, 40, 0, 40]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), AUGMENTATIONS, st.integers(0, 2**63 - 1))
def test_one_view_treats_all_masks_of_an_image_alike(height, width, augmentation, seed):
    """A map cut into one mask a value gives, mask by mask, what the whole map gives."""
    mask = torch.randint(0, 4, (height, width), generator=torch.Generator().manual_seed(seed))
    transform = TrainTransform(64, augmentation, MEAN, STD)
    _, out = seen(transform, picture_of(mask), mask, seed)
    for value in range(4):
        single = whole_mask_in(transform.view(height, width, seed), mask == value)
        assert torch.equal(single, out == value)


def test_the_look_depends_on_the_seed_alone_and_the_callers_rng_is_untouched():
    mask = coarse_mask(70, 90)
    transform = TrainTransform(64, Augmentation(), MEAN, STD)
    torch.manual_seed(5)
    first = seen(transform, picture_of(mask), mask, 11)
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after)

    torch.manual_seed(99)
    again, other = (seen(transform, picture_of(mask), mask, seed) for seed in (11, 12))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_color_jitter_leaves_mask_and_padding_alone():
    mask = coarse_mask(64, 64)
    plain = TrainTransform(64, Augmentation((0.6, 0.6), flip=False, color_jitter=False), MEAN, STD)
    jittered = TrainTransform(64, Augmentation((0.6, 0.6), flip=False), MEAN, STD)
    (image, out), (other, other_out) = (seen(t, picture_of(mask), mask, 3) for t in (plain, jittered))
    assert torch.equal(out, other_out) and not torch.equal(image, other)
    assert (other[:, other_out == 255] == 0).all()


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.integers(1, 32).map(lambda n: 32 * n))
def test_eval_size_keeps_the_aspect_and_bounds_the_memory(height, width, image_size):
    size = eval_size_hw(height, width, image_size)
    assert all(side % 32 == 0 and 32 <= side <= 4 * image_size for side in size)
    if max(height, width) <= 4 * min(height, width):
        assert min(size) == image_size
        exact = image_size * max(height, width) / min(height, width)
        assert abs(max(size) - exact) <= 16 + 1e-6
    else:
        assert max(size) == 4 * image_size


def test_eval_transform():
    image = torch.full((3, 90, 180), 51, dtype=torch.uint8)
    out = EvalTransform(64, MEAN, STD)(image)
    assert out.shape == (3, 64, 128) and out.dtype == torch.float32
    assert torch.allclose(out[:, 7, 7], (0.2 - torch.tensor(MEAN)) / torch.tensor(STD), atol=1e-5)


@pytest.mark.parametrize(("size", "nearest"), [(500, 512), (0, 32), (-64, 32), (40, 32)])
def test_image_size_must_fit_the_strides(size, nearest):
    for build in (lambda: TrainTransform(size, OFF, MEAN, STD), lambda: EvalTransform(size, MEAN, STD)):
        with pytest.raises(ValueError, match=naming(f"--image-size {size}:", 32, nearest)):
            build()


def test_augmentations_that_make_no_sense_together_are_refused():
    with pytest.raises(ValueError, match="random scaling needs random cropping"):
        Augmentation(crop=False)
    for scale in ((2.0, 0.5), (0.0, 1.0), (-1.0, math.inf)):
        with pytest.raises(ValueError, match="scale range"):
            Augmentation(scale=scale)


def test_quarter_turns_show_every_orientation_of_image_and_mask_alike():
    mask = 2 * torch.arange(64)[:, None] + torch.arange(64)
    for flip, count in ((True, 8), (False, 4)):
        transform = TrainTransform(64, Augmentation(None, False, flip, False, quarter_turns=True), MEAN, STD)
        content = ReadPair(picture_of(mask), mask.numpy())
        seen_maps = set()
        for seed in range(64):
            view = transform.view_of(content, seed)
            target = view.target(content)
            assert torch.allclose(ids_in(view.image(content.pixels))[0], target.semantic.float(), atol=0.01)
            seen_maps.add(tuple(target.semantic[[0, 0, -1, -1], [0, -1, 0, -1]].tolist()))
        assert len(seen_maps) == count
