"""Time and peak memory of predicting and evaluating one large raster end to end: python demo/predict.py and
demo/evaluate.py on a GeoTIFF that is drawn strip by strip, with a linear head on ViT-S. Linux; needs rasterio."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
NUM_CLASSES, TILE_PX, FIELD_PX = 5, 512, 200
COLORS = np.array([(60, 60, 60), (40, 120, 40), (150, 120, 60), (30, 60, 140), (200, 200, 190)], np.int16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--size", type=int, default=20_000, metavar="PX", help="side of the raster")
    parser.add_argument("--backbone", default="dinov3_vits16")
    parser.add_argument("--weights", default="random", help="of the backbone")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--max-megapixels", type=float, default=1.0, help="what is decoded whole: less than the raster")
    parser.add_argument("--folder", type=Path, default=None, help="for raster and results (None = a temporary one)")
    args = parser.parse_args()

    from benchmarks.machine import machine

    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        started = time.monotonic()
        image, mask = draw(folder, args.size)
        drawn_s = time.monotonic() - started
        model = train(folder, args.backbone, args.weights)
        mask_path, report = folder / "out/mask.tif", folder / "report.json"
        predict = ["predict.py", "-m", model, "-i", image, "-o", mask_path, "--save", "masks,json,polygons"]
        evaluate = ["evaluate.py", "-m", model, "--image-paths", image, "--mask-paths", mask, "--overwrite"]
        evaluate += ["--num-workers", 0, "--output-dir", folder / "evaluation", "--json", report]
        found = {}
        for name, words in (("predict", predict), ("evaluate", evaluate)):
            words += ["--max-megapixels", args.max_megapixels, "--precision", args.precision]
            found[name] = measured([str(word) for word in words])
            seconds, peak_gb = found[name]
            print(f"{name}: {seconds:.0f} s, {args.size**2 / 1e6 / seconds:.2f} megapixels/s, peak {peak_gb:.2f} GB")
        sizes = {path.name: path.stat().st_size for path in (image, mask_path, mask_path.with_suffix(".geojson"))}
    figures = {name: {"s": round(s, 1), "peak_gb": round(gb, 2)} for name, (s, gb) in found.items()}
    about = {
        "size_px": args.size,
        "backbone": args.backbone,
        "precision": args.precision,
        "drawn_s": round(drawn_s, 1),
        "bytes": sizes,
    }
    print(json.dumps({**about, **figures, **machine()}))


def draw(folder: Path, size: int) -> tuple[Path, Path]:
    """Fields of five classes with noise, in UTM at 0.5 m, as tiled GeoTIFFs of images and of ids."""
    import rasterio

    rng = np.random.default_rng(0)
    fields = rng.integers(0, NUM_CLASSES, (-(-size // FIELD_PX),) * 2).astype(np.uint8)
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)}
    tiles = {"driver": "GTiff", "tiled": True, "blockxsize": TILE_PX, "blockysize": TILE_PX, "compress": "deflate"}
    profile = {**place, **tiles, "width": size, "height": size, "dtype": "uint8", "BIGTIFF": "IF_SAFER"}
    image, mask = folder / "images/raster.tif", folder / "masks/raster.tif"
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(image, "w", count=3, **profile) as pixels, rasterio.open(mask, "w", count=1, **profile) as ids:
        columns = np.arange(size) // FIELD_PX
        for top in range(0, size, TILE_PX):
            rows = np.arange(top, min(top + TILE_PX, size))
            classes = fields[(rows // FIELD_PX)[:, None], columns]
            noise = rng.integers(-20, 21, (len(rows), size, 1), np.int16)
            strip = (COLORS[classes] + noise).clip(0, 255).astype(np.uint8)
            window = ((int(rows[0]), int(rows[-1]) + 1), (0, size))
            pixels.write(strip.transpose(2, 0, 1), window=window)
            ids.write(classes, 1, window=window)
    return image, mask


def train(folder: Path, backbone: str, weights: str) -> Path:
    """A few steps of a linear head on windows of a small raster of the same kind."""
    image, mask = draw(folder / "small", 2048)
    words = ["train_linear_head.py", "--image-paths", image, "--mask-paths", mask, "--num-classes", NUM_CLASSES]
    words += ["--backbone", backbone, "--weights", weights, "--max-megapixels", 1, "--max-steps", 10, "--batch-size", 2]
    words += ["--num-workers", 0, "--warmup-epochs", 0, "--checkpoint-dir", folder / "run", "--overwrite"]
    measured([str(word) for word in words])
    return folder / "run"


def measured(words: list[str]) -> tuple[float, float]:
    """Seconds and peak resident memory in GB of a script of demo/."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, str(ROOT / "demo" / words[0]), *words[1:]], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"{words[0]} failed")
    return time.monotonic() - started, usage.ru_maxrss / 2**20


if __name__ == "__main__":
    main()
