"""The feature cache: what changes is never found, what is found is what was computed, and nothing else changes."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from image_files import with_orientation
from messages import names, naming
from PIL import Image
from training_helpers import assert_same_state, drawn, log_without_speed, train_here

from backbones.frozen import FrozenBackbone, build_backbone
from data.dataset import EvalDataset, TrainDataset
from data.image_rule import PLAIN, ImageRule
from data.labels import LabelRule
from data.sources.masks import MaskSource
from data.sources.pairs import Pair
from data.transforms import Augmentation, EvalTransform, TrainTransform
from errors import UserError
from structures import Batch
from training.config import CacheFlags, config_of
from training.features.cache import FeatureCache, Trial
from training.features.plan import CachePlan
from training.features.stores import DiskStore, MemoryStore, open_store

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
CPU = SimpleNamespace(mixed_precision="no", device=torch.device("cpu"), autocast=nullcontext)


@pytest.fixture(scope="module")
def backbone() -> FrozenBackbone:
    return build_backbone("vit_tiny_patch16_224", "random")


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """How many images the backbone was asked about, call by call; the black ones of a trial do not count."""
    counts, own = [], FrozenBackbone.forward

    def forward(self, images):
        if images.any():
            counts.append(len(images))
        return own(self, images)

    monkeypatch.setattr(FrozenBackbone, "forward", forward)
    return counts


def cache_of(backbone: FrozenBackbone, store=None, dtype=torch.float32, accelerator=CPU, **more) -> FeatureCache:
    return FeatureCache(backbone, accelerator, store or MemoryStore(10**9), dtype, **more)


def images(count: int = 2, seed: int = 0, size: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


# Keys


def test_whatever_changes_the_features_changes_the_key():
    """Of the backbone, of how it computes, and of the pixels."""

    def built(name: str = "vit_tiny_patch16_224") -> FrozenBackbone:
        return build_backbone(name, "random")

    def with_other_weight() -> FrozenBackbone:
        backbone = built()
        backbone.model.patch_embed.proj.weight.data.view(-1)[17] += 1e-6  # one value, which a fingerprint may not see
        return backbone

    def with_layers() -> FrozenBackbone:
        backbone = built()
        assert backbone.give_layers({12: [2, 7]}) == [2, 7]
        return backbone

    def with_attention() -> FrozenBackbone:
        backbone = built()
        backbone.attention = "xformers"
        return backbone

    batch = images(1)
    backbones = [
        built(),
        built("vit_tiny_patch16_384"),
        with_other_weight(),
        with_layers(),
        with_attention(),
        built().cast_weights(torch.bfloat16),
    ]
    caches = [cache_of(each) for each in backbones]
    caches.append(cache_of(backbones[0], dtype=torch.int8))
    caches.append(cache_of(backbones[0], accelerator=SimpleNamespace(**{**vars(CPU), "mixed_precision": "bf16"})))
    caches.append(cache_of(backbones[0], accelerator=SimpleNamespace(**{**vars(CPU), "device": torch.device("cuda")})))
    keys = [cache.keys(batch)[0] for cache in caches]
    assert len(set(keys)) == len(caches) and all(len(key) == 64 for key in keys)

    changed = batch.clone()
    changed[0, 2, 31, 31] = torch.nextafter(changed[0, 2, 31, 31], torch.tensor(9.0))
    others = [batch, changed, batch.flip(-1), batch[..., :16], batch.reshape(1, 3, 16, 64), batch.double()]
    assert len({caches[0].keys(other)[0] for other in others}) == len(others)
    assert cache_of(built()).keys(batch) == caches[0].keys(batch)  # the same again, in another process too


def test_a_final_map_changes_the_key():
    backbone = build_backbone("convnext_atto", "random")
    cache = cache_of(backbone)
    before = cache.keys(images(1))
    backbone.give_final_map()  # for another head of a comparison
    assert cache.keys(images(1)) != before


def test_whatever_changes_a_view_changes_its_key(backbone, tmp_path):
    """The file, how it is read, and what training and validation make of it."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(tmp_path / "mask.png")
    Image.fromarray(np.zeros((60, 40), np.uint8)).save(tmp_path / "turned.png")
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    Image.fromarray(pixels).save(tmp_path / "exif.png", exif=with_orientation(6))
    pixels[3, 5, 1] ^= 128
    Image.fromarray(pixels).save(tmp_path / "changed.png")
    cache = cache_of(backbone)

    def key(name: str = "plain", mask: str = "mask", rule: ImageRule = PLAIN, epoch: int = 0, **transform) -> str:
        pair = Pair("a", tmp_path / f"{name}.png", tmp_path / f"{mask}.png")
        source = MaskSource([pair], LabelRule(2), rule=rule)
        size, changes = transform.pop("size", 32), {"scale": None, "crop": False, "flip": False, "color_jitter": False}
        made = TrainTransform(size, Augmentation(**{**changes, **transform}), MEAN, STD)
        return cache.keys(TrainDataset(source, made, 0, 4)[epoch, 0].image[None])[0]

    keys = [
        key(),
        key("changed"),
        key("exif", "turned"),
        key(rule=ImageRule((3, 2, 1))),
        key(rule=ImageRule(value_range=(0, 200))),
        key(size=64),
        key(crop=True),
        key(crop=True, scale=(0.5, 2.0)),
        key(color_jitter=True),
        *(key(color_jitter=True, epoch=epoch) for epoch in (1, 2, 3)),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == key(epoch=1) == key(epoch=7)  # without augmentation all views are one
    assert key(color_jitter=True, epoch=5) == key(color_jitter=True, epoch=1)
    assert key("exif", "turned") != key("plain")
    sizes = [EvalTransform(size, MEAN, STD) for size in (32, 64)]
    source = MaskSource([Pair("a", tmp_path / "plain.png", tmp_path / "mask.png")], LabelRule(2))
    assert len({cache.keys(EvalDataset(source, size)[0].image[None])[0] for size in sizes} | {key()}) == 3


def test_fixed_views_do_not_depend_on_the_seed_of_a_run(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(tmp_path / "m.png")
    source = MaskSource([Pair("a", tmp_path / "a.png", tmp_path / "m.png")], LabelRule(2))
    transform = TrainTransform(32, Augmentation(), MEAN, STD)
    first, second = (TrainDataset(source, transform, seed, 3) for seed in (0, 1))
    assert torch.equal(first[4, 0].image, second[1, 0].image)
    assert not torch.equal(first[0, 0].image, first[1, 0].image)


# What is stored and found


@pytest.mark.parametrize("is_on_disk", [False, True])
def test_what_is_known_is_not_computed_again(backbone, asked, tmp_path, is_on_disk):
    store = DiskStore(tmp_path / "cache", 10**9) if is_on_disk else MemoryStore(10**9)
    cache = cache_of(backbone, store)
    batch = images(5)
    whole = backbone(batch)
    asked.clear()
    first = cache.features(batch[:3])
    assert asked == [1, 1, 1]  # one image at a time: another batch gives the same bits
    again = cache_of(backbone, store).features(batch[[4, 2, 0]])
    assert asked == [1, 1, 1, 1]
    for number in range(4):
        torch.testing.assert_close(first.maps[number], whole.maps[number][:3])
        assert torch.equal(again.maps[number][1:], first.maps[number][[2, 0]])
    size = store.used_bytes
    assert size > 4 * 4 * 192 * 4 * 4 and (cache.num_computed, cache.num_found) == (3, 0)
    if is_on_disk:
        assert sum(path.stat().st_size for path in tmp_path.glob("cache/*/*.features")) == size


def test_batches_come_with_their_features_in_order(backbone, asked):
    cache = cache_of(backbone)
    loader = [Batch(images(2, seed), sample_ids=[f"{seed}"]) for seed in (0, 1, 0, 2)]
    for batch, given in zip(cache.batches(loader), loader, strict=True):
        assert batch.sample_ids == given.sample_ids
        torch.testing.assert_close(batch.features.maps[3], backbone(given.images).maps[3])
    assert asked.count(1) == 6 and cache.num_found == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_what_was_just_computed_is_rounded_as_what_is_found(backbone, dtype):
    """Also beyond the budget: results do not depend on what the cache holds."""
    cache, full = cache_of(backbone, dtype=dtype), cache_of(backbone, MemoryStore(0), dtype)
    computed, found, unstored = cache.features(images()), cache.features(images()), full.features(images())
    assert cache.num_found == 2 and full.store.used_bytes == 0
    exact = backbone(images())
    for a, b, c, d in zip(computed.maps, found.maps, unstored.maps, exact.maps, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c) and not torch.equal(a, d)


@pytest.mark.parametrize("is_on_disk", [False, True])
def test_over_the_budget_what_fits_is_kept(backbone, tmp_path, is_on_disk):
    probe = cache_of(backbone)
    probe.features(images(1))
    limit = 2 * probe.store.used_bytes + 10
    store = DiskStore(tmp_path, limit) if is_on_disk else MemoryStore(limit)
    cache = cache_of(backbone, store)
    cache.features(images(4))
    cache.features(images(4))
    assert (cache.num_found, cache.num_computed, store.used_bytes) == (2, 6, limit - 10)
    if is_on_disk:  # what lies there counts for the next run
        assert DiskStore(tmp_path, limit, share=0.5).budget_bytes == store.used_bytes + 5


def test_a_damaged_file_is_computed_again_and_replaced(backbone, asked, tmp_path):
    cache = cache_of(backbone, DiskStore(tmp_path, 10**9))
    first = cache.features(images())
    one, other = sorted(tmp_path.glob("*/*.features"))
    one.write_bytes(one.read_bytes()[:-64])
    other.write_bytes(one.read_bytes())  # of another key, and cut off
    asked.clear()
    assert torch.equal(cache.features(images()).maps[0], first.maps[0]) and asked == [1, 1]
    assert torch.equal(cache.features(images()).maps[0], first.maps[0]) and asked == [1, 1]


def test_a_disk_that_fails_ends_the_writing_and_not_the_training(backbone, asked, tmp_path, capsys):
    (tmp_path / "cache").mkdir()
    cache = cache_of(backbone, DiskStore(tmp_path / "cache", 10**9))
    (tmp_path / "cache").rmdir()
    (tmp_path / "cache").write_text("a file where the folder was")
    for _ in range(2):
        cache.features(images())
    assert asked == [1] * 4 and names(capsys.readouterr().err, "--cache-dir", tmp_path / "cache")


@pytest.mark.parametrize("is_on_disk", [False, True])
def test_a_trial_leaves_nothing_behind(backbone, tmp_path, is_on_disk):
    store = DiskStore(tmp_path, 10**9) if is_on_disk else MemoryStore(10**9)
    for limit in (10**9, 0):  # a full store is no reason to fail
        store.budget_bytes = limit
        trial = cache_of(backbone, store).trial(batch_size=2, image_size=32)
        assert trial.computed_s > 0 and trial.found_s > 0
        assert store.used_bytes == 0 and not list(tmp_path.glob("*/*"))


def test_files_that_killed_processes_left_are_removed(tmp_path, monkeypatch):
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / "x.features.1.tmp").write_bytes(b"1234")
    assert DiskStore(tmp_path, 100).used_bytes == 4  # another process may be writing it
    monkeypatch.setattr("training.features.stores.LEFTOVER_S", -1)
    assert DiskStore(tmp_path, 100).used_bytes == 0 and not list(tmp_path.glob("*/*"))


# Where it is kept


def test_auto_takes_the_memory_where_all_fits(tmp_path):
    flags = CacheFlags(cache_features="auto", cache_dir=str(tmp_path / "new"), cache_budget=1000)
    assert isinstance(open_store(flags, 1, 1000), MemoryStore) and not (tmp_path / "new").exists()
    on_disk = open_store(flags, 1, 1001)
    assert (on_disk.folder, on_disk.budget_bytes) == (tmp_path / "new", 1000)
    assert open_store(flags, 4, 10).budget_bytes == 250  # of each process
    unlimited = open_store(CacheFlags(cache_features="ram"), 1, 10**15)
    assert isinstance(unlimited, MemoryStore) and unlimited.budget_bytes > 10**6


def test_what_cannot_be_kept_as_asked_is_refused(tmp_path):
    with pytest.raises(UserError, match=naming("--cache-features ram", "4 processes", "disk")):
        open_store(CacheFlags(cache_features="ram"), 4, 10)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=naming("--cache-dir", tmp_path / "file")):
        open_store(CacheFlags(cache_features="disk", cache_dir=str(tmp_path / "file")), 1, 10)
    with pytest.raises(UserError, match=naming("--cache-features", "--unfreeze-backbone")):
        config_of("linear")(image_paths=("a",), mask_paths=("b",), unfreeze_backbone=True, cache_features="ram")


def test_without_a_folder_it_lies_beside_that_of_torch_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert open_store(CacheFlags(cache_features="disk"), 1, 0).folder.parent == tmp_path


def test_the_plan_counts_views_looks_and_seconds():
    plan = CachePlan(train_images=10, val_images=3, num_views=4, epochs=20, validations=5, view_bytes=100)
    assert (plan.different, plan.looks, plan.total_bytes) == (43, 215, 4300)
    assert plan.share(4300) == plan.share(9999) == 1 and plan.share(1075) == 0.25
    trial = Trial(computed_s=2.0, found_s=0.5)
    assert plan.saved_s(trial, 4300) == (215 - 43) * 1.5 and plan.saved_s(trial, 1075) == (215 - 43) * 1.5 / 4
    short = CachePlan(10, 0, 4, 3, 0, 100)
    assert (short.different, short.looks, short.saved_s(trial, 10**6)) == (30, 30, 0)
    fresh = CachePlan(10, 3, 0, 20, 5, 100)
    assert (fresh.different, fresh.looks) == (3, 15)


# Trainings

slow = pytest.mark.slow


def options(folder: Path, *more: str) -> list[str]:
    return ["--epochs", "3", "--log-interval", "1", "--best-metric", "miou", *drawn(folder, 5, 2, 32), *more]


@slow
def test_a_training_without_augmentation_is_the_same_with_and_without_the_cache(tmp_path, asked, capsys):
    """Bit for bit, in memory and on disk; a second head and a second run find what the first has left."""
    plain = options(tmp_path / "data", "--no-augmentation", "--cache-dir", str(tmp_path / "cache"))
    assert train_here("linear", tmp_path / "none", *plain) == 0
    assert sum(asked) == 3 * (5 + 2)
    for place, count in (("ram", 7), ("disk", 7), ("disk", 0)):
        asked.clear()
        folder = tmp_path / f"{place}_{count}"
        assert train_here("linear", folder, *plain, "--cache-features", place) == 0
        assert sum(asked) == count
        name = "linear_checkpoint_epoch_3.pth"
        assert_same_state(tmp_path / "none" / name, folder / name)
        assert log_without_speed(folder, "linear_") == log_without_speed(tmp_path / "none", "linear_")
    asked.clear()
    assert train_here("upernet", tmp_path / "other", *plain, "--adapter", "pyramid", "--cache-features", "disk") == 0
    assert sum(asked) == 0 and "feature cache" in capsys.readouterr().out


@slow
def test_with_fixed_views_each_is_computed_once_and_resuming_is_exact(tmp_path, asked):
    """From the middle of an epoch; with what the cache holds, and with nothing."""
    flags = options(tmp_path / "data", "--cache-features", "disk", "--cache-views", "2", "--checkpointing-steps", "4")
    caches = [("--cache-dir", str(tmp_path / name)) for name in ("first", "second")]
    assert train_here("linear", tmp_path / "whole", *flags, *caches[0]) == 0
    assert sum(asked) == 2 * 5 + 2
    start = ("--resume-checkpoint", str(tmp_path / "whole" / "linear_checkpoint_step_4.pth"))
    for number, (cache, count) in enumerate(zip(caches, (0, 3 + 5 + 2), strict=True)):
        asked.clear()
        assert train_here("linear", tmp_path / f"resumed_{number}", *flags, *cache, *start) == 0
        assert sum(asked) == count
        name = "linear_checkpoint_epoch_3.pth"
        assert_same_state(tmp_path / "whole" / name, tmp_path / f"resumed_{number}" / name)


@slow
def test_validation_in_windows_and_views_is_cached_and_the_same(tmp_path, asked):
    """Fresh augmentation in training, so that nothing else is cached."""
    flags = options(tmp_path / "data", "--eval-mode", "slide", "--crop", "32", "--stride", "16", "--short-side", "48")
    flags += ["--tta", "--tta-scales", "1", "--epochs", "2"]
    counts = {}
    for name, more in (("none", []), ("ram", ["--cache-features", "ram", "--cache-views", "0"])):
        asked.clear()
        assert train_here("linear", tmp_path / name, *flags, *more) == 0
        counts[name] = sum(asked)
    assert counts["none"] - 2 * 5 == 2 * (counts["ram"] - 2 * 5) > 2 * 2 * 4
    assert log_without_speed(tmp_path / "ram", "linear_") == log_without_speed(tmp_path / "none", "linear_")
