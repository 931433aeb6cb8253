"""Where weights come from: what `--weights auto|PATH|URL|HUB-NAME` means."""

import re
from pathlib import Path
from typing import NamedTuple

from backbones.hub import WeightsUnavailable, download, fetch, is_url
from backbones.names import BACKBONES
from errors import UserError

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_FILE_ENDINGS = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".pkl")


class Source(NamedTuple):
    """path: a local file or folder; label: for people; title: the name that may tell of satellite weights."""

    path: Path
    label: str
    title: str


def find_weights(weights: str, backbone: str, hub_repo: str | None) -> Source:
    """Finds the local file or folder, after downloading it if needed.

    hub_repo: where "auto" looks. Raises UserError for a path that does not exist, and hub.WeightsUnavailable.
    """
    if weights == "auto":
        if hub_repo is None:
            raise WeightsUnavailable(f"The hub has no weights for --backbone {backbone}. {_ways_out(backbone)}")
        return _from_hub(hub_repo, backbone)
    path = download(weights) if is_url(weights) else Path(weights).expanduser()
    if path.exists():
        return Source(path, str(path), path.absolute().name)
    repo = re.sub(r"^hf[-_]hub:", "", weights)
    if _HUB_NAME.fullmatch(repo) and not repo.startswith(".") and not repo.endswith(_FILE_ENDINGS):
        return _from_hub(repo, backbone)
    raise UserError(
        f"--weights {weights}: there is no such file or folder. Expected: a local path, a link (https://...), a "
        "hub name (owner/model), auto, or random."
    )


def _from_hub(repo: str, backbone: str) -> Source:
    try:
        return Source(fetch(repo), f"hub {repo}", repo)
    except WeightsUnavailable as error:
        raise WeightsUnavailable(f"{error} {_ways_out(backbone)}") from None


def _ways_out(backbone: str) -> str:
    gated = f" such as {BACKBONES[backbone].gated_hub}" if backbone in BACKBONES else ""
    return (
        "Ways out: a local file or folder (--weights PATH: Meta's .pth, a Hugging Face folder, a .safetensors); the "
        f"link that Meta sends by e-mail (--weights 'https://...'); `hf auth login`, or a token in HF_TOKEN, for gated "
        f"hub names{gated}; or --weights random, to try things out without "
        "trained weights."
    )
