"""Orders unlabelled images by what a model is least sure of, and writes pre-annotations of the first ones: COCO, Label
Studio, masks. docs/label_loop.md explains it."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from errors import UserError, note, printable, run_job
from labelling.config import RankConfig, parse_rank_arguments

if TYPE_CHECKING:
    from labelling.annotations import CocoFolder, MaskFolder
    from labelling.label_studio import LabelStudioFolder
    from labelling.pool import Ranked
    from prediction.predictor import Predictor

RANKING_FILE = "ranking.json"
NAMED = 5
"""Images that are named at the end."""


def rank_images(config: RankConfig) -> int:
    from tqdm import tqdm

    from labelling.pool import find_pool, least_sure_first, uncertainties  # --help should not wait for torch
    from labelling.uncertainty import UNCERTAINTIES, check_same_classes

    output = Path(config.output_dir)
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise UserError(f"--output-dir {output}: holds something already, name a new folder for this round")
    images, num_skipped = find_pool(config.image_paths, config.labelled or ())
    if num_skipped:
        note(f"{num_skipped:,} images have the name of a labelled one, and are skipped")
    predictors = load_predictors(config)
    check_same_classes(predictors)
    failed: dict[str, str] = {}
    shown = tqdm(images, unit="image", disable=None)  # None: on a terminal only
    found = least_sure_first(uncertainties(predictors, shown, UNCERTAINTIES[config.by], failed))
    for reason in failed.values():
        print(f"error: {printable(reason)}", file=sys.stderr)
    if not found:
        raise UserError("none of the images could be read")
    write_ranking(config, found)  # first, since pre-annotations may fail
    write_annotations(config, predictors[0], found[: config.top])
    for one in found[:NAMED]:
        print(printable(f"  {one.uncertainty:.4f}  {one.image.name}"))
    print(f"{len(found)} images ordered by {config.by}, {min(len(found), config.top)} with pre-annotations: {output}")
    return 1 if failed else 0


def load_predictors(config: RankConfig) -> "list[Predictor]":
    import torch

    from memory import keep_freed_memory
    from prediction.predictor import Predictor
    from training.processes import uses_bf16

    options = {"is_bf16": uses_bf16(config.precision), "max_megapixels": config.max_megapixels}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        keep_freed_memory()
    predictors = [Predictor.load(path, config.weights, device=device, **options) for path in config.model_path]
    if any(one.image_rule != predictors[0].image_rule for one in predictors):
        raise UserError("-m: the models take different bands or values of an image: rank with those of one kind")
    return predictors


def write_annotations(config: RankConfig, predictor: "Predictor", chosen: "list[Ranked]") -> None:
    """Predicts the chosen images, and writes a folder of each kind that --save names."""
    from labelling.annotations import PreAnnotated

    folders = annotation_folders(config, predictor)
    for ranked in chosen:
        one = PreAnnotated(ranked, predictor.predict(ranked.image.path))
        for folder in folders:
            folder.add(one)
    for folder in folders:
        folder.save()


def annotation_folders(
    config: RankConfig, predictor: "Predictor"
) -> "list[CocoFolder | LabelStudioFolder | MaskFolder]":
    from data.labels import LabelRule
    from labelling.annotations import CocoFolder, MaskFolder
    from labelling.label_studio import LabelStudioFolder

    output, model = Path(config.output_dir), predictor.segmenter
    names = model.class_names
    is_semantic = model.task == "semantic"
    category_ids = range(1, len(names) + 1) if is_semantic else model.labels["category_ids"]
    folders = []
    if "coco" in config.save:
        folders.append(CocoFolder(output / "coco", names, category_ids))
    if "label-studio" in config.save:
        folders.append(LabelStudioFolder(output / "label-studio", names, f"{model.spec.head} {Path(model.path).name}"))
    if "masks" in config.save and is_semantic:
        folders.append(MaskFolder(output / "masks", names, LabelRule.from_dict(model.labels)))
    elif "masks" in config.save:
        note("--save masks: this model finds objects, which masks of class ids cannot tell apart: none are written")
    return folders


def write_ranking(config: RankConfig, found: "list[Ranked]") -> None:
    from checkpoint import write_json
    from labelling.annotations import naming_place

    rows = [{"image": one.image.name, "path": str(one.image.path), "uncertainty": one.uncertainty} for one in found]
    path = Path(config.output_dir) / RANKING_FILE
    with naming_place(path):
        write_json(path, {"by": config.by, "models": list(config.model_path), "images": rows})


def main() -> int:
    config = parse_rank_arguments(sys.argv[1:])
    return run_job(lambda: rank_images(config))


if __name__ == "__main__":
    sys.exit(main())
