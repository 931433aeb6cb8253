"""What an evaluation found of each image, in files from which it resumes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from checkpoint import append_line, write_atomically
from errors import note

RESULTS_FILE = "results.jsonl"
FORMAT = 1
"""Of RESULTS_FILE; raised when what stands in it gets another meaning."""

Lines = list[dict[str, Any]]


class ResultFiles:
    """A line per image: in RESULTS_FILE of a folder, and while several processes evaluate, in a file of each other one.

    The first line of a file is the identity of the evaluation: what results must have in common to be put together.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder, self.rank = folder, rank
        self.common = folder / RESULTS_FILE
        self.own = self.common if rank == 0 else folder / f"results.{rank}.jsonl"

    @property
    def of_others(self) -> list[Path]:
        return sorted(self.folder.glob("results.*.jsonl"))

    def merge(self, identity: dict[str, Any], is_kept: Callable[[str], bool]) -> None:
        """In the first process: writes the common file again, of all files that have this identity, without a last
        line that was cut off and lines of images that are not kept, and removes the others."""
        found: Lines = []
        for path in (self.common, *self.of_others):
            first, *rest = finished_lines(path) or [None]
            if first == identity:
                found += rest
            elif first:
                note(f"{path} is of another model, data set or protocol: starting over")
        lines = {line["sample_id"]: line for line in found if is_kept(line["sample_id"])}
        text = "".join(json.dumps(line) + "\n" for line in (identity, *lines.values()))
        write_atomically(self.common, lambda file: file.write(text.encode()))
        for path in self.of_others:
            path.unlink()

    def remove(self) -> None:
        for path in (self.common, *self.of_others):
            path.unlink(missing_ok=True)

    def start(self, identity: dict[str, Any]) -> None:
        """Begins the file of another process than the first."""
        if self.rank:
            append_line(self.own, json.dumps(identity))

    def add(self, sample_id: str, state: dict[str, Any]) -> None:
        append_line(self.own, json.dumps({"sample_id": sample_id, "state": state}))

    def states(self) -> dict[str, dict[str, Any]]:
        """Of each image in the common file: what was found, as plain values."""
        return {line["sample_id"]: line["state"] for line in finished_lines(self.common)[1:]}


def finished_lines(path: Path) -> Lines:
    """The lines of a file of results; not one that was cut off, nor what follows it."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_bytes().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not isinstance(line, dict):
            break
        lines.append(line)
    return lines
