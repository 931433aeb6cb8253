"""The rule that makes the weights and inputs of the golden values from names alone, so that no weights are stored.

The reference outputs in tests/golden/ were made by Meta's published DINOv3 code (float32, CPU, eval) with tensors
filled by this rule.
"""

import zlib

import numpy as np


def standard_normal(name: str, shape: tuple[int, ...] | list[int]) -> np.ndarray:
    """The float32 input called `name`."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)


def fill(key: str, shape: tuple[int, ...] | list[int]) -> np.ndarray:
    """The float32 weight called `key` in Meta's checkpoint: scaled so that activations stay near unit size."""
    noise = standard_normal(key, shape)
    if len(shape) >= 2:
        return noise / np.sqrt(np.float32(np.prod(shape[1:])))
    if key.endswith("running_var"):
        return 1 + 0.1 * np.abs(noise)
    if key.endswith(("weight", "gamma")):
        return 1 + 0.1 * noise
    return 0.1 * noise


def fill_pmt(key: str, shape: tuple[int, ...] | list[int]) -> np.ndarray:
    """The float32 weight called `key` in a file of PMT: its layer scales and scalers are filled as weights."""
    if key.endswith(".lambda1") or ".scalers." in key:
        return 1 + 0.1 * standard_normal(key, shape)
    return fill(key, shape)
