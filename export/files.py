"""The three files: ONNX, a program of torch.export, and .safetensors. Each is written once its numbers were checked."""

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backbones.weights import hub_name
from checkpoint import checksum, read_checkpoint, sealed
from errors import UserError
from export.model import ExportedModel, check_parity, explaining_sizes, trace
from head_file import head_file_bytes
from segmenter import Segmenter

ONNX_PACKAGES = "onnx onnxscript onnxruntime"
LARGEST_ONNX_BYTES = 3 * 2**29
"""Of tensors in the file itself: protobuf ends at 2 GiB. Those of larger models lie in FILE.data beside it."""

OPSET = 20

LOCAL = {
    *("image_paths", "mask_paths", "val_image_paths", "val_mask_paths", "label_map", "palette", "class_weights"),
    *(
        "data",
        "coco_dir",
        "coco_json",
        "coco_images",
        "coco_segments",
        "val_coco_json",
        "val_coco_images",
        "val_coco_segments",
    ),
    *("class_names", "cache_dir", "init_head", "checkpoint_dir", "resume_checkpoint", "config", "tracker"),
}
"""Arguments of a run that name files of its machine: they are nobody else's business."""


def write_onnx(
    model: ExportedModel,
    path: Path,
    size_hw: tuple[int, int],
    is_dynamic: bool,
    about: dict[str, str],
    tolerance: float,
) -> float:
    """Write the model as ONNX and return the largest difference of onnxruntime's outputs to PyTorch's.

    about: becomes the metadata. Raises UserError where a package is missing or the difference is above the tolerance.
    """
    runtime = import_runtime()
    program = trace(model, size_hw, is_dynamic)
    with explaining_sizes(model, is_dynamic), quiet(), torch.no_grad():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            optimize=False,  # it takes minutes on Mask2Former, and onnxruntime optimizes what it loads itself
            verbose=False,
            opset_version=OPSET,
            input_names=model.input_names,
            output_names=model.output_names,
        )
    exported.model.metadata_props.update(about)
    is_large = sum(t.nbytes for t in model.state_dict().values()) > LARGEST_ONNX_BYTES
    with aside(path) as written:
        exported.save(written, external_data=is_large)
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        session = runtime.InferenceSession(written, options, providers=["CPUExecutionProvider"])

        def run(example: tuple[Any, ...]) -> list[Tensor]:
            tensors = example[0] if isinstance(example[0], list) else example
            names = [node.name for node in session.get_inputs()]
            inputs = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
            return [torch.from_numpy(array) for array in session.run(None, inputs)]

        return check_parity(model, run, size_hw, is_dynamic, tolerance)


def write_program(
    model: ExportedModel,
    path: Path,
    size_hw: tuple[int, int],
    is_dynamic: bool,
    about: dict[str, str],
    tolerance: float,
) -> float:
    """Write the model as a program of torch.export, `about` in its extra file about.json. As write_onnx."""
    program = trace(model, size_hw, is_dynamic)
    with aside(path) as written, quiet(), written.open("w+b") as file:
        torch.export.save(program, file, extra_files={"about.json": json.dumps(about)})
        file.seek(0)
        run = torch.export.load(file).module()
        return check_parity(model, lambda example: run(*example), size_hw, is_dynamic, tolerance)


def write_safetensors(segmenter: Segmenter, path: Path) -> None:
    """Write adapter and head (and a backbone that was trained) as a file that Segmenter.load and --init-head take."""
    state = portable_state(segmenter)
    with aside(path) as written:
        written.write_bytes(head_file_bytes(state))
        assert read_checkpoint(written)["checksum"] == state["checksum"]


def portable_state(segmenter: Segmenter) -> dict[str, Any]:
    """A checkpoint without the state of a training, and without paths of the machine that it was trained on."""
    backbone, arguments = segmenter.backbone, segmenter.arguments
    about = {
        "spec": vars(segmenter.spec),
        "class_names": segmenter.class_names,
        "task": segmenter.task,
        "labels": segmenter.labels,
        "seed": arguments.get("seed", 0),
        "backbone": {
            "name": backbone.name,
            "weights": portable_weights(arguments.get("weights", "auto")),
            "fingerprint": backbone.fingerprint,
            "is_trained": backbone.is_trained,
            "mean": backbone.mean,
            "std": backbone.std,
        },
        "data": {"frame": segmenter.frame},
        "arguments": portable_arguments(arguments),
        "progress": {"step": 0, "epoch": 0, "samples": 0, "validation_due": False},
    }
    trained = dict(sorted(segmenter.trainable_state().items()))
    state = sealed(json.loads(json.dumps(about)))
    content = {**{key: value for key, value in state.items() if key != "checksum"}, "model": trained}
    return {**content, "checksum": checksum(content)}


def portable_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Those that mean the same on another machine."""
    kept = {name: value for name, value in arguments.items() if name not in LOCAL}
    return kept | ({"weights": portable_weights(kept["weights"])} if "weights" in kept else {})


def portable_weights(weights: str) -> str:
    """The value of --weights where it is a hub name or "random"; "auto" in the place of a local path or a link."""
    is_elsewhere = weights == "random" or (hub_name(weights) and not Path(weights).expanduser().exists())
    return weights if is_elsewhere else "auto"


def import_runtime() -> Any:
    """onnxruntime. Raises UserError where it, or what PyTorch needs to write ONNX, is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"--format onnx: {error.name} is not installed: pip install {ONNX_PACKAGES}") from None
    return onnxruntime


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A file of that name in a folder beside it, which takes the place of `path` where nothing is raised."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written ({error.strerror})") from error
    with folder:
        yield Path(folder.name) / path.name
        for file in sorted(Path(folder.name).iterdir(), key=lambda file: file.name == path.name):  # FILE.data first
            file.replace(path.with_name(file.name))


@contextmanager
def quiet() -> Iterator[None]:
    """While it lasts the exporters' notes to their own authors are not shown."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx", "torch.export")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
