"""What the fuzzers share: values, texts, bytes, pickles and archives of torch.save, altered at random."""

import io
import json
import pickletools
import random
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

Made = tuple[str, bytes]
"""The suffix of a file, and what it holds."""


@dataclass(frozen=True)
class Kind:
    """make: makes a case. readers: each is given its file, and returns a result or raises a UserError; whatever else it
    raises is a defect, also where it checks the result."""

    make: Callable[[random.Random], Made]
    readers: list[Callable[[Path], Any]]


DEEP = {f'"@deep{depth}"': "[" * depth + "]" * depth for depth in (50, *range(940, 1000, 3), 100_000)}
"""Lists in one another; Python goes about a thousand deep, reading as well as writing."""

IN_JSON = {'@twin"': '"', '"@digits"': "9" * 5000, '"@real"': "1e999", **DEEP}
"""What json.dumps would not write, by what stands for it: repeated keys, long numbers, deep lists."""

ODD = [None, True, False, 0, 1, -1, 2**31, -(2**63), 2**64, 10**40, 0.5, -1e308, float("nan"), float("inf"), "", "0"]
ODD += ["\0", "a" * 5000, "\ud800", "\u202e\x1b[2J", "é ü 日", "../x", "/", "12", "NaN", [], {}, [[]], [None], {"": 0}]
ODD += [[1, 2], [0.5] * 6, [1e300] * 8, [-7, 3, 900, 3, 9, 9], [2**32] * 3, [[1, 1, 5, 1, float("nan"), 5]]]
ODD += [
    {"size": [8, 9], "counts": "0l1O0"},
    {"size": [8, 9], "counts": [10, 2, -2, 62]},
    "@digits",
    "@real",
    "@deep100000",
]
WORDS = [
    "9" * 5000,
    "-1",
    "256",
    "#",
    "#fff",
    ":",
    ",",
    "\0",
    "\ufeff",
    "٣",
    "1e5",
    "NaN",
    "\r",
    "\u2028",
    '"',
    "[",
    "{",
]
NUMBERS = [b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0\0\0", b"\0\0\1\0", b"\xff\xff"]

INSTRUCTIONS = (
    b"cos\nsystem\n",
    b"cnumpy\ndtype\n",
    b"(",
    b"0",
    b"1",
    b"2",
    b"R",
    b"b",
    b"t",
    b"a",
    b"e",
    b"s",
    b"u",
    b"}",
    b"]",
)
INSTRUCTIONS += (
    b")",
    b"N",
    b"J\xff\xff\xff\x7f",
    b"K\0",
    b"h\0",
    b"q\0",
    b"X\4\0\0\0size",
    b"Qjunk",
    b"\x81",
    b"\x93",
    b".",
)
INSTRUCTIONS += (
    b"B\xff\xff\xff\x7f",
    b"\x8e" + b"\xff" * 7 + b"\x7f",
    b"I" + b"9" * 5000 + b"\n",
    b"L9999999999999L\n",
)
"""Of pickles."""


def copied(value: Any) -> Any:
    """New dictionaries and lists of the same values: a deep copy of some tensors is not what they were."""
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value


def mutated_tree(rng: random.Random, root: Any, odd: list[Any] = ODD) -> Any:
    """A copy in which some values are odd ones, gone, there twice, wrapped, or in one another's places."""
    root = copied(root)
    for _ in range(rng.choice((1, 1, 2, 4))):
        places, waiting = [], [root]
        while waiting:
            value = waiting.pop()
            keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
            places += [(value, key) for key in keys]
            waiting += [value[key] for key in keys]
        if not places:
            return rng.choice(odd)
        (holder, key), (other, other_key) = rng.choice(places), rng.choice(places)
        match rng.randrange(9):
            case 0:
                del holder[key]
            case 1:
                holder[key] = copied(other[other_key])
            case 2 if isinstance(holder, dict):
                holder[f"{key}@twin"] = copied(rng.choice((holder[key], rng.choice(odd))))
            case 2:
                holder.append(copied(holder[key]))
            case 3:
                holder[key] = rng.choice([*DEEP]).strip('"')
            case 4 if isinstance(holder, dict):
                holder[str(rng.choice(ODD))] = holder.pop(key)
            case _:
                holder[key] = copied(rng.choice(odd))
    return root


def as_json(tree: Any) -> bytes:
    text = json.dumps(tree)
    for name, raw in IN_JSON.items():
        text = text.replace(name, raw)
    return text.encode()


def mutated_bytes(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """other: a file of which parts are put in."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at = rng.randrange(len(content) + 1)
        at = rng.randrange(min(64, len(content)) + 1) if rng.random() < 0.4 else at  # headers
        length = min(rng.choice((1, 2, 4, 16, 300)), len(content))
        match rng.randrange(8):
            case 0:
                content[at : at + 1] = bytes([rng.randrange(256)])
            case 1 | 2 if at < len(content):
                content[at] ^= 1 << rng.randrange(8)
            case 3:
                del content[at : len(content) if rng.random() < 0.3 else at + length]
            case 4:
                content[at:at] = content[at : at + length]
            case 5:
                start = rng.randrange(len(other) + 1)
                content[at : at + rng.choice((0, length))] = other[start : start + length]
            case 6:
                content[at:at] = rng.randbytes(length)
            case _:
                number = rng.choice(NUMBERS)
                content[at : at + len(number)] = number
    return bytes(content)


def mutated_text(rng: random.Random, data: bytes) -> bytes:
    """Some numbers and words of a text replaced."""
    parts = re.split(r"([\w.]+)", data.decode())
    for _ in range(rng.choice((1, 2, 4))):
        parts[rng.randrange(len(parts))] = rng.choice(WORDS)
    return "".join(parts).encode()


def mutated_pickle(rng: random.Random, data: bytes) -> bytes:
    """Some instructions gone, there twice, in another place or with another argument."""
    starts = [position for _, _, position in pickletools.genops(data)]
    pieces = [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, start = rng.randrange(len(pieces)), rng.randrange(len(pieces))
        match rng.randrange(5):
            case 0 if len(pieces) > 1:
                del pieces[at]
            case 1:
                pieces[at:at] = pieces[start : start + rng.choice((1, 3, 20))]
            case 2:
                pieces[at], pieces[start] = pieces[start], pieces[at]
            case 3:
                pieces[at] = pieces[at][:1] + rng.randbytes(max(len(pieces[at]) - 1, 0))
            case _:
                pieces.insert(at, rng.choice((*INSTRUCTIONS, bytes([rng.randrange(256)]))))
    return b"".join(pieces)


def mutated_archive(rng: random.Random, data: bytes) -> bytes:
    """A file of torch.save in which one entry is mutated, whole as an archive: its checksums are right."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        entries = {entry.filename: old.read(entry) for entry in old.infolist()}
        chosen = rng.choice([*entries, *(name for name in entries if name.endswith("data.pkl"))])
        is_pickle = chosen.endswith(".pkl") and rng.random() < 0.7
        content = entries[chosen]
        entries[chosen] = mutated_pickle(rng, content) if is_pickle else mutated_bytes(rng, content, content)
        for name, content in entries.items():
            new.writestr(zipfile.ZipInfo(name), content)  # whose date is always the same
    return made.getvalue()


def altered(rng: random.Random, seeds: list[Made], *more: Callable[[random.Random, bytes], bytes]) -> Made:
    """One of the files with some of its bytes altered, or as one of `more` does."""
    suffix, content = rng.choice(seeds)
    mutate = rng.choice((*more, partial(mutated_bytes, other=rng.choice(seeds)[1])))
    return suffix, mutate(rng, content)


def json_file(rng: random.Random, trees: list[Any]) -> Made:
    tree = rng.choice(trees)
    text = as_json(tree if rng.random() < 0.2 else mutated_tree(rng, tree))
    return ".json", mutated_bytes(rng, text, as_json(rng.choice(trees))) if rng.random() < 0.25 else text
