"""A small set for panoptic segmentation that can be learned."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def panoptic_set(folder: Path, count: int, size: int = 64) -> list[str]:
    """Two squares (things) on ground and sky (stuff), as COCO's panoptic JSON and PNGs."""
    draw = np.random.default_rng(len(folder.name))
    (folder / "images").mkdir(parents=True)
    (folder / "segments").mkdir()
    images, annotations = [], []
    for i in range(count):
        ids = np.where(np.arange(size)[:, None] < size // 2, 1, 2) * np.ones((1, size), int)
        for number, left in ((300, 4), (301, size // 2 + 4)):
            top = int(draw.integers(4, size - 24))
            ids[top : top + 18, left : left + 18] = number
        colors = np.array([[90, 140, 220], [90, 120, 60], [220, 40, 40]])
        picture = colors[np.where(ids > 2, 2, ids - 1)] + draw.integers(-20, 20, (size, size, 3))
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{i}.png")
        png = np.stack((ids % 256, ids // 256, ids * 0), -1).astype(np.uint8)
        Image.fromarray(png).save(folder / "segments" / f"{i}.png")
        images.append({"id": i + 1, "file_name": f"{i}.png", "height": size, "width": size})
        classes = {1: 1, 2: 2, 300: 3, 301: 3}
        segments = [
            {"id": k, "category_id": c, "iscrowd": 0, "area": int((ids == k).sum())} for k, c in classes.items()
        ]
        annotations.append({"image_id": i + 1, "file_name": f"{i}.png", "segments_info": segments})
    names = [("sky", 0), ("ground", 0), ("box", 1)]
    categories = [{"id": k + 1, "name": name, "isthing": thing} for k, (name, thing) in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "panoptic.json").write_text(json.dumps(content))
    paths = (folder / "panoptic.json", folder / "images", folder / "segments")
    return [str(path) for path in paths]
