"""Time to read and augment training samples: what one loader worker does for each image, by the image's size.

Mean milliseconds of CPU time, in turns, over views of many zooms: decoding the JPEG, decoding its PNG mask, cutting
and augmenting the view, the sample as a whole, and the same sample with --reduced-jpeg ("reduced"). The last column is
by how many of 255 levels the pixels of these two differ in the mean.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

STD = (0.25,) * 3
SIZES_HW = {"512 px": (512, 512), "2 MP": (1080, 1920), "12 MP": (3000, 4000)}
CLASSES, FILES = 8, 4
COLUMNS = ("image", "mask", "view", "sample", "reduced")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--image-size", type=int, default=512, help="of the view")
    parser.add_argument("--rounds", type=int, default=5, help="over all files, after one to warm up")
    args = parser.parse_args()

    import torch

    from benchmarks.machine import machine

    torch.set_num_threads(1)
    rows = []
    print(f"{'images':<10}" + "".join(f"{name + ' ms':>12}" for name in COLUMNS) + f"{'difference':>12}")
    for name, size_hw in SIZES_HW.items():
        with tempfile.TemporaryDirectory() as folder:
            ms, difference = measured(Path(folder), size_hw, args)
        rows.append({"images": name, **ms, "difference": difference})
        print(f"{name:<10}" + "".join(f"{ms[c]:>12.1f}" for c in COLUMNS) + f"{difference:>12.2f}", flush=True)
    print(json.dumps({"benchmark": "loader", **vars(args), "rows": rows, **machine()}))


def measured(folder: Path, size_hw: tuple[int, int], args: argparse.Namespace) -> tuple[dict[str, float], float]:
    """Mean milliseconds of each column, and by how many levels a reduced sample differs from a whole one."""
    from data.dataset import TrainDataset
    from data.decode import decode_image, decode_mask
    from data.labels import label_options
    from data.sources.masks import MaskSource
    from data.sources.pairs import match_files
    from data.transforms import Augmentation, TrainTransform

    draw(folder, size_hw)
    pairs = match_files([str(folder / "images")], [str(folder / "masks")], "images", "masks").pairs
    source = MaskSource(pairs, label_options(CLASSES, None, 255, False, None, None)[0])
    transform = TrainTransform(args.image_size, Augmentation(), (0.5,) * 3, STD)
    whole = TrainDataset(source, transform, seed=0)
    reduced = TrainDataset(replace(source, reduces_jpegs=True), transform, seed=0)
    contents = [source.read(pair) for pair in pairs]

    def made(turn: int, number: int) -> None:
        seen = transform.view_of(contents[number], turn * FILES + number)
        seen.image(contents[number].pixels)
        seen.target(contents[number])

    ms = mean_ms(
        {
            "image": lambda turn, number: decode_image(pairs[number].image),
            "mask": lambda turn, number: decode_mask(pairs[number].mask),
            "view": made,
            "sample": lambda turn, number: whole[turn, number],
            "reduced": lambda turn, number: reduced[turn, number],
        },
        args.rounds,
    )
    views = [(turn, number) for turn in range(args.rounds) for number in range(FILES)]
    differences = (float((whole[view].image - reduced[view].image).abs().mean()) for view in views)
    return ms, statistics.mean(differences) * STD[0] * 255


def mean_ms(runs: dict[str, Callable[[int, int], object]], rounds: int) -> dict[str, float]:
    """Of each run, called with the number of its turn, which is the epoch of its views, and that of a file."""
    seconds = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for number in range(FILES):
            for name, run in runs.items():
                start = time.process_time()
                run(turn, number)
                if turn:
                    seconds[name].append(time.process_time() - start)
    return {name: 1000 * statistics.mean(times) for name, times in seconds.items()}


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
