"""Exports a trained model, with its backbone, to a file that runs without this program: ONNX, torch.export, weights."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from errors import UserError, run_job
from export.config import ExportConfig, parse_export_arguments

if TYPE_CHECKING:
    from segmenter import Segmenter


def export(config: ExportConfig) -> int:
    from backbones.frozen import KEPT_AS  # --help should not wait for torch
    from export.about import about
    from export.files import import_runtime, write_onnx, write_program, write_safetensors
    from export.model import ExportedHead, ExportedModel
    from released.model import load_model

    path = Path(config.output)
    if path.is_dir():
        raise UserError(f"--output {path}: is a folder, expected the name of a file")
    if config.format == "onnx":
        import_runtime()
    segmenter = load_model(config.model_path, config.weights, config.backbone, config.task)
    if config.format == "safetensors":
        write_safetensors(segmenter, path)
        print(f"{path}: {megabytes(path)}, {segmenter.spec.head} for {segmenter.backbone.name}; read back, all equal")
        return 0
    dtype = segmenter.arguments.get("backbone_dtype")
    if dtype in KEPT_AS and dtype != "fp32" and not config.without_backbone and not segmenter.backbone.is_kept:
        raise UserError(
            f"this head was trained on features of --backbone-dtype {dtype}, which the exported backbone would not "
            "give: pass --without-backbone"
        )
    size_hw = config.image_size or size_of_run(segmenter)
    model = ExportedHead(segmenter, size_hw) if config.without_backbone else ExportedModel(segmenter)
    write = write_onnx if config.format == "onnx" else write_program
    difference = write(model, path, size_hw, config.dynamic_size, about(segmenter), config.tolerance)
    sizes = "any multiples of 32" if config.dynamic_size else "{} x {}".format(*size_hw)
    print(f"{path}: {megabytes(path)}, {', '.join(model.input_names)} ({sizes}) -> {', '.join(model.output_names)}")
    print(f"largest difference to PyTorch: {difference:.2g} (tolerance {config.tolerance:g})")
    return 0


def size_of_run(segmenter: "Segmenter") -> tuple[int, int]:
    side = segmenter.arguments["image_size"]
    return side, side


def megabytes(path: Path) -> str:
    files = [path, path.with_name(f"{path.name}.data")]
    return f"{sum(file.stat().st_size for file in files if file.exists()) / 1e6:.1f} MB"


def main() -> int:
    config = parse_export_arguments(sys.argv[1:])
    return run_job(lambda: export(config))


if __name__ == "__main__":
    sys.exit(main())
