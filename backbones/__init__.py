"""Frozen backbones: image -> Features. Nothing here is trained; the only folder that imports timm."""
