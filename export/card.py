"""A folder for the hub: the head's weights, the record of its run, its curves, and a card that says what it is."""

import io
import json
from pathlib import Path
from typing import Any

from backbones.names import BACKBONES
from backbones.timm_models import licence_of
from checkpoint import find_checkpoint, open_checkpoint, write_atomically, write_json
from errors import UserError, one_line
from export.files import portable_arguments, write_safetensors
from head_file import HEAD_FILE
from heads.options import HEADS
from segmenter import Segmenter

CARD_FILE, CURVES_FILE, RUN_FILE = "README.md", "curves.png", "run.json"
FILES = (HEAD_FILE, RUN_FILE, CURVES_FILE, CARD_FILE)
"""What is uploaded, whatever else lies in the folder."""


def write_folder(segmenter: Segmenter, folder: Path, repo: str, data: str, licence: str | None) -> list[Path]:
    """Write the model as a folder that `demo/predict.py -m`, `demo/evaluate.py -m` and --init-head take, and return its
    files.

    repo: its name on the hub. data: what it was trained on, for people. licence: of the head, an id of the hub such as
    "apache-2.0", None = the card names none. Raises UserError where the folder cannot be written.
    """
    lines, values = validation_of(Path(segmenter.path))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output-dir {folder}: cannot be made ({error.strerror})") from error
    write_safetensors(segmenter, folder / HEAD_FILE)
    write_json(folder / RUN_FILE, record_of(segmenter, values))
    written = [folder / HEAD_FILE, folder / RUN_FILE]
    curves = draw_curves(lines)
    if curves:
        write_atomically(folder / CURVES_FILE, lambda file: file.write(curves))
        written.append(folder / CURVES_FILE)
    text = card(segmenter, repo, data, licence, values, has_curves=curves is not None)
    write_atomically(folder / CARD_FILE, lambda file: file.write(text.encode()))
    return [*written, folder / CARD_FILE]


def validation_of(path: Path) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The lines of the metrics.jsonl of a checkpoint's run, and the numbers of the validation of this checkpoint.

    Both are empty where there is no such file beside it: of a released head, or one that was moved.
    """
    path = find_checkpoint(path)
    if path.suffix != ".pth" or not path.is_file():
        return [], {}
    prefix = path.name.partition("checkpoint_")[0]
    found = [folder / f"{prefix}metrics.jsonl" for folder in (path.parent, path.parent.parent)]
    metrics = next((file for file in found if file.is_file()), None)
    if metrics is None:
        return [], {}
    try:
        lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
        step = open_checkpoint(path)["progress"]["step"]
        of_this = [line for line in lines if line["split"] == "val" and line["step"] == step]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{metrics}: is not as a run writes it ({error}); move it away to do without it") from error
    return lines, numbers(of_this[-1]) if of_this else {}


def numbers(line: dict[str, Any]) -> dict[str, float]:
    """The metrics of a line of metrics.jsonl, without those per class."""
    return {k: v for k, v in line.items() if isinstance(v, float) and k not in ("lr", "images_per_s", "data_wait")}


def record_of(segmenter: Segmenter, values: dict[str, float]) -> dict[str, Any]:
    """What run.json says that holds on other machines too, and the validation of this checkpoint."""
    backbone = segmenter.backbone
    return {
        "spec": vars(segmenter.spec),
        "class_names": segmenter.class_names,
        "task": segmenter.task,
        "labels": segmenter.labels,
        "backbone": {
            "name": backbone.name,
            "fingerprint": backbone.fingerprint,
            "licence": licence_of(backbone.name, backbone.weights),
            "mean": backbone.mean,
            "std": backbone.std,
        },
        "arguments": portable_arguments(segmenter.arguments),
        "validation": values,
    }


def draw_curves(lines: list[dict[str, Any]]) -> bytes | None:
    """A PNG of the loss of training and of what validation measured, by steps; None without lines."""
    from matplotlib.figure import Figure

    train = [line for line in lines if line["split"] == "train" and "loss" in line]
    val = [line for line in lines if line["split"] == "val"]
    if not train and not val:
        return None
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    losses, metrics = figure.subplots(1, 2)
    losses.plot([x["step"] for x in train], [x["loss"] for x in train], label="training")
    losses.plot([x["step"] for x in val], [x.get("loss") for x in val], "o-", label="validation")
    for name in (name for name in (numbers(val[-1]) if val else {}) if name != "loss"):
        metrics.plot([x["step"] for x in val], [x.get(name) for x in val], "o-", label=name)
    for axes, title in ((losses, "loss"), (metrics, "validation")):
        axes.set(title=title, xlabel="step")
        if axes.lines:
            axes.legend(fontsize="small")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


def card(
    segmenter: Segmenter, repo: str, data: str, licence: str | None, values: dict[str, float], has_curves: bool
) -> str:
    """The card: YAML for the hub, then Markdown. Texts from outside stand in JSON's quotes, which YAML reads alike."""
    backbone, spec = segmenter.backbone, segmenter.spec
    title = f"{HEADS[spec.head].title} on {backbone.name}"
    front = ["pipeline_tag: image-segmentation", "library_name: pytorch", "tags:", "- dinov3-segmentation-head"]
    if licence:
        front.append(f"license: {json.dumps(licence)}")
    if backbone.name in BACKBONES:
        front.append(f"base_model: {BACKBONES[backbone.name].gated_hub}")
    if values:
        front += ["model-index:", f"- name: {json.dumps(repo)}", "  results:", "  - task:"]
        front += ["      type: image-segmentation", "    dataset:", f"      name: {json.dumps(data)}"]
        front += [f"      type: {json.dumps(data)}", "    metrics:"]
        front += [f"    - type: {name}\n      value: {value:.6g}" for name, value in values.items()]
    names = ", ".join(one_line(name).replace("|", "\\|") for name in segmenter.class_names)
    kept = "holds the backbone too, which was trained" if backbone.is_kept else "holds no backbone"
    rows = [
        ("head", f"{HEADS[spec.head].title}, adapter {spec.adapter}, width {spec.hidden_dim}"),
        ("task", segmenter.task),
        ("trained on", one_line(data).replace("|", "\\|")),
        ("classes", f"{len(segmenter.class_names)}: {names}"),
        ("image size", f"{segmenter.arguments['image_size']} pixels"),
        ("backbone", f"{backbone.name}, fingerprint `{backbone.fingerprint}`"),
        ("backbone's licence", licence_of(backbone.name, backbone.weights)),
    ]
    results = [f"| {name} | {value:.4f} |" for name, value in values.items()]
    parts = [
        "---\n" + "\n".join(front) + "\n---",
        f"# {title}",
        f"A segmentation head; `{HEAD_FILE}` {kept}.",
        "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows),
        "## Validation",
        "| metric | value |\n|---|---|\n" + "\n".join(results) if results else "Nothing is known of it.",
        f"![Curves of the training]({CURVES_FILE})" if has_curves else "",
        "## How to use",
        "In a clone of the program that trained it, with the weights of the backbone, whose licence holds for them:",
        f"```bash\npython demo/predict.py -m {repo} --weights PATH -d photos -od results\n```",
        f'```python\npredictor = torch.hub.load("CLONE", "segmenter", checkpoint="{repo}", source="local")\n```',
        f"`{RUN_FILE}` has all settings.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
