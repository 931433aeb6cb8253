"""From the values stored in a mask file to class ids. No torch, so that the dataset check starts at once."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data.label_files import read_class_names, read_label_map, read_palette
from errors import UserError
from structures import IGNORE_INDEX

VALUES_SHOWN = 8
CLASSES_SHOWN = 12

STRANGE = -1
"""In `LabelRule.table`: a stored id that is neither a class nor unlabelled."""

NUM_IDS = 65536
"""Stored ids run from 0 to 65535, what a 16-bit mask can hold."""


@dataclass(frozen=True)
class LabelRule:
    """What stored values mean.

    num_classes: class ids run from 0 to num_classes - 1.
    ignore_index: the stored id of unlabelled pixels.
    reduce_zero_label: stored 0 is unlabelled too and the classes are stored as 1 to num_classes, as in ADE20K.
    palette: for masks that hold colours: 0xRRGGBB of each stored id, by position; empty = masks hold ids.
    label_map: for each class the stored ids that become it; empty = the ids are the classes.
    dropped: with a label map, stored ids that become unlabelled.
    drop_rest: with a label map, every id that it does not name becomes unlabelled.
    colors: for visualizations, 0xRRGGBB of each class, where masks hold ids and the data set has colours; may be empty.
    """

    num_classes: int
    ignore_index: int = IGNORE_INDEX
    reduce_zero_label: bool = False
    palette: tuple[int, ...] = ()
    label_map: tuple[tuple[int, ...], ...] = ()
    dropped: tuple[int, ...] = ()
    drop_rest: bool = False
    colors: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.num_classes <= IGNORE_INDEX:
            raise UserError(
                f"--num-classes {self.num_classes}: expected 1 to {IGNORE_INDEX}, "
                f"since {IGNORE_INDEX} marks unlabelled pixels"
            )
        if not 0 <= self.ignore_index < NUM_IDS:
            raise UserError(f"--ignore-index {self.ignore_index}: expected 0 to {NUM_IDS - 1}")
        if self.label_map:
            assert len(self.label_map) == self.num_classes and not self.reduce_zero_label
        else:
            assert not self.dropped and not self.drop_rest
            assert not self.palette or len(self.palette) == self.num_classes + self.reduce_zero_label
        assert len(self.colors) in (0, self.num_classes)

    @cached_property
    def table(self) -> np.ndarray:
        """(65536,) int16: the class id of each stored id, or IGNORE_INDEX, or STRANGE.

        An id that the label map gives to a class is that class even where it is the ignore_index.
        """
        table = np.full(NUM_IDS, IGNORE_INDEX if self.drop_rest else STRANGE, np.int16)
        if self.label_map:
            table[[self.ignore_index, *self.dropped]] = IGNORE_INDEX
            for class_id, ids in enumerate(self.label_map):
                table[list(ids)] = class_id
        else:
            first = int(self.reduce_zero_label)
            table[first : first + self.num_classes] = np.arange(self.num_classes)
            table[:first] = IGNORE_INDEX
            table[self.ignore_index] = IGNORE_INDEX
        table.flags.writeable = False  # it is shared by all who ask
        return table

    def apply(self, ids: np.ndarray, path: Path) -> np.ndarray:
        """Stored ids (H, W), of any integer type -> class ids (H, W) uint8 with IGNORE_INDEX.

        Raises UserError, naming the file `path` and the ids, where an id is neither a class nor unlabelled.
        """
        if ids.dtype == np.uint8 and not self._has_strange_byte(ids):
            classes = bytearray(ids.tobytes().translate(self.table[:256].astype(np.uint8).tobytes()))
            return np.frombuffer(classes, np.uint8).reshape(ids.shape)
        classes = self.table.take(ids, mode="clip")
        strange = (classes == STRANGE) | (ids < 0) | (ids >= NUM_IDS)
        if strange.any():
            raise UserError(self._strange_message(ids[strange], path))
        return classes.astype(np.uint8)

    def _has_strange_byte(self, ids: np.ndarray) -> bool:
        """Of uint8 ids. Bytes are looked up as bytes, which is several times as fast as by index."""
        return 1 in ids.tobytes().translate((self.table[:256] == STRANGE).tobytes())

    def ids_of_colors(self, colors: np.ndarray, path: Path) -> np.ndarray:
        """Colours (H, W) int32, 0xRRGGBB -> stored ids (H, W), the positions in the palette.

        Raises UserError, naming the file `path` and the colours, where a colour is not in the palette.
        """
        assert self.palette
        by_color = np.argsort(self.palette)
        known = np.array(self.palette, np.int32)[by_color]
        places = np.searchsorted(known, colors).clip(max=len(known) - 1)
        strange = colors[known[places] != colors]
        if strange.size:
            values, counts = np.unique(strange, return_counts=True)
            most = np.argsort(-counts, kind="stable")[:VALUES_SHOWN]
            shown = ", ".join(f"{hex_of(values[k])} ({counts[k]} pixels)" for k in most)
            more = f" and {len(values) - VALUES_SHOWN} more" if len(values) > VALUES_SHOWN else ""
            raise UserError(
                f"{path} holds colours that are not in the palette, {shown}{more}: add them to the file of --palette, "
                "or, where they are blends at the edges of things, save masks without smoothing (anti-aliasing)"
            )
        return by_color[places]

    def stored_value(self, class_id: int) -> int:
        """The id that a mask in the user's own coding holds for a class; of several ids the first.

        With a palette its colour is palette[stored_value(class_id)].
        """
        return self.label_map[class_id][0] if self.label_map else class_id + self.reduce_zero_label

    @property
    def class_palette(self) -> list[int]:
        """0xRRGGBB of each class, of several merged colours the first; empty without a palette or colours."""
        if self.colors or not self.palette:
            return list(self.colors)
        return [self.palette[self.stored_value(k)] for k in range(self.num_classes)]

    def as_dict(self) -> dict[str, Any]:
        """Numbers, booleans and lists only, for JSON files and checkpoints; `from_dict` gives an equal rule back.

        Without colours there is no entry of them, as in runs that are older than these.
        """
        label_map = [list(ids) for ids in self.label_map]
        lists = {"palette": list(self.palette), "label_map": label_map, "dropped": list(self.dropped)}
        fields = asdict(self) | lists
        return fields | {"colors": list(self.colors)} if fields.pop("colors") else fields

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "LabelRule":
        palette, dropped, colors = tuple(fields["palette"]), tuple(fields["dropped"]), tuple(fields.get("colors", ()))
        label_map = tuple(tuple(ids) for ids in fields["label_map"])
        return cls(**fields | {"palette": palette, "label_map": label_map, "dropped": dropped, "colors": colors})

    def describe(self, class_names: Sequence[str]) -> list[str]:
        """How stored values become classes, in a few short lines for people."""
        if not self.palette and not self.label_map:
            first = self.stored_value(0)
            ignored = sorted({self.ignore_index, *range(first)})
            return [f"ids {first} to {first + self.num_classes - 1}, {' and '.join(map(str, ignored))} ignored"]
        sources = self.label_map or tuple((self.stored_value(k),) for k in range(self.num_classes))
        lines = [f"{name} <- {self._shown(ids)}" for name, ids in zip(class_names, sources, strict=True)]
        if len(lines) > CLASSES_SHOWN:
            lines[CLASSES_SHOWN:] = [f"and {len(lines) - CLASSES_SHOWN} more"]
        if self.drop_rest:
            return [*lines, "ignored: everything else"]
        possible = range(len(self.palette) or NUM_IDS)
        ignored = [k for k in np.flatnonzero(self.table == IGNORE_INDEX).tolist() if k in possible]
        return [*lines, f"ignored: {self._shown(ignored)}"] if ignored else lines

    def _shown(self, ids: Sequence[int]) -> str:
        """Ids, or their colours where there is a palette, as far as they fit on a line."""
        words = [hex_of(self.palette[k]) if self.palette else str(k) for k in ids[:VALUES_SHOWN]]
        more = f" and {len(ids) - VALUES_SHOWN} more" if len(ids) > VALUES_SHOWN else ""
        return ", ".join(words) + more

    def _strange_message(self, ids: np.ndarray, path: Path) -> str:
        values = np.unique(ids).tolist()
        shown = ", ".join(map(str, values[:VALUES_SHOWN])) + (", ..." if len(values) > VALUES_SHOWN else "")
        if self.label_map:
            colors = f" ({self._shown(values)})" if self.palette else ""
            return (
                f"{path} holds the ids {shown}{colors}, which --label-map does not name: "
                'add them there to a class or to "ignore", or write "ignore": "rest"'
            )
        first, last = self.stored_value(0), self.stored_value(self.num_classes - 1)
        remedies = []
        if min(values) > last and max(values) - first < IGNORE_INDEX:
            remedies.append(f"raise --num-classes to {max(values) + 1 - first}")
        if values == [last + 1] and not self.reduce_zero_label:
            remedies.append("pass --reduce-zero-label if classes start at 1 and 0 marks unlabelled pixels")
        if len(values) == 1 and 0 <= values[0] < NUM_IDS:
            remedies.append(f"pass --ignore-index {values[0]} if it marks unlabelled pixels")
        return (
            f"{path} holds the ids {shown}, but --num-classes {self.num_classes} allows {first} to {last}, "
            f"and {self.ignore_index} for unlabelled pixels: {', or '.join(remedies) or 'store class ids in the mask'}"
        )


def hex_of(color: int) -> str:
    """0xRRGGBB -> "#rrggbb"."""
    return f"#{color:06x}"


BINARY_MAP = '{"classes": {"background": 0, "foreground": 255}}'

DEFAULT_NUM_CLASSES = 150
"""Of --num-classes: where a palette or a label map decides the number, this one counts as not given."""


def label_options(
    num_classes: int,
    class_names: Sequence[str] | None,
    ignore_index: int,
    reduce_zero_label: bool,
    label_map: str | None,
    palette: str | None,
    colors: Sequence[int] = (),
) -> tuple[LabelRule, list[str]]:
    """The rule of semantic segmentation, and one name a class.

    label_map, palette: files; either one decides the number of classes and their names, the label map before the
    palette. colors: see LabelRule; not used where there are more or fewer classes. Raises UserError where flags
    contradict one another, a file is wrong, or a class could not be learned.
    """
    rule, names, source = _rule_and_names(num_classes, class_names, ignore_index, reduce_zero_label, label_map, palette)
    if rule.num_classes == 1:
        raise UserError(
            f"{source}: one class alone teaches nothing, since every pixel is that class: make the background a class "
            "too. Pass --num-classes 2 for masks of 0 and 1; for masks of 0 and 255 write this into a file and pass it "
            f"as --label-map FILE.json: {BINARY_MAP}"
        )
    first = rule.stored_value(0)
    never = ignore_index - first
    # Class 0 may be ignored on purpose, as PyTorch's losses do it with ignore_index 0; a palette's colours may be, too.
    if not label_map and not palette and 0 <= never < rule.num_classes and ignore_index != 0:
        raise UserError(
            f"--ignore-index {ignore_index} is also what masks hold for class {never} ({names[never]}), which would "
            f"never be trained: pass an id that is no class, such as --ignore-index "
            f"{0 if first else first + rule.num_classes}, or fewer --num-classes"
        )
    return (replace(rule, colors=tuple(colors)) if len(colors) == rule.num_classes else rule), names


def _rule_and_names(
    num_classes: int,
    class_names: Sequence[str] | None,
    ignore_index: int,
    reduce_zero_label: bool,
    label_map: str | None,
    palette: str | None,
) -> tuple[LabelRule, list[str], str]:
    """With the flag that decided the number of classes, for messages."""
    colors = read_palette(palette) if palette else []
    codes = tuple(color for _, color in colors)
    color_names = [name for name, _ in colors]
    if label_map:
        if class_names is not None:
            raise UserError("--class-names and --label-map both name the classes: leave --class-names out")
        if reduce_zero_label:
            raise UserError('--reduce-zero-label and --label-map exclude each other: put 0 under "ignore" in the map')
        found = read_label_map(label_map, color_names if palette else None)
        _check_number(num_classes, len(found.names), f"--label-map {label_map}", "classes")
        rule = LabelRule(
            len(found.names),
            ignore_index,
            palette=codes,
            label_map=found.ids,
            dropped=found.dropped,
            drop_rest=found.drop_rest,
        )
        return rule, found.names, f"--label-map {label_map}"
    if palette:
        names = color_names[int(reduce_zero_label) :]
        if not names:
            raise UserError(f"--palette {palette}: --reduce-zero-label leaves no colour: leave it out")
        _check_number(num_classes, len(names), f"--palette {palette}", "colours of classes")
        num_classes = len(names)
        if class_names is None:
            rule = LabelRule(num_classes, ignore_index, reduce_zero_label, codes)
            return rule, names, f"--palette {palette}"
    rule = LabelRule(num_classes, ignore_index, reduce_zero_label, codes)
    source = f"--palette {palette}" if palette else f"--num-classes {num_classes}"
    return rule, read_class_names(class_names, num_classes), source


def _check_number(given: int, found: int, source: str, things: str) -> None:
    if given not in (DEFAULT_NUM_CLASSES, found):
        raise UserError(f"--num-classes {given}, but {source} has {found} {things}: leave --num-classes out")
