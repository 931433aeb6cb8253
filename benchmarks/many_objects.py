"""Time and peak memory of one training sample, or one validation image, of 12 megapixels with 300 objects. Linux.

Validation starts from made outputs of one decoder layer, masks as a trained head gives them, and its loss samples few
points: what is measured is reading, masks at full size and the metrics, and not the network and its loss.
--masks noise: every mask covers half of the image in specks, which is the worst there is.
"""

import argparse
import json
import math
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

IMAGE_HW, IMAGE_PX, CLASSES, CORNERS = (3000, 4000), 512, 10, 40
RADII_PX = (30, 300)
POINTS = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--what", choices=("training", "validation"), default="training")
    parser.add_argument("--masks", choices=("objects", "noise"), default="objects", help="predicted in validation")
    parser.add_argument("--objects", type=int, default=300)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5, help="samples that are timed, after one to warm up")
    args = parser.parse_args()

    from benchmarks.machine import machine

    with tempfile.TemporaryDirectory() as folder:
        run = (training_run if args.what == "training" else validation_run)(args, made_set(Path(folder), args.objects))
        run(0)
        before, seconds = current_mb(), []
        reset_peak()
        for number in range(1, args.repeats + 1):
            start = time.perf_counter()
            run(number)
            seconds.append(time.perf_counter() - start)
        peak = peak_mb() - before
    median = statistics.median(seconds)
    print(f"{'what':<12}{'median s':>10}{'min s':>10}{'max s':>10}{'peak MB':>10}")
    print(f"{args.what:<12}{median:>10.3f}{min(seconds):>10.3f}{max(seconds):>10.3f}{peak:>10.0f}")
    figures = {"median_s": round(median, 4), "peak_mb": round(peak)}
    print(json.dumps({"benchmark": "many_objects", **vars(args), **figures, **machine()}))


def made_set(folder: Path, num_objects: int):
    """One image with star-shaped polygons, small ones more often than large ones, as a COCO set."""
    import numpy as np
    from PIL import Image

    from data.sources.coco import read_coco
    from data.sources.coco_tables import common_classes

    height, width = IMAGE_HW
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (height // 20, width // 20, 3), np.uint8)
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(folder / "large.jpg", quality=90)
    angles = np.linspace(0, 2 * math.pi, CORNERS, endpoint=False)
    annotations = []
    for number in range(num_objects):
        radius = RADII_PX[0] * (RADII_PX[1] / RADII_PX[0]) ** random.random() * random.uniform(0.7, 1, CORNERS)
        x, y = random.uniform(0, width), random.uniform(0, height)
        corners = np.stack(
            [(x + radius * np.cos(angles)).clip(0, width), (y + radius * np.sin(angles)).clip(0, height)]
        )
        polygon = corners.T.ravel().round(2).tolist()
        category = 1 + number % CLASSES
        annotations.append({"id": number, "image_id": 1, "category_id": category, "segmentation": [polygon]})
    content = {
        "images": [{"id": 1, "file_name": "large.jpg", "height": height, "width": width}],
        "annotations": annotations,
        "categories": [{"id": k + 1, "name": f"class {k}"} for k in range(CLASSES)],
    }
    (folder / "set.json").write_text(json.dumps(content))
    return common_classes([read_coco(folder / "set.json", folder)])[0]


def training_run(args: argparse.Namespace, coco_set):
    from data.dataset import TrainDataset
    from data.sources.objects import CocoSource
    from data.transforms import Augmentation, TrainTransform

    transform = TrainTransform(IMAGE_PX, Augmentation(), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    dataset = TrainDataset(CocoSource(coco_set.images), transform, seed=0)
    return lambda epoch: dataset[epoch, 0]


def validation_run(args: argparse.Namespace, coco_set):
    import torch

    from data.dataset import EvalDataset, collate
    from data.sources.objects import CocoSource, truth_objects
    from data.transforms import EvalTransform
    from evaluation.evaluate import evaluate
    from evaluation.instance import InstanceEvaluator, InstanceTruth
    from heads.mask2former.head import Mask2FormerHead, mask2former_size
    from heads.masks.loss import MaskLossSettings

    (image,) = coco_set.images
    dataset = EvalDataset(CocoSource([image]), EvalTransform(IMAGE_PX, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    truth = [InstanceTruth(*item) for item in truth_objects(image)]
    head = Mask2FormerHead(
        [8] * 4, CLASSES, 32, mask2former_size("paper", 32), args.queries, MaskLossSettings(num_points=POINTS)
    )
    outputs = made_outputs(args, dataset[0].target)

    class Model:
        def __init__(self):
            self.head = head

        def __call__(self, images, features=None):
            return outputs

        def loss(self, outputs, targets):
            return head.loss(outputs, targets)

    def run(number: int) -> None:
        evaluator = InstanceEvaluator(coco_set.class_names, lambda sample_id: (image.size_hw, truth))
        evaluate(Model(), [collate([dataset[0]])], evaluator, torch.device("cpu"))
        evaluator.result([evaluator.state()])

    return run


def made_outputs(args: argparse.Namespace, target):
    """Masks of the first objects at a quarter of the size, blurred; or noise."""
    import torch
    from torch.nn import functional as F

    from heads.masks.loss import MaskOutputs

    generator = torch.Generator().manual_seed(0)
    chosen = torch.arange(args.queries) % len(target.labels)
    masks = F.avg_pool2d(target.masks[chosen].float(), 4) * 12 - 6
    if args.masks == "noise":
        masks = torch.randn(masks.shape, generator=generator)
    classes = torch.randn(1, args.queries, CLASSES + 1, generator=generator)
    classes[0, torch.arange(args.queries), target.labels[chosen]] += 4
    return MaskOutputs.of_masks([classes], [masks[None]])


def current_mb() -> float:
    return status_mb("VmRSS")


def peak_mb() -> float:
    return status_mb("VmHWM")


def status_mb(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{key}:"))
    return int(line.split()[1]) / 1024


def reset_peak() -> None:
    """The peak counts from here on, where the system allows it; otherwise from the start of the process."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        print(f"note: the peak is that of the whole process, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss} kB")


if __name__ == "__main__":
    main()
