"""What the page is configured with: models, images and runs that it may show, and where it listens. Imports no torch.

What is named here, and what a person drops into the page, is all that the page reads.
"""

import argparse
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from errors import UserError
from evaluation.options import PRECISION
from flags import add_flags, check_ranges, flag, parse

Words = tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True)
class ShownFlags:
    """What the page shows."""

    model_path: Words = flag(
        None, "or -m: checkpoints, runs' folders or released heads, beside each other", count="+", metavar="PATH"
    )
    weights: str | None = flag(None, "of the backbone (None = where the runs found them)")
    precision: str = flag("auto", PRECISION, choices=("auto", "fp32", "bf16"))
    image_paths: Words = flag(
        None, "images to choose from, beside those that are dropped: quoted globs, folders", count="+", metavar="GLOB"
    )
    runs: Words = flag(None, "folders of runs, or of several, whose curves are shown", count="+", metavar="DIR")
    max_megapixels: float | None = flag(
        None, "larger images are refused (None = the run's)", kind=float, low=0.001, metavar="MEGAPIXELS"
    )


@dataclass(frozen=True, kw_only=True)
class AddressFlags:
    """Where the page is."""

    host: str = flag("127.0.0.1", "address to listen on; 0.0.0.0 opens the page to the network", metavar="ADDRESS")
    port: int = flag(7860, "0 = one that is free", low=0, high=65535)


@dataclass(frozen=True, kw_only=True)
class AppConfig(AddressFlags, ShownFlags):
    """A page."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.model_path and not self.runs:
            raise UserError("--model-path or --runs is required: there is nothing to show")
        if self.image_paths and not self.model_path:
            raise UserError("--image-paths needs --model-path, which predicts them")

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the page."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def parse_app_arguments(argv: Sequence[str]) -> AppConfig:
    """The checked configuration that a command line makes. Exits with code 2 on a mistake, as argparse does."""
    parser = argparse.ArgumentParser(
        description="Open a local page: models on images that are dropped into it, and the curves of runs.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    for title, part in (("what is shown", ShownFlags), ("address", AddressFlags)):
        add_flags(parser.add_argument_group(title), part)
    short = {"-m": "--model-path"}
    return parse(AppConfig, parser, [short.get(word, word) for word in argv])
