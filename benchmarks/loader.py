"""Time to read and augment training samples: what one loader worker does for each image, by the image's size.

Median milliseconds of CPU time: decoding the JPEG, decoding its PNG mask, cutting and augmenting the view, and the
sample as a whole. "reduced" is what decoding the JPEG would take at the smallest scale of its format (1/2, 1/4, 1/8)
that still has the view's pixels; it is not done, since it changes the pixels.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

SIZES_HW = {"512 px": (512, 512), "2 MP": (1080, 1920), "12 MP": (3000, 4000)}
CLASSES, FILES = 8, 4
COLUMNS = ("image", "reduced", "mask", "view", "sample")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--image-size", type=int, default=512, help="of the view")
    parser.add_argument("--rounds", type=int, default=5, help="over all files, after one to warm up")
    args = parser.parse_args()

    import torch

    from benchmarks.machine import machine

    torch.set_num_threads(1)
    rows = []
    print(f"{'images':<10}" + "".join(f"{name + ' ms':>12}" for name in COLUMNS) + f"{'images/s':>12}")
    for name, size_hw in SIZES_HW.items():
        with tempfile.TemporaryDirectory() as folder:
            ms = measured(Path(folder), size_hw, args)
        rows.append({"images": name, **ms, "images_per_s": 1000 / ms["sample"]})
        print(f"{name:<10}" + "".join(f"{ms[c]:>12.1f}" for c in COLUMNS) + f"{1000 / ms['sample']:>12.1f}", flush=True)
    print(json.dumps({"benchmark": "loader", **vars(args), "rows": rows, **machine()}))


def measured(folder: Path, size_hw: tuple[int, int], args: argparse.Namespace) -> dict[str, float]:
    """Median milliseconds of each column."""
    from data.dataset import TrainDataset
    from data.decode import decode_image, decode_mask
    from data.labels import label_options
    from data.sources.masks import MaskSource
    from data.sources.pairs import match_files
    from data.transforms import Augmentation, TrainTransform

    draw(folder, size_hw)
    pairs = match_files([str(folder / "images")], [str(folder / "masks")], "images", "masks").pairs
    source = MaskSource(pairs, label_options(CLASSES, None, 255, False, None, None)[0])
    transform = TrainTransform(args.image_size, Augmentation(), (0.5,) * 3, (0.25,) * 3)
    dataset = TrainDataset(source, transform, seed=0)
    contents = [source.read(pair) for pair in pairs]

    def view(number: int) -> None:
        seen = transform.view_of(contents[number], number)
        seen.image(contents[number].pixels)
        seen.target(contents[number])

    return {
        "image": median_ms(lambda number: decode_image(pairs[number].image), args.rounds),
        "reduced": median_ms(lambda number: decode_reduced(pairs[number].image, args.image_size), args.rounds),
        "mask": median_ms(lambda number: decode_mask(pairs[number].mask), args.rounds),
        "view": median_ms(view, args.rounds),
        "sample": median_ms(lambda number: dataset[0, number], args.rounds),
    }


def decode_reduced(path: Path, short_side: int) -> np.ndarray:
    with Image.open(path) as image:
        scale = short_side / min(image.size)
        image.draft("RGB", (round(image.width * scale), round(image.height * scale)))
        return np.asarray(image)


def median_ms(run: Callable[[int], object], rounds: int) -> float:
    seconds = []
    for turn in range(rounds + 1):
        for number in range(FILES):
            start = time.process_time()
            run(number)
            if turn:
                seconds.append(time.process_time() - start)
    return 1000 * statistics.median(seconds)


def draw(folder: Path, size_hw: tuple[int, int]) -> None:
    """Images of smooth colours with some noise, so that files have the size of photographs; masks of large regions."""
    rng = np.random.default_rng(0)
    height, width = size_hw
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for number in range(FILES):
        coarse = rng.integers(0, 256, (height // 32, width // 32, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int16)
        pixels = (smooth + rng.integers(-8, 9, (height, width, 1))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{number}.jpg", quality=92)
        regions = Image.fromarray(rng.integers(0, CLASSES, (12, 16), dtype=np.uint8))
        regions.resize((width, height), Image.Resampling.NEAREST).save(folder / f"masks/{number}.png")


if __name__ == "__main__":
    main()
