"""Opens a local page: models on images that are dropped into it, beside each other, and the curves of runs.
docs/app.md explains it."""

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from app.config import AppConfig, parse_app_arguments
from errors import UserError, run_job, stopping_at_once, warn

if TYPE_CHECKING:
    from prediction.predictor import Predictor


def open_page(config: AppConfig) -> None:
    if not config.is_local:
        warn(f"--host {config.host}: everybody who reaches this machine can use the page, and see what it shows")
    with stopping_at_once(), tempfile.TemporaryDirectory(prefix="segmentation-app-") as dropped:
        os.environ["GRADIO_TEMP_DIR"] = dropped  # before the import; what was dropped goes with the page
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        try:
            from app.page import Page
        except ModuleNotFoundError as error:
            if error.name != "gradio":
                raise
            raise UserError("the page needs gradio: pip install -r requirements-app.txt") from error
        from app.runs import find_runs
        from labelling.pool import find_pool

        runs = find_runs(config.runs or ())
        images = find_pool(config.image_paths, ())[0] if config.image_paths else []
        blocks, address = Page(load_models(config), images, runs).launch(config)
        print(f"the page: {address} (Ctrl-C ends it)", flush=True)
        blocks.block_thread()


def load_models(config: AppConfig) -> "dict[str, Predictor]":
    """By the names that the page gives them: their paths without what all have in common."""
    import torch

    from memory import keep_freed_memory
    from prediction.predictor import Predictor
    from training.processes import uses_bf16

    options = {"is_bf16": uses_bf16(config.precision), "max_megapixels": config.max_megapixels}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        keep_freed_memory()
    places = {path: os.path.abspath(path) for path in config.model_path or ()}
    shared = os.path.commonpath([os.path.dirname(place) for place in places.values()]) if places else ""
    return {
        os.path.relpath(place, shared): Predictor.load(path, config.weights, device=device, **options)
        for path, place in places.items()
    }


def main() -> int:
    config = parse_app_arguments(sys.argv[1:])
    return run_job(lambda: open_page(config))


if __name__ == "__main__":
    sys.exit(main())
