"""Where weights come from: what `--weights auto|PATH|URL|HUB-NAME` means.

The local cache first, then the network, and a quick answer where there is none."""

import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock

from backbones.names import BACKBONES
from backbones.weight_files import WEIGHT_FILES, is_complete
from errors import UserError

HEAD_TIMEOUT_S = 4.0
"""For each try to connect; a name server that hangs is not covered by it."""
ANSWER_TIMEOUT_S = 6.0
"""After this time the hub counts as unreachable, whatever hangs."""


class WeightsUnavailable(UserError):
    """The hub gave no weights: no network, a gated repository, or a name that it does not have."""


def fetch(repo: str) -> Path:
    """The local folder that holds the weights of the hub repository `repo` ("owner/name").

    Honours HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE and HF_TOKEN. A model in the cache is used without asking the network.
    Raises WeightsUnavailable within ten seconds where the hub cannot be reached.
    """
    cached = _cached_folder(repo)
    if cached is not None:
        return cached
    reason = _why_unreachable(repo)
    if reason is None:
        folder, reason = _download(repo)
        if folder is not None:
            return folder
    raise WeightsUnavailable(f"No weights from the hub: {repo} is not in the local cache, and {reason}.")


def is_url(word: str) -> bool:
    return word.startswith(("https://", "http://"))


def download(url: str) -> Path:
    """The local copy of the file that a link names, in the folder of torch.hub; downloaded once, with a progress bar.

    Where the file's name ends in the start of its SHA-256, as Meta's do, the content is checked. The link may be a
    secret (Meta's carry a signature): it is never written anywhere. Raises WeightsUnavailable.
    """
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    if not name:
        raise WeightsUnavailable("--weights: the link names no file; copy it whole, and keep the quotes around it.")
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    stated = re.search(r"-([0-9a-f]{8})$", path.stem)
    with FileLock(f"{path}.lock"):  # other processes of this run want it too
        if not path.is_file():
            try:
                torch.hub.download_url_to_file(url, str(path), hash_prefix=stated[1] if stated else None)
            except urllib.error.HTTPError as error:
                expired = ": Meta's links expire, ask for a new one" if error.code in (401, 403, 410) else ""
                raise WeightsUnavailable(
                    f"--weights {name}: the server says {error.code} {error.reason}{expired}."
                ) from None
            except (OSError, RuntimeError) as error:  # RuntimeError: the sum is another one
                raise WeightsUnavailable(f"--weights {name} could not be downloaded ({error}).") from None
    return path


def _cached_folder(repo: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for name in WEIGHT_FILES:
        found = try_to_load_from_cache(repo, name)
        if isinstance(found, str) and is_complete(Path(found)):
            return Path(found).parent
    return None


def _why_unreachable(repo: str) -> str | None:
    """None if the hub answers at all, whatever it says: a refusal is explained by the download itself."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids downloading"
    url = f"{constants.ENDPOINT}/{repo}/resolve/main/config.json"
    outcome: list[str | None] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=HEAD_TIMEOUT_S).close()
            outcome.append(None)
        except urllib.error.HTTPError:
            outcome.append(None)
        except (OSError, ValueError) as error:
            outcome.append(str(error))

    # A thread, since looking up a name can hang for longer than any timeout of the socket.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_TIMEOUT_S)
    problem = outcome[0] if outcome else f"no answer in {ANSWER_TIMEOUT_S:.0f} s"
    return None if problem is None else f"{constants.ENDPOINT} cannot be reached ({problem})"


def _download(repo: str) -> tuple[Path | None, str]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    wanted = ["config.json", "preprocessor_config.json", "model-*-of-*.safetensors", *WEIGHT_FILES]
    try:
        folder = Path(snapshot_download(repo, allow_patterns=wanted))
    except GatedRepoError:
        return (
            None,
            f"it is gated: accept its licence at https://huggingface.co/{repo}, then `hf auth login` or set HF_TOKEN",
        )
    except RepositoryNotFoundError:
        return None, "the hub has no such repository (for a private one `hf auth login`, or set HF_TOKEN)"
    except Exception as error:  # what the hub's client raises differs between its versions
        return None, f"downloading it failed ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    if any(is_complete(folder / name) for name in WEIGHT_FILES):
        return folder, ""
    return None, f"the repository holds none of {', '.join(WEIGHT_FILES)}"


_FILE_ENDINGS = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".pkl")


def hub_name(word: str) -> str | None:
    """The repository "owner/name" that a word means which is no local path; None where it cannot be one."""
    repo = re.sub(r"^hf[-_]hub:", "", word)
    is_name = re.fullmatch(r"[\w.-]+/[\w.-]+", repo) and not repo.startswith(".") and not repo.endswith(_FILE_ENDINGS)
    return repo if is_name else None


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
    repo = hub_name(weights)
    if repo:
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
