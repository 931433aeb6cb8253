"""Made comparisons: heads of a known quality, on images of a known number and difficulty."""

import numpy as np

from comparison.per_image import SemanticPerImage
from comparison.result import Comparison, CurvePoint, GalleryImage, HeadResult
from evaluation.drawing import class_colors

NAMES = {"m2f": "Mask2Former", "upernet": "UPerNet", "linear": "Linear"}
PARAMETERS = {"m2f": 14_000_000, "upernet": 8_200_000, "linear": 4_616}


def made_areas(
    rng: np.random.Generator, images: int, classes: int, quality: float, truth: np.ndarray, difficulty: np.ndarray
) -> np.ndarray:
    """(I, K, 3). quality: mean share of a class that is found; truth: (I, K) pixels; difficulty: (I, 1) of each image,
    which all heads share."""
    share = np.clip(quality - difficulty + rng.normal(0, 0.06, (images, classes)), 0.02, 0.99)
    found = (truth * share).astype(np.int64)
    wrong = (truth * (1 - share) * rng.uniform(0.5, 1, (images, classes))).astype(np.int64)
    return np.stack([found, found + wrong, truth], axis=-1)


def made_truth(rng: np.random.Generator, images: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (I, K), a third of the classes in each image; difficulty (I, 1)."""
    occurs = rng.random((images, classes)) < max(0.33, 2 / classes)
    truth = np.where(occurs, rng.lognormal(8, 1, (images, classes)), 0).astype(np.int64)
    return truth, rng.uniform(0, 0.3, (images, 1))


def made_result(
    head: str, areas: np.ndarray, seed: int = 0, train_size: int = 100, name: str | None = None, pace: float = 1.0
) -> HeadResult:
    """The areas decide every figure of quality; pace: seconds of a step."""
    per_image = SemanticPerImage(areas)
    images, classes, _ = areas.shape
    shared, predicted, truth = (areas.sum(0)[:, i] for i in range(3))
    union = predicted + truth - shared
    value = per_image.value(np.ones(images, int))
    confusion = np.diag(shared)
    confusion[np.arange(classes), (np.arange(classes) + 1) % classes] += truth - shared
    steps = range(50, 501, 50)
    rise = [1 - 0.8 * 0.6 ** (step / 100) + 0.01 * np.sin(step + seed) for step in steps]
    return HeadResult(
        name=name or NAMES.get(head, head),
        head=head,
        seed=seed,
        train_size=train_size,
        metrics={"mIoU": value, "pixel accuracy": float(shared.sum() / max(1, truth.sum()))},
        per_class=[float(s / u) if u else None for s, u in zip(shared, union, strict=True)],
        confusion=confusion,
        per_image=per_image,
        curve=[
            CurvePoint(step, step * pace / 60, float(value * r), float(4 - 3 * r))
            for step, r in zip(steps, rise, strict=True)
        ],
        best_step=500,
        trained_parameters=PARAMETERS.get(head, 1_000_000),
        training_seconds=500 * pace,
        step_seconds=pace,
        image_seconds=0.2 * pace,
        peak_memory_bytes=int(1.5e9 + 1e9 * pace),
        checkpoint=f"runs/{head}_seed{seed}/best_model/checkpoint_step_500.pth",
        checkpoint_bytes=PARAMETERS.get(head, 1_000_000) * 4,
        command=f"python demo/train_{head}_head.py --seed {seed} --max-steps 500",
    )


def made_comparison(
    qualities: dict[str, float],
    images: int = 60,
    classes: int = 6,
    seeds: int = 1,
    train_sizes: tuple[int, ...] = (100,),
    rng_seed: int = 0,
    seed_noise: float = 0.0,
    gallery: int = 0,
    class_names: list[str] | None = None,
    size_hw: tuple[int, int] = (360, 480),
) -> Comparison:
    """qualities: of each head at the largest size of the training set. seed_noise: standard deviation over seeds.
    gallery: number of images shown, of size_hw pixels."""
    rng = np.random.default_rng(rng_seed)
    truth, difficulty = made_truth(rng, images, classes)
    results = []
    for place, (head, quality) in enumerate(qualities.items()):
        for seed in range(seeds):
            for size in train_sizes:
                loss = 0.08 * np.log2(max(train_sizes) / size) / (1 + place)
                reached = quality - loss + rng.normal(0, seed_noise)
                areas = made_areas(rng, images, classes, reached, truth, difficulty)
                results.append(made_result(head, areas, seed, size, pace=1.3 / (1 + place)))
    names = class_names or [f"class {k}" for k in range(classes)]
    colors = [tuple(color) for color in class_colors(classes).tolist()]
    ids = [f"val/image_{i:03d}" for i in range(images)]
    shown = [made_image(rng, ids[i], results, np.array(colors), size_hw) for i in range(gallery)]
    facts = {
        "backbone": "dinov3_vits16, frozen",
        "data": "a made set",
        "budget": "500 steps per head",
        "seeds": str(seeds),
    }
    commands = [f"python demo/compare_heads.py --heads {' '.join(qualities)} --seeds {seeds}"]
    return Comparison("semantic", "mIoU", names, colors, truth.sum(0).tolist(), ids, results, shown, facts, commands)


def made_image(
    rng: np.random.Generator, sample_id: str, results: list[HeadResult], colors: np.ndarray, size_hw: tuple[int, int]
) -> GalleryImage:
    """A smooth image; ground truth of rectangles and ellipses, predictions with edges that are off."""
    height, width = size_hw
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / rng.uniform(20, 90) + columns / rng.uniform(20, 90) + rng.uniform(0, 6)) for _ in range(3)]
    pixels = np.stack(waves, -1) * 60 + rng.uniform(90, 150, 3) + rng.normal(0, 3, (height, width, 1))
    shapes = [
        (int(k), rng.uniform(0, height), rng.uniform(0, width), rng.uniform(30, 130), rng.uniform(30, 130))
        for k in rng.choice(len(colors), min(7, len(colors)), replace=False)
    ]

    def drawn(shift: float) -> np.ndarray:
        classes = np.zeros(size_hw, int)
        for k, top, left, high, wide in shapes:
            moved = rng.normal(0, shift, 2)
            inside = ((rows - top - moved[0]) / high) ** 2 + ((columns - left - moved[1]) / wide) ** 2 < 1
            classes[inside] = k
        return np.dstack([colors[classes], np.full(size_hw, 150)]).astype(np.uint8)

    names = list(dict.fromkeys(result.name for result in results))
    return GalleryImage(
        sample_id,
        pixels.clip(0, 255).astype(np.uint8),
        drawn(0),
        {name: drawn(6 * (1 + place)) for place, name in enumerate(names)},
        {name: float(rng.uniform(0.3, 0.9)) for name in names},
    )
