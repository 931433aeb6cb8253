"""What of an image's bands and values becomes the RGB of 8 bits that a backbone takes.

C H W are the number of bands and the size.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from data.opening import Unusable

PERCENTILE = "percentile"
PERCENTILES = (2, 98)
"""Of one image's values: what --value-range percentile takes for 0 and 255."""


@dataclass(frozen=True)
class ImageRule:
    """How stored bands and values become RGB.

    bands: the three that become red, green and blue, counted from 1; empty = grey or RGB as stored, without alpha.
    value_range: the values that become 0 and 255, PERCENTILE = those of each image (PERCENTILES over all bands used),
    None = the whole range of 8 or 16 bits.
    """

    bands: tuple[int, ...] = ()
    value_range: tuple[float, float] | str | None = None

    def chosen(self, values: np.ndarray, has_alpha: bool) -> np.ndarray:
        """(C, H, W) -> (1 or 3, H, W), the bands that are used. Raises Unusable where that is not known."""
        count = len(values)
        if self.bands:
            if max(self.bands) > count:
                named = ",".join(map(str, self.bands))
                raise Unusable(f"has {count} band{'s' * (count > 1)}, but --bands {named} names band {max(self.bands)}")
            return values[[band - 1 for band in self.bands]]
        colors = count - has_alpha
        if colors not in (1, 3):
            raise Unusable(f"has {count} bands, of which three can be used: say which with --bands, such as 1,2,3")
        return values[:colors]

    def as_rgb(self, values: np.ndarray) -> np.ndarray:
        """(1 or 3, H, W) of any kind of number -> (3, H, W) uint8. Raises Unusable where the range is not known."""
        if self.value_range is not None:
            eight = self._scaled(values)
        elif values.dtype == np.uint8:
            eight = values
        elif values.dtype == np.uint16:
            # 65535 / 257 = 255. Of colours PIL takes the upper 8 bits, and models were trained on these.
            eight = (np.rint(values / 257) if len(values) == 1 else values >> 8).astype(np.uint8)
        else:
            raise Unusable(
                f"holds {values.dtype} values, whose range is not known: say with --value-range LOW HIGH which values "
                "become 0 and 255, or pass --value-range percentile"
            )
        return np.repeat(eight, 3, axis=0) if len(eight) == 1 else np.array(eight, order="C")  # PIL's is read-only

    def _scaled(self, values: np.ndarray) -> np.ndarray:
        low, high = percentiles(values) if self.value_range == PERCENTILE else self.value_range
        scaled = np.empty(values.shape, np.uint8)
        for band, target in zip(values, scaled, strict=True):  # one at a time: floats need four times the memory
            share = (band.astype(np.float64) - low) * (255 / (high - low))
            target[:] = np.rint(np.nan_to_num(share, nan=0, posinf=255, neginf=0).clip(0, 255))
        return scaled

    def key(self) -> str:
        """Differs where rules do, for what is remembered of a file; empty without a rule."""
        return "" if self == PLAIN else f"bands {list(self.bands)} range {self.value_range}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as the arguments of a run have them; `from_dict` gives an equal rule back."""
        value_range = list(self.value_range) if isinstance(self.value_range, tuple) else self.value_range
        return {"bands": list(self.bands) or None, "value_range": value_range}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "ImageRule":
        """fields: of as_dict, or all arguments of a run; older ones have neither field."""
        bands, value_range = fields.get("bands"), fields.get("value_range")
        return cls(tuple(bands or ()), value_range if value_range in (None, PERCENTILE) else tuple(value_range))


PLAIN = ImageRule()


def percentiles(values: np.ndarray) -> tuple[float, float]:
    """The PERCENTILES of all finite values, the lower one less than the upper one."""
    finite = values[np.isfinite(values)]
    low, high = map(float, np.percentile(finite, PERCENTILES)) if finite.size else (0.0, 1.0)
    return (low, high) if low < high else (low, low + 1)
