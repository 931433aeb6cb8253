"""What the feature cache will hold and save, before the first step, and what to do where it cannot pay."""

from dataclasses import dataclass

import torch

from backbones.frozen import FrozenBackbone
from training.config import TrainConfig
from training.features.cache import FeatureCache, Trial
from training.features.entries import DTYPES

GB = 1e9


@dataclass(frozen=True)
class CachePlan:
    """How often a run looks at how many views.

    num_views: that differ, of each training image; 0 = training is not cached. validations: of all validation images.
    view_bytes: of one view in the cache, about.
    """

    train_images: int
    val_images: int
    num_views: int
    epochs: int
    validations: int
    view_bytes: int

    @property
    def different(self) -> int:
        """Views that are computed at least once."""
        return self.train_images * min(self.num_views, self.epochs) + self.val_images * (self.validations > 0)

    @property
    def looks(self) -> int:
        """Views that the run asks for."""
        return self.train_images * self.epochs * (self.num_views > 0) + self.val_images * self.validations

    @property
    def total_bytes(self) -> int:
        return self.different * self.view_bytes

    def share(self, budget_bytes: int) -> float:
        """Of the views that fit."""
        return min(1.0, budget_bytes / max(1, self.total_bytes))

    def saved_s(self, trial: Trial, budget_bytes: int) -> float:
        """Seconds of the backbone that the run is spared, on an empty cache; negative where it loses some."""
        found_again = (self.looks - self.different) * self.share(budget_bytes)
        return found_again * (trial.computed_s - trial.found_s)


def cache_plan(
    config: TrainConfig, backbone: FrozenBackbone, sizes: dict[str, int], epochs: int, dtype: torch.dtype
) -> CachePlan:
    """sizes: images of "train" and "val". Validation images count as squares of --image-size."""
    numbers = backbone.values_per_image(config.image_size, config.image_size)
    validations = -(-epochs // config.val_interval)
    views = min(config.cache_views, 1) if is_without_augmentation(config) else config.cache_views
    return CachePlan(sizes["train"], sizes["val"], views, epochs, validations, numbers * dtype.itemsize)


def is_without_augmentation(config: TrainConfig) -> bool:
    """Whether all views of an image are the same; the random windows of rasters aside."""
    is_off = config.no_random_crop and config.no_flip and config.no_color_jitter
    return config.no_augmentation or (config.augmentation == "default" and is_off)


def cache_lines(plan: CachePlan, cache: FeatureCache, trial: Trial) -> list[str]:
    """For people: size, time, and advice."""
    store = cache.store
    dtype = next(name for name, each in DTYPES.items() if each == cache.dtype)
    views = f"{plan.num_views} views per training image" if plan.num_views else "validation images only"
    looked_s = plan.looks * trial.computed_s
    saved_s = plan.saved_s(trial, store.budget_bytes)
    lines = [
        f"in {store.place}, {dtype}, {views}: {plan.different:,} views of {plan.view_bytes / 1e6:.2f} MB, about "
        f"{plan.total_bytes / GB:.2f} GB of at most {store.budget_bytes / GB:.2f} GB",
        f"a view takes {trial.computed_s:.3g} s computed, {trial.found_s:.3g} s found: "
        f"{max(0, saved_s) / 3600:.2g} of {looked_s / 3600:.2g} h of the backbone are saved, more where entries are "
        "there already",
    ]
    if plan.num_views and plan.epochs <= plan.num_views:
        lines.append(
            f"cannot pay in this run: its {plan.epochs} epochs see each of {plan.num_views} views once at most; pass a "
            "smaller --cache-views, or leave --cache-features out unless other runs will use the same views"
        )
    elif trial.found_s >= trial.computed_s:
        lines.append("cannot pay: computing is as fast as looking up; leave --cache-features out")
    if plan.share(store.budget_bytes) < 1:
        lines.append(
            f"{plan.share(store.budget_bytes):.0%} fit, the rest is computed each time: raise --cache-budget, or pass "
            f"a smaller --cache-views, or --cache-dtype int8 ({plan.total_bytes / cache.dtype.itemsize / GB:.2f} GB)"
        )
    return lines
