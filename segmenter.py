"""The model on one page: frozen backbone -> adapter -> head.

What is trained, and what a checkpoint holds, is the adapter and the head; the backbone is only named and fingerprinted.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backbones.frozen import FrozenBackbone, build_backbone
from checkpoint import read_checkpoint
from heads.build import BackboneFacts, HeadSpec, build_adapter, build_head, resolved
from structures import Features, Target


class Segmenter(nn.Module):
    """images (B, 3, H, W), normalised, H and W multiples of 32 -> the head's raw outputs."""

    class_names: list[str]
    labels: dict[str, Any]

    def __init__(self, backbone: FrozenBackbone, spec: HeadSpec):
        super().__init__()
        facts = BackboneFacts(backbone.channels, backbone.strides)
        self.spec = resolved(spec, facts)
        self.backbone = backbone
        self.adapter = build_adapter(spec, facts)
        self.head = build_head(spec, self.adapter.out_channels)

    def forward(self, images: Tensor, features: Features | None = None) -> Any:
        """features: the backbone's output for these images, where it is already known."""
        features = features or self.backbone(images)
        pyramid = self.adapter(images, features)
        return self.head(pyramid)

    def loss(self, outputs: Any, targets: list[Target]) -> dict[str, Tensor]:
        return self.head.loss(outputs, targets)

    @torch.no_grad()
    def predict(self, images: Tensor, size_hw: tuple[int, int]) -> Tensor:
        """Class scores (B, classes, H, W) at size_hw, float32."""
        return self.head.semantic(self(images), size_hw)

    def trainable_state(self) -> dict[str, Tensor]:
        """Tensors of adapter and head, with buffers; none of the backbone's."""
        return {name: t for name, t in self.state_dict().items() if not name.startswith("backbone.")}

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Strict: every tensor of adapter and head, and no other. Raises ValueError that names what differs."""
        wanted = self.trainable_state()
        missing, unexpected = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
        changed = [n for n in wanted.keys() & state.keys() if wanted[n].shape != state[n].shape]
        if missing or unexpected or changed:
            raise ValueError(
                "these weights do not fit adapter and head: "
                f"{len(missing)} missing (first: {missing[:2]}), {len(unexpected)} unknown (first: {unexpected[:2]}), "
                f"{len(changed)} of another shape (first: {sorted(changed)[:2]}). "
                "Build the model with the options that the weights were made with (run.json beside them)."
            )
        self.load_state_dict(state, strict=False)

    @classmethod
    def load(cls, checkpoint: str | Path, weights: str | None = None) -> "Segmenter":
        """The model of a checkpoint, in eval mode. weights: where the backbone's are now, if they moved.

        It knows its class_names, and in labels what mask values meant (data.labels.LabelRule.from_dict reads it).
        """
        state = read_checkpoint(checkpoint)
        backbone = build_backbone(state["backbone"]["name"], weights or state["backbone"]["weights"])
        if backbone.fingerprint != state["backbone"]["fingerprint"]:
            raise ValueError(
                f"{checkpoint} was trained on other weights of {backbone.name} than {backbone.weights}: "
                "pass the file that it was trained on."
            )
        segmenter = cls(backbone, HeadSpec(**state["spec"]))
        segmenter.load_trainable_state(state["model"])
        segmenter.class_names, segmenter.labels = state["class_names"], state["labels"]
        return segmenter.eval()
