"""From the flags that say what labels mean to one rule and the names of its classes."""

from collections.abc import Sequence

from data.class_names import read_class_names
from data.label_map import read_label_map
from data.labels import LabelRule
from data.palette import read_palette
from errors import UserError

DEFAULT_NUM_CLASSES = 150
"""Of --num-classes: where a palette or a label map decides the number, this one counts as not given."""


def label_options(
    num_classes: int,
    class_names: Sequence[str] | None,
    ignore_index: int,
    reduce_zero_label: bool,
    label_map: str | None,
    palette: str | None,
) -> tuple[LabelRule, list[str]]:
    """The rule, and one name a class.

    label_map, palette: files; either one decides the number of classes and their names, the label map before the
    palette. Raises UserError where flags contradict one another or a file is wrong.
    """
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
        return rule, found.names
    if palette:
        names = color_names[int(reduce_zero_label) :]
        if not names:
            raise UserError(f"--palette {palette}: --reduce-zero-label leaves no colour: leave it out")
        _check_number(num_classes, len(names), f"--palette {palette}", "colours of classes")
        num_classes = len(names)
        if class_names is None:
            return LabelRule(num_classes, ignore_index, reduce_zero_label, codes), names
    rule = LabelRule(num_classes, ignore_index, reduce_zero_label, codes)
    return rule, read_class_names(class_names, num_classes)


def _check_number(given: int, found: int, source: str, things: str) -> None:
    if given not in (DEFAULT_NUM_CLASSES, found):
        raise UserError(f"--num-classes {given}, but {source} has {found} {things}: leave --num-classes out")
