"""From the flags that say what labels mean to one rule and the names of its classes."""

from collections.abc import Sequence

from data.class_names import read_class_names
from data.label_map import read_label_map
from data.labels import LabelRule
from data.palette import read_palette
from errors import UserError

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
) -> tuple[LabelRule, list[str]]:
    """The rule of semantic segmentation, and one name a class.

    label_map, palette: files; either one decides the number of classes and their names, the label map before the
    palette. Raises UserError where flags contradict one another, a file is wrong, or a class could not be learned.
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
    return rule, names


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
