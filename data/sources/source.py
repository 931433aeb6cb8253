"""What a data source is: the samples of one split, how one is read, and its target in a view.

A new kind of data is a file beside this with a Source; the data set, the loaders and the trainer take it as it is.
H W are an image's size in pixels, h w that of a view.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import Tensor

from structures import Target


class Content(Protocol):
    """One sample, read. pixels: (3, H, W) uint8 RGB; of a raster something that is cut as a tensor is (RasterPixels),
    and so of a JPEG that its view decodes (JpegPixels).

    is_raster: views are windows at the image's own scale, whatever its size.
    """

    pixels: Tensor
    is_raster: ClassVar[bool]

    def target(self, rows: np.ndarray, columns: np.ndarray) -> Target:
        """Of a view: what is at these h rows and w columns of the image, where -1 (OUTSIDE) lies beyond it.

        Rows and columns ascend or descend, with repeats.
        """

    def eval_target(self, rows: np.ndarray, columns: np.ndarray) -> Target:
        """Of the whole image, resized to these rows and columns; a semantic map at its own size instead."""


class Source(Protocol):
    """One split, a dataclass. samples: each has a `sample_id`, unique in the split, that says nothing of the machine.

    reduces_jpegs: of a JPEG `read` gives JpegPixels, which training views decode no larger than they need.
    """

    samples: Sequence[Any]
    reduces_jpegs: bool

    def read(self, sample: Any) -> Content:
        """Raises UserError, naming the file, where the sample cannot be used."""

    def size_hw(self, sample: Any) -> tuple[int, int]:
        """The image's size in pixels, as `read` gives it."""
