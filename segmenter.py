"""The model on one page: frozen backbone -> adapter -> head.

What is trained, and what a checkpoint holds, is the adapter and the head; the backbone is only named and fingerprinted,
unless it was unfrozen: then it is trained and in the checkpoint too, and in those of heads initialized from it.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backbones.frozen import KEPT_AS, FrozenBackbone, build_backbone, build_kept_backbone
from checkpoint import find_checkpoint, read_checkpoint
from errors import UserError
from heads.build import BackboneFacts, HeadSpec, build_adapter, build_head, resolved, takes_layers
from heads.options import HEADS
from structures import Features, LossScope, Target

BACKBONE = "backbone.model."
"""What the names of the backbone's tensors start with."""


def backbone_tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of a trainable_state() that are the backbone's, as build_kept_backbone takes them; often none."""
    return {name.removeprefix(BACKBONE): t for name, t in state.items() if name.startswith(BACKBONE)}


def facts_of(backbone: FrozenBackbone, spec: HeadSpec) -> BackboneFacts:
    """What adapter and head are built with. Has the backbone give the layers and the map that they take."""
    layers = backbone.give_layers(HEADS[spec.head].layers) if takes_layers(spec) else []
    facts = BackboneFacts(backbone.channels, backbone.strides, layers, backbone.has_final_norm)
    if facts.has_final_norm and resolved(spec, facts).adapter == "final_norm":
        backbone.give_final_map()
    return facts


class Segmenter(nn.Module):
    """images (B, 3, H, W), normalised, H and W multiples of 32 -> the head's raw outputs."""

    task: str
    class_names: list[str]
    labels: dict[str, Any]
    arguments: dict[str, Any]
    frame: str = "upright"
    path: str = ""
    """The file that it was loaded from."""

    def __init__(self, backbone: FrozenBackbone, spec: HeadSpec):
        super().__init__()
        facts = facts_of(backbone, spec)
        self.spec = resolved(spec, facts)
        self.backbone = backbone
        self.adapter = build_adapter(spec, facts)
        self.head = build_head(spec, self.adapter.out_channels)

    def forward(self, images: Tensor, features: Features | None = None) -> Any:
        """features: the backbone's output for these images, where it is already known."""
        return self.trained_parts(images, features or self.backbone(images))

    def trained_parts(self, images: Tensor, features: Features) -> Any:
        """Adapter and head. training/compilation.py may put their compiled form in the place of this."""
        return self.head(self.adapter(images, features))

    def loss(self, outputs: Any, targets: list[Target], scope: LossScope | None = None) -> dict[str, Tensor]:
        """scope: of the step that the targets are a part of, None where they are all that count."""
        return self.head.loss(outputs, targets, scope)

    @torch.no_grad()
    def scores(self, images: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """Class scores (B, classes, H, W) at size_hw, float32."""
        return self.head.semantic(self(images), size_hw)

    def trainable_state(self) -> dict[str, Tensor]:
        """Tensors of adapter and head, with buffers; the backbone's only where it is kept (see FrozenBackbone)."""
        trained = {name: t for name, t in self.state_dict().items() if not name.startswith("backbone.")}
        if self.backbone.is_kept:
            trained |= {BACKBONE + name: t for name, t in self.backbone.whole_state().items()}
        return trained

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Strict: every tensor of trainable_state, and no other. Raises UserError that names what differs."""
        wanted = self.trainable_state()
        missing, unexpected = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
        changed = [n for n in wanted.keys() & state.keys() if wanted[n].shape != state[n].shape]
        if missing or unexpected or changed:
            raise UserError(
                "these weights do not fit what is trained here: "
                f"{len(missing)} missing (first: {missing[:2]}), {len(unexpected)} unknown (first: {unexpected[:2]}), "
                f"{len(changed)} of another shape (first: {sorted(changed)[:2]}). "
                "Build the model with the options that the weights were made with (run.json beside them)."
            )
        self.load_state_dict(state, strict=False)

    @classmethod
    def load(
        cls, checkpoint: str | Path, weights: str | None = None, dtype: torch.dtype = torch.float32
    ) -> "Segmenter":
        """The model of a checkpoint, in eval mode. weights: where the backbone's are now, if they moved; one that was
        trained is in the checkpoint. dtype: of the backbone, see build_backbone; unless the run chose one, to whose
        features its head belongs.

        checkpoint: a file, or a folder (see find_checkpoint). The model knows its task, class_names, the arguments of
        its run, and in labels what mask values meant (data.labels.LabelRule.from_dict reads it), or category_ids and
        is_thing of each class of COCO data. frame: "stored" where the annotations were made on images whose EXIF
        orientation was not applied, so that prediction reads them so too; otherwise "upright".
        """
        checkpoint = find_checkpoint(checkpoint)
        state = read_checkpoint(checkpoint)
        about, trained = state["backbone"], state["model"]
        whole = backbone_tensors(trained)
        if whole:
            backbone = build_kept_backbone(whole, about, str(checkpoint))
        else:
            dtype = KEPT_AS.get(state["arguments"].get("backbone_dtype"), dtype)
            backbone = build_backbone(about["name"], weights or about["weights"], dtype)
        if backbone.fingerprint != about["fingerprint"]:
            raise UserError(
                f"{checkpoint} was trained on other weights of {backbone.name} than {backbone.weights}: "
                "pass the file that it was trained on."
            )
        segmenter = cls(backbone, HeadSpec(**state["spec"]))
        segmenter.load_trainable_state(trained)
        segmenter.path = str(checkpoint)
        segmenter.class_names, segmenter.labels = state["class_names"], state["labels"]
        segmenter.task = state.get("task", "semantic")  # older checkpoints do not say it
        segmenter.arguments = state["arguments"]
        segmenter.frame = state["data"].get("frame", "upright")  # older checkpoints do not say it
        return segmenter.eval()
