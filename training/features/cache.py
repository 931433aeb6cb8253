"""The feature cache: what the frozen backbone says about a view is computed once, and kept in memory or in files.

An entry is found by what it was computed from: the pixels of the view as the backbone takes them, and all that decides
what the backbone makes of them. Whatever changes, be it a file, the image size, an augmentation, the bands or a weight,
leads to another key; there is no list of settings that could miss one, and so no stale feature. The price is that a
view is decoded and hashed each time: hashing takes 3 ms for 512 x 512 pixels, less than decoding them.

B images, H W their size in pixels.
"""

import hashlib
import json
import math
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from backbones.frozen import FrozenBackbone
from segmenter import Segmenter
from structures import Batch, Features, LossScope, Target
from training.config import CacheFlags
from training.features.entries import DTYPES, decode, encode
from training.features.stores import Store, open_store
from training.processes import precision_name

READERS = 4
"""Threads that hash, read and write entries: the processor and the disk have more than one thing to do at a time."""

TRIAL_KEY = "0" * 64


class FeatureCache:
    """Asks the backbone only about what it was not asked before.

    backbone: frozen. dtype: how values are stored (see entries.py). num_views: of each training image there are
    so many, 0 = training has a new one in each epoch, and only validation is cached.

    What it gives has always passed through the stored form, also when it was just computed or does not fit any more:
    results do not depend on what the cache holds. On the CPU images are computed one at a time, for the same reason:
    the others of a batch cannot change how the numbers of one are rounded.
    """

    def __init__(
        self, backbone: FrozenBackbone, accelerator: Accelerator, store: Store, dtype: torch.dtype, num_views: int = 0
    ) -> None:
        assert not backbone.is_trained
        self.backbone, self.accelerator, self.store, self.dtype = backbone, accelerator, store, dtype
        self.num_views = num_views
        self.num_found = self.num_computed = 0
        self._weights = ""
        self._pool = ThreadPoolExecutor(READERS)

    def batches(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """The batches of the loader, with their features on the device; entries of the next one are read meanwhile.

        Images and targets stay on the host, where a step looks at targets before it moves them."""
        with ThreadPoolExecutor(1) as ahead:
            waiting: tuple[Batch, Future] | None = None
            for batch in loader:
                reading = ahead.submit(self._looked_up, batch.images)
                if waiting:
                    yield self._with_features(*waiting)
                waiting = batch, reading
            if waiting:
                yield self._with_features(*waiting)

    def features(self, images: Tensor) -> Features:
        """What the backbone says about images (B, 3, H, W), normalised, on any device."""
        return self._completed(images, self._looked_up(images))

    def setting(self) -> str:
        """64 hex digits that differ wherever the same pixels have other entries."""
        self._weights = self._weights or self.backbone.digest()
        facts = {
            **self.backbone.outputs(),
            "weights": self._weights,
            "precision": str(self.accelerator.mixed_precision),
            "device": self.accelerator.device.type,
            "stored": str(self.dtype),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def keys(self, images: Tensor) -> list[str]:
        """Of each image (3, H, W): 64 hex digits of the setting and the pixels."""
        setting = self.setting()
        pixels = images.detach().cpu().contiguous()

        def key(image: Tensor) -> str:
            digest = hashlib.sha256(f"{setting} {image.dtype} {tuple(image.shape)}".encode())
            digest.update(image.view(torch.uint8).numpy().data)
            return digest.hexdigest()

        return list(self._pool.map(key, pixels))

    def trial(self, batch_size: int, image_size: int) -> "Trial":
        """Measures the backbone and the store on a black image. Leaves nothing in the store."""
        device = self.accelerator.device
        images = torch.zeros(self._images_at_once(batch_size), 3, image_size, image_size, device=device)
        computed_s = found_s = math.inf
        for _ in range(2):
            begin = time.perf_counter()
            entry, *_ = self._computed(images, [TRIAL_KEY] * len(images))
            computed_s = (time.perf_counter() - begin) / len(images)
            if computed_s > 1:  # what else a first pass does is small beside that
                break
        self.store.put(TRIAL_KEY, entry)
        for _ in range(2):
            begin = time.perf_counter()
            self.keys(images[:1].cpu())
            found = self.store.get(TRIAL_KEY)
            decode((entry if found is None else found)[None], device)  # None: the store is full
            found_s = time.perf_counter() - begin
        self.store.remove(TRIAL_KEY)
        return Trial(computed_s, found_s)

    def _looked_up(self, images: Tensor) -> "Found":
        keys = self.keys(images)
        entries = list(self._pool.map(self.store.get, keys))
        is_complete = all(entry is not None for entry in entries)
        return Found(keys, entries, self._stacked(entries) if is_complete else None)

    def _with_features(self, batch: Batch, reading: Future) -> Batch:
        batch.features = self._completed(batch.images, reading.result())
        return batch

    def _completed(self, images: Tensor, found: "Found") -> Features:
        """Computes and stores what is missing among the entries."""
        keys, entries = found.keys, found.entries
        missing = [number for number, entry in enumerate(entries) if entry is None]
        at_once = self._images_at_once(len(missing))
        with self.backbone.uneven_calls():  # what one process misses, another has found
            for first in range(0, len(missing), at_once):
                some = missing[first : first + at_once]
                computed = self._computed(images[some], [keys[number] for number in some])
                for number, entry in zip(some, computed, strict=True):
                    entries[number] = entry
        list(self._pool.map(self.store.put, [keys[n] for n in missing], [entries[n] for n in missing]))
        self.num_computed += len(missing)
        self.num_found += len(entries) - len(missing)
        stacked = self._stacked(entries) if found.stacked is None else found.stacked
        return decode(stacked, self.accelerator.device)

    def _stacked(self, entries: list[Tensor]) -> Tensor:
        """(B, n), from where a GPU can fetch them while it computes."""
        stacked = torch.stack(entries)
        return stacked.pin_memory() if self.accelerator.device.type == "cuda" else stacked

    @torch.no_grad()
    def _computed(self, images: Tensor, keys: list[str]) -> list[Tensor]:
        with self.accelerator.autocast():
            features = self.backbone(images.to(self.accelerator.device))
        return encode(features, keys, self.dtype)

    def _images_at_once(self, count: int) -> int:
        return 1 if self.accelerator.device.type == "cpu" else max(1, count)


@dataclass(frozen=True)
class Found:
    """Of a batch: its keys, the entries that are known, and where these are all of them, (B, n) of them."""

    keys: list[str]
    entries: list[Tensor | None]
    stacked: Tensor | None


@dataclass(frozen=True)
class Trial:
    """Seconds for one view: computed by the backbone, or found and brought to the device."""

    computed_s: float
    found_s: float


class CachedModel:
    """A model for `evaluate` whose backbone is asked through a cache, whatever part of an image is looked at."""

    def __init__(self, segmenter: Segmenter, cache: FeatureCache) -> None:
        self.segmenter, self.cache, self.head = segmenter, cache, segmenter.head

    def __call__(self, images: Tensor, features: Features | None = None) -> Any:
        return self.segmenter(images, features or self.cache.features(images))

    def loss(self, outputs: Any, targets: list[Target], scope: LossScope | None = None) -> dict[str, Tensor]:
        return self.segmenter.loss(outputs, targets, scope)


def make_cache(
    flags: CacheFlags, backbone: FrozenBackbone, accelerator: Accelerator, needed_bytes: int
) -> FeatureCache | None:
    """What the flags ask for, None where that is nothing. needed_bytes: about what there would be to store.

    Raises UserError where it cannot be kept as they say, see open_store.
    """
    if flags.cache_features == "off":
        return None
    store = open_store(flags, accelerator.num_processes, needed_bytes)
    cache = FeatureCache(backbone, accelerator, store, stored_dtype(flags, accelerator), flags.cache_views)
    if backbone.is_sharded:
        cache.setting()  # now, while all processes are here: its digest gathers the weights
    return cache


def stored_dtype(flags: CacheFlags, accelerator: Accelerator) -> torch.dtype:
    """auto: as exact as the run computes."""
    return DTYPES[precision_name(accelerator) if flags.cache_dtype == "auto" else flags.cache_dtype]
