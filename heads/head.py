"""The base of all heads: what a trainer asks of each, whichever it is."""

from torch import nn


class Head(nn.Module):
    """A subclass has `forward`, `normalizers`, `loss` and `semantic`, see heads/masks/head.py and heads/pixel_head.py.

    decays_all: whether weight decay is for norms, biases and learned codes too.
    """

    decays_all = False

    def set_progress(self, share: float) -> None:
        """Called before the first step and after each one. share: of the run's steps that are done, in [0, 1].

        For what a head changes in the course of a run. It depends on `share` alone, so that a resumed run is exact.
        """
