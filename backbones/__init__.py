"""Frozen backbones: image -> Features. Only a run that unfreezes one trains it; the only folder that imports timm."""
