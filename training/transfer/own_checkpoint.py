"""Heads of our own checkpoints; a backbone in them comes along."""

from pathlib import Path

from checkpoint import read_checkpoint
from data.class_names import is_made_up
from training.transfer.released import ReleasedHead


def from_own_checkpoint(path: Path) -> ReleasedHead:
    """Raises UserError where the file is broken, or none of ours."""
    content = read_checkpoint(path)
    spec, about = content["spec"], content["backbone"]
    options = {"hidden_dim": spec["hidden_dim"], **spec["options"]}
    sizes = [name for name in ("hidden_dim", "m2f_size", "num_queries") if name in options]
    flags = [f"--{name.replace('_', '-')} {options[name]}" for name in sizes]
    if options.get("use_all_maps"):
        flags.append("--use-all-maps")
    brings_backbone = any(name.startswith("backbone.") for name in content["model"])
    return ReleasedHead(
        str(path),
        "checkpoint of this program",
        spec["head"],
        {name: t for name, t in content["model"].items() if not name.startswith("backbone.")},
        flags=" ".join([*flags, f"--adapter {spec['adapter']}"]),
        class_names=None if all(map(is_made_up, content["class_names"])) else content["class_names"],
        adapter=spec["adapter"],
        backbone=about["name"],
        brings_backbone=brings_backbone,
        fingerprint=None if brings_backbone else about["fingerprint"],
        normalisation=(about["mean"], about["std"]) if brings_backbone else None,
    )
