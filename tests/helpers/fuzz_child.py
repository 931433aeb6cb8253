"""Reads mutated files of one kind: `python fuzz_child.py KIND FIRST END FOLDER`; `test_fuzzing.py` starts it.

A case depends on SEED, kind and number alone. Its number and its file are printed before it is read, and the file stays
until the next one: so a process that was killed tells which case did it. The last line says how many readings gave a
result, and how many a UserError; anything else ends the process.
"""

import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_mutators import Kind, Made, altered, json_file, mutated_text
from fuzz_tensors import checkpoints, weights
from paths import ROOT
from PIL import Image

from errors import UserError

SEED = 20
MEMORY_BYTES = 2 * 2**30
"""Of address space, beyond what is mapped when the first case begins."""

CASE_CPU_S = 30
"""A case that takes more processor time than this is taken for one without end."""

MAX_PIXELS = 1_000_000
RNG = np.random.default_rng(SEED)


def coco() -> Kind:
    from pycocotools import mask as coco_mask

    from data.sources.coco import read_coco
    from data.sources.coco_tables import common_classes
    from data.sources.panoptic import read_panoptic

    images = [{"id": k, "file_name": f"{k}.png", "height": 8, "width": 9} for k in (1, 2)]
    square = [1, 1, 5, 1, 5, 6.5, 1, 6.5]
    masks = [[square], [square, [0, 0, 9, 0, 9, 8]], {"size": [8, 9], "counts": [10, 6, 56]}]
    masks += [{"size": [8, 9], "counts": coco_mask.frPyObjects(masks[2], 8, 9)["counts"].decode()}]
    common = {"area": 20.0, "bbox": [1, 1, 4, 5.5]}
    objects = [
        {"id": k, "image_id": 1 + k % 2, "category_id": 3 + k % 2, "segmentation": mask, "iscrowd": k % 2, **common}
        for k, mask in enumerate(masks)
    ]
    categories = [{"id": 3, "name": "ant", "isthing": 1}, {"id": 4, "name": "sky", "isthing": 0}]
    segments = [{"id": 5 + k, "category_id": 3 + k, "iscrowd": 0, **common} for k in (0, 1)]
    panoptic = [{"image_id": k, "file_name": f"{k}.png", "segments_info": segments} for k in (1, 2)]
    trees = [{"images": images, "annotations": table, "categories": categories} for table in (objects, panoptic)]

    def read_instances(path: Path) -> None:
        here = Path("set")
        whole = read_coco(path, here)
        for image in common_classes([whole, whole])[0].images:
            for entry in image.objects:
                if image.size_hw[0] * image.size_hw[1] <= MAX_PIXELS:
                    mask = coco_mask.decode(entry.rle)
                    assert mask.shape == image.size_hw and mask.sum() == coco_mask.area(entry.rle)

    def read_segments(path: Path) -> None:
        common_classes([read_panoptic(path, Path("set"), Path("set"))])

    return Kind(partial(json_file, trees=trees), [read_instances, read_segments])


def label_studio() -> Kind:
    from pycocotools import mask as coco_mask

    from data.formats.table import open_data
    from data.sources.coco_tables import common_classes

    for name in ("1a2b3c4d-a.png", "b.png"):
        Image.fromarray(RNG.integers(0, 256, (1, 2, 3), np.uint8)).save(name)
    size = {"original_width": 2, "original_height": 1, "image_rotation": 0}
    points = [[0, 0], [100.0, 0], [100, 100], [0, 100]]
    brush = {"format": "rle", "rle": [0, 0, 0, 8, 57, 27, 252, 96, 17, 255, 128], "brushlabels": ["sky"]}
    shapes = {"polygonlabels": {"points": points, "polygonlabels": ["ant"]}, "brushlabels": brush}
    shapes |= {"labels": {"points": points, "labels": ["ant"]}, "rectanglelabels": {"x": 1, "rectanglelabels": ["ant"]}}
    results = [{"id": kind, "type": kind, "value": value, **size} for kind, value in shapes.items()]
    annotations = [{"was_cancelled": False, "ground_truth": False, "result": results[:3]}, {"result": results[3:]}]
    places = ["/data/upload/1/1a2b3c4d-a.png", "/data/local-files/?d=x%20y/b.png"]
    tree = [{"id": k, "annotations": annotations, "data": {"image": place}} for k, place in enumerate(places)]

    def read(path: Path) -> None:
        for image in common_classes([open_data(str(path), "label-studio").files.splits["train"]])[0].images:
            assert image.path.is_relative_to(path.parent)
            for entry in image.objects:
                assert coco_mask.decode(entry.rle).shape == image.size_hw == (1, 2)

    return Kind(partial(json_file, trees=[tree]), [read])


def images() -> Kind:
    import tifffile

    from data.bands import pixels_by_header
    from data.decode import decode_image, decode_mask
    from data.image_rule import PERCENTILE, ImageRule
    from data.reduced_jpeg import read_pixels, reduced_part

    grey, color = (RNG.integers(0, 256, (16, 20, *bands), np.uint8) for bands in ((), (3,)))
    wide = RNG.integers(0, 65536, (16, 20, 5), np.uint16)
    seeds = []

    def add(kind: str, values: np.ndarray, mode: str | None = None, **options: Any) -> None:
        image = Image.fromarray(values)
        file = io.BytesIO()
        (image.convert(mode) if mode else image).save(file, kind, **options)
        seeds.append((f".{kind.lower()}", file.getvalue()))

    def add_tiff(values: np.ndarray, **options: Any) -> None:
        file = io.BytesIO()
        tifffile.imwrite(file, values, **options)
        seeds.append((".tiff", file.getvalue()))

    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        add("PNG", color, mode, exif=exif)
    add("PNG", wide[..., 0])
    for options in ({}, {"exif": exif, "progressive": True}):
        add("JPEG", color, "RGB", **options)
    add("JPEG", color, "CMYK")
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        add("TIFF", color, compression=compression, exif=exif)
    add("TIFF", grey, "1", compression="group4")
    for kind, mode in (("BMP", "RGB"), ("BMP", "P"), ("GIF", "P"), ("PPM", "L"), ("PPM", "RGB"), ("PPM", "1")):
        add(kind, color, mode)
    add("PPM", wide[..., 0])
    for lossless in (True, False):
        add("WEBP", color, "RGBA", lossless=lossless, exif=exif)
    add_tiff(np.tile(wide[..., :3], (2, 2, 1)), tile=(16, 16), compression="zlib", photometric="rgb")
    add_tiff(wide, planarconfig="contig", byteorder=">", photometric="minisblack")
    add_tiff(wide.transpose(2, 0, 1), planarconfig="separate", compression="zlib", photometric="minisblack")
    add_tiff(wide[..., 0].astype(np.float32), bigtiff=True)

    def image(path: Path, rule: ImageRule) -> None:
        pixels = decode_image(path, MAX_PIXELS, rule=rule).pixels
        assert pixels.dtype == np.uint8 and pixels.shape[0] == 3 and 0 < pixels[0].size <= MAX_PIXELS

    def reduced(path: Path) -> None:
        pixels, _ = read_pixels(path, MAX_PIXELS, reduces_jpegs=True)
        part = reduced_part(pixels, (0, 0, *pixels.shape[1:]), (2, 2))
        assert part is None or part.shape == (3, 2, 2)

    def mask(path: Path, as_colors: bool) -> None:
        assert 0 < decode_mask(path, as_colors, MAX_PIXELS).values.size <= MAX_PIXELS

    rules = ImageRule(), ImageRule((1, 2, 3), PERCENTILE)
    readers = [partial(image, rule=rule) for rule in rules] + [partial(mask, as_colors=k) for k in (False, True)]
    return Kind(partial(altered, seeds=seeds), [*readers, reduced, pixels_by_header])


def labels() -> Kind:
    from data.label_files import read_class_names, read_label_map, read_palette

    trees = [
        {"classes": {"road": [0, 1], "person": 11}, "ignore": [30, 31]},
        {"classes": {"a": "sky"}, "ignore": "rest"},
    ]
    trees += [{"road": [128, 64, 128], "sky": "#4682b4"}, [[0, 0, 0], "#ffffff"]]
    texts = [
        "64 128 64 Animal\n#000000 road, old\n# comment\n1,2,3\n",
        "# label:color\nroad:1,2,3::\nsky:0,0,255:a:b\n",
    ]
    texts += ["road\nsky\nperson\n", "road\n"]
    seeds = [(".txt", text.encode()) for text in texts]

    def make(rng: random.Random) -> Made:
        if rng.random() < 0.5:
            return json_file(rng, trees)
        return altered(rng, seeds, mutated_text, mutated_text)

    readers = [partial(read_label_map, source_names=names) for names in (None, ["sky", "road"])]
    return Kind(make, [*readers, read_palette, lambda path: read_class_names([str(path)], 3)])


def cache() -> Kind:
    from data.check.scan import Failure, ImageFacts, MaskFacts, ScanMemory

    path = Path("image.png").absolute()
    path.write_bytes(b"x")
    empty, stat = ScanMemory([path.parent]), path.stat()
    facts = {
        "ids": MaskFacts((2, 2), "L", 1, False, {0: 3, 255: 1}, 2),
        "colors": MaskFacts((2, 2), "RGB", 1, True, {0xFF00FF: 4}, 1),
        "image": ImageFacts((2, 2), "RGB", 6, "0123", (0, 65535)),
        "image bands": ImageFacts(failure=Failure("damaged", "it is")),
    }
    for kind, one in facts.items():
        empty.remember(kind, path, stat, one)
    empty.save({path})
    tree = json.loads(empty.path.read_bytes())

    def deeper(frames: int, work: Callable[[], Any]) -> Any:
        """Does the work with so many more frames below it: what could just be read may be too deep to look at."""
        return deeper(frames - 1, work) if frames else work()

    def recall(case: Path) -> None:
        shutil.copy(case, empty.path)
        try:
            memory = ScanMemory([path.parent])
            known = [deeper(30, partial(memory.recall, kind, path, stat)) for kind in facts]
            memory.remember("ids", path, stat, facts["ids"])
            deeper(30, partial(memory.save, {path}))
        except UserError as error:
            raise AssertionError("a cache disturbed") from error
        if not any(known):
            raise UserError("nothing is known")

    return Kind(partial(json_file, trees=[tree]), [recall])


def recipes() -> Kind:
    from training.config import parse_training_arguments

    trees = [json.loads(file.read_bytes()) for file in sorted((ROOT / "configs").glob("*.json"))]
    more = {"class_names": ["a", "b"], "bands": "1,2,3", "value_range": [0, 1.5], "lr_milestones": [0.5, 0.9]}
    more |= {"label_map": "x.json", "palette": "x.txt", "scale_range": [0.5, 2], "checkpointing_steps": "epoch"}
    trees += [{**tree, **more} for tree in trees]

    def parse(path: Path, head: str, words: list[str]) -> None:
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                parse_training_arguments(head, ["--config", str(path), *words])
        except SystemExit as end:
            if end.code != 2:
                raise
            raise UserError("exit code 2") from None

    pairs = ["--image-paths", "a/*.png", "--mask-paths", "b/*.png"]
    commands = [("m2f", pairs), ("linear", pairs), ("m2f", ["--task", "instance", "--coco-dir", "set"])]
    return Kind(partial(json_file, trees=trees), [partial(parse, head=head, words=words) for head, words in commands])


def defect(action: Callable[[], Any]) -> Kind:
    """For the tests of all this: one case in ten shows a defect."""

    def read(path: Path) -> None:
        if path.read_bytes() == b"9":
            action()

    return Kind(lambda rng: (".txt", str(rng.randrange(10)).encode()), [read])


KINDS = {kind.__name__: kind for kind in (coco, label_studio, images, checkpoints, weights, labels, cache, recipes)}
KINDS["crash"] = partial(defect, lambda: os.kill(os.getpid(), signal.SIGSEGV))
KINDS["bug"] = partial(defect, lambda: [].pop())
KINDS["memory"] = partial(defect, lambda: bytearray(2 * MEMORY_BYTES))


def bound_memory() -> None:
    mapped = Path("/proc/self/statm")
    if mapped.exists():  # Linux
        limit = int(mapped.read_text().split()[0]) * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(name: str, first: int, end: int, folder: str) -> None:
    warnings.simplefilter("ignore")
    os.chdir(folder)
    kind = KINDS[name]()
    outcomes = {"results": 0, "refused": 0}
    bound_memory()
    for number in range(first, end):
        suffix, content = kind.make(random.Random(f"{SEED} {name} {number}"))
        path = Path(f"case{suffix}")
        path.write_bytes(content)
        print(number, path, flush=True)
        signal.setitimer(signal.ITIMER_PROF, CASE_CPU_S)
        for read in kind.readers:
            try:
                read(path)
                outcomes["results"] += 1
            except UserError:
                outcomes["refused"] += 1
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
