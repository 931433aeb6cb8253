"""Weight files on disk: reading them safely, checking them, and the mean and std that come with them."""

import hashlib
import json
import math
import re
import reprlib
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from backbones.names import SATELLITE, SATELLITE_MEAN, SATELLITE_STD
from backbones.numpy_pickle import read_array_pickle
from errors import UserError

SHARD_INDEX = "model.safetensors.index.json"
WEIGHT_FILES = ("model.safetensors", SHARD_INDEX, "pytorch_model.bin")
"""What a Hugging Face folder holds its weights in, best first."""

_WRAPPERS = ("model", "state_dict", "teacher")
OWN_PREFIX = "backbone.model."
"""Of a backbone in a checkpoint of ours."""
_PREFIXES = ("module.", "teacher.", OWN_PREFIX, "backbone.")


def is_complete(path: Path) -> bool:
    """Whether the file is there, and, if it lists shards, each shard too."""
    if path.name != SHARD_INDEX:
        return path.is_file()
    return path.is_file() and all(shard.is_file() for shard in _shards(path))


def read_state(path: Path) -> dict[str, Tensor]:
    """Every tensor of a weight file or a Hugging Face folder under its own name, on the CPU, in float32 (or integer).

    Wrapping dicts ("model", "state_dict", "teacher") and prefixes ("module.", "teacher.", "backbone.") are taken off.
    Raises UserError with one message if the path is missing, holds no weights, is truncated or altered (when its name
    ends in the start of its SHA-256, as Meta's do), or holds Python objects: those are refused, nothing of them runs.
    """
    return float_state(backbone_state(read_tensors(path)))


def backbone_state(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What read_tensors gave, without prefixes."""
    return dict(_without_prefixes(tensors))


def float_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors in float32, or integer."""
    return {key: t.float() if t.is_floating_point() else t for key, t in state.items()}


def read_tensors(path: Path, flag: str = "--weights", is_mapped: bool = False) -> dict[str, Tensor]:
    """Every tensor of a file or folder under its full name, on the CPU, as it was stored; wrapping dicts are taken off.

    flag: the one that named the path, for messages. is_mapped: map a .pth into memory where its format allows, so that
    its tensors take none until they are used; they must be copied before the file changes. Raises UserError as
    read_state does.
    """
    file = _weight_file(path, flag)
    if file.name == SHARD_INDEX:
        content = {key: t for shard in _shards(file, flag) for key, t in _read_file(shard, flag, is_mapped).items()}
    else:
        _check_sha256(file, flag)
        content = _read_file(file, flag, is_mapped)
    state = _unwrap(content)
    if not state:
        raise UserError(f"{flag} {path}: the file holds no named tensors, so it is no weight file.")
    return state


def read_normalisation(path: Path, title: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The mean and std (of RGB in 0..1) that belong to the weights, or None where the files say nothing.

    A preprocessor_config.json beside the weights counts most, then the name of satellite weights in `title`,
    then the config.json of timm's repositories.
    """
    folder = path if path.is_dir() else path.parent
    preprocessor = _read_json(folder / "preprocessor_config.json")
    if "image_mean" in preprocessor and "image_std" in preprocessor:
        return _colors(preprocessor, "image_mean", "image_std", folder / "preprocessor_config.json")
    if SATELLITE in title:
        return SATELLITE_MEAN, SATELLITE_STD
    timm_config = _read_json(folder / "config.json").get("pretrained_cfg")
    if isinstance(timm_config, dict) and "mean" in timm_config and "std" in timm_config:
        return _colors(timm_config, "mean", "std", folder / "config.json")
    return None


def _colors(fields: dict, mean: str, std: str, path: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Two entries of three numbers; those of std are positive."""
    for name in (mean, std):
        value = fields[name]
        is_rgb = isinstance(value, list) and len(value) == 3 and all(type(v) in (int, float) for v in value)
        if not (is_rgb and all(math.isfinite(v) and (v > 0 or name == mean) for v in value)):
            raise UserError(f"--weights: {path}: {name} is {reprlib.repr(value)}, expected three numbers.")
    return tuple(map(float, fields[mean])), tuple(map(float, fields[std]))


def _weight_file(path: Path, flag: str) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{flag} {path}: there is no such file or folder.")
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            return path / name
    raise UserError(f"{flag} {path}: the folder holds none of {', '.join(WEIGHT_FILES)}; name the file itself.")


def _shards(index: Path, flag: str = "--weights") -> list[Path]:
    """The files that an index names, which lie beside it: a downloaded index may not point elsewhere."""
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise UserError(f"{flag}: {index} has no 'weight_map' from tensors to files; download it again.")
    names = sorted(set(weight_map.values()))
    strange = [name for name in names if name in ("", ".", "..") or Path(name).name != name or "\\" in name]
    if strange:
        raise UserError(f"{flag}: {index} names {strange[0]!r}, which is no file beside it; download it again.")
    return [index.parent / name for name in names]


def _read_json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"--weights: {path} is not valid JSON ({error}); download it again.") from None
    return content if isinstance(content, dict) else {}


def _read_file(file: Path, flag: str, is_mapped: bool) -> object:
    if file.suffix == ".pkl":
        return read_array_pickle(file, flag)
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        # The format before torch 1.6 is no archive, and cannot be mapped.
        return torch.load(file, map_location="cpu", weights_only=True, mmap=is_mapped and zipfile.is_zipfile(file))
    except Exception as error:  # a damaged file can break the readers in any way
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if file.suffix != ".safetensors" and not _is_pickled(file):
            reason = "it is no file of torch.save"
        raise UserError(
            f"{flag} {file} cannot be read as weights: it is missing, truncated, of another kind, or holds Python "
            f"objects, which are refused because loading them could run code. Download it again. ({reason})"
        ) from None


def _is_pickled(file: Path) -> bool:
    """Whether it begins as the archives and pickles of torch.save do."""
    with file.open("rb") as stream:
        return stream.read(2) in (b"PK", b"\x80\x02")


def _check_sha256(file: Path, flag: str) -> None:
    stated = re.search(r"-([0-9a-f]{8})$", file.stem)
    if stated is None:
        return
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if not found.startswith(stated[1]):
        raise UserError(
            f"{flag} {file} is truncated or altered: its name says that its SHA-256 starts with {stated[1]}, but it "
            f"starts with {found[:8]}. Download it again (or rename it, if {stated[1]} is no checksum)."
        )


def _unwrap(content: object) -> dict[str, Tensor]:
    while isinstance(content, dict):
        inner = next((content[name] for name in _WRAPPERS if isinstance(content.get(name), dict)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, dict):
        return {}
    return {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        state = inside or state
    return state
