"""Findings about what masks hold: values that are no class, colours, classes that never occur, unlabelled pixels."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from data.check.file_findings import image_findings
from data.check.finding import VALUES_SHOWN, CheckedSample, Finding, counted, values_text
from data.labels import NUM_IDS, LabelRule
from structures import IGNORE_INDEX

MOST_COLORS = 255
PASTED_COLORS = 40
GREY_MODES = ("1", "L")


def value_findings(samples: Sequence[CheckedSample], labels: LabelRule) -> Iterator[Finding]:
    yield from _foreground_ignored(samples, labels)
    yield from _unknown_values(samples, labels)
    yield from _unknown_colors(samples)
    yield from _colors_without_palette(samples)
    yield from _many_values(samples)


def _foreground_ignored(samples: Sequence[CheckedSample], labels: LabelRule) -> Iterator[Finding]:
    values = _value_pixels(samples)
    if labels.label_map or labels.palette:
        return
    if set(values) == {0, IGNORE_INDEX} and labels.ignore_index == IGNORE_INDEX:
        share = values[IGNORE_INDEX] / values.total()
        yield Finding(
            "error",
            "foreground-ignored",
            f"All masks hold 0 and 255 only, and 255 means unlabelled: the foreground, {share:.1%} of all pixels, "
            "would count for nothing.",
            f"Write this into a file and pass it as --label-map FILE.json: {_binary_map(IGNORE_INDEX)}",
        )


def _unknown_values(samples: Sequence[CheckedSample], labels: LabelRule) -> Iterator[Finding]:
    wrong = _by_mask(s for s in samples if s.strange and not s.mask.is_color)
    if not wrong:
        return
    strange: Counter[int] = Counter()
    for sample in wrong:
        strange.update(sample.strange)
    yield Finding(
        "error",
        "unknown-values",
        f"{counted(len(wrong), 'mask')} {'holds' if len(wrong) == 1 else 'hold'} values that are neither a class nor "
        f"unlabelled: {values_text(strange, are_colors=False)}; {_allowed(labels)}.",
        _remedy_for_values(sorted(strange), _value_pixels(samples), labels),
        [f"{s.pair.mask}: {values_text(s.strange, are_colors=False)}" for s in wrong],
        per_sample=True,
    )


def _remedy_for_values(strange: list[int], used: Counter[int], labels: LabelRule) -> str:
    """strange: the values that are no class; used: the pixels of all values in all masks."""
    if labels.label_map:
        return 'Name them in the file of --label-map, in a class or under "ignore", or write "ignore": "rest" there.'
    if len(used) == 2 and used.keys() == {0, *strange} and strange[0] > 1:
        return f"Write this into a file and pass it as --label-map FILE.json: {_binary_map(strange[0])}"
    if strange[0] < 0 or strange[-1] >= NUM_IDS:
        return f"Save the masks with ids from 0 to {NUM_IDS - 1}."
    largest = max(value for value in used if value != labels.ignore_index)
    count = largest + 1 - labels.reduce_zero_label
    ways = []
    if count <= IGNORE_INDEX:
        if not labels.reduce_zero_label and (strange == [labels.num_classes] or 0 not in used):
            why = "if 0 marks unlabelled pixels" if 0 in used else "for 0 never occurs: ids seem to count from one"
            ways.append(f"pass --reduce-zero-label --num-classes {largest}, {why}")
        ways.append(f"pass --num-classes {count} if these are classes")
    if len(strange) == 1 and labels.ignore_index not in used:
        way = f"pass --ignore-index {strange[0]} if it marks unlabelled pixels"
        ways.insert(0 if strange[0] - 1 not in used else len(ways), way)  # a class seldom lies far from the others
    ways.append("say with --label-map FILE.json which class each value is")
    text = "; or ".join(ways)
    return f"{text[0].upper()}{text[1:]}."


def _unknown_colors(samples: Sequence[CheckedSample]) -> Iterator[Finding]:
    wrong = _by_mask(s for s in samples if s.strange and s.mask.is_color)
    if not wrong:
        return
    strange: Counter[int] = Counter()
    for sample in wrong:
        strange.update(sample.strange)
    remedy = (
        'Add them to the file of --palette (and, with --label-map, to a class or to "ignore"); where they are blends '
        "at the edges of things, save the masks without smoothing (anti-aliasing)."
    )
    if all(sample.mask.mode in GREY_MODES for sample in wrong):
        remedy = "These masks are grey and seem to hold class ids: leave --palette out."
    yield Finding(
        "error",
        "unknown-colors",
        f"{counted(len(wrong), 'mask')} {'holds' if len(wrong) == 1 else 'hold'} colours that are not in the "
        f"palette: {values_text(strange, are_colors=True)}.",
        remedy,
        [f"{s.pair.mask}: {values_text(s.strange, are_colors=True)}" for s in wrong],
        per_sample=True,
    )


def _colors_without_palette(samples: Sequence[CheckedSample]) -> Iterator[Finding]:
    colored = _by_mask(s for s in samples if s.unexplained_colors)
    if not colored:
        return
    colors: Counter[int] = Counter()
    for sample in _by_mask(samples):
        if sample.mask.is_color:
            colors.update(sample.mask.counts)
        elif sample.mask.mode in ("RGB", "RGBA"):  # a mask of the same kind, where all colours happen to be grey
            colors.update({value * 0x010101: pixels for value, pixels in sample.mask.counts.items()})
    lines = [
        f"{color >> 16} {color >> 8 & 255} {color & 255} class_{k}"
        for k, (color, _) in enumerate(colors.most_common(PASTED_COLORS))
    ]
    more = [f"# and {len(colors) - PASTED_COLORS:,} more colours"] if len(colors) > PASTED_COLORS else []
    remedy = "Pass --palette FILE, with a line for each colour and the name of its class:\n" + "\n".join(lines + more)
    if len(colors) > MOST_COLORS:
        remedy += "\nSo many colours are no classes: save the masks without smoothing (anti-aliasing)."
    yield Finding(
        "error",
        "color-masks",
        f"{counted(len(colored), 'mask')} {'holds' if len(colored) == 1 else 'hold'} colours instead of class ids, "
        "and there is no palette that says which class each colour is.",
        remedy,
        [f"{s.pair.mask}: {counted(s.mask.num_values, 'colour')}" for s in colored],
        per_sample=True,
    )


def _many_values(samples: Sequence[CheckedSample]) -> Iterator[Finding]:
    many = _by_mask(s for s in samples if s.mask.num_values > len(s.mask.counts) and not s.mask.is_color)
    if many:
        yield Finding(
            "warning",
            "many-values",
            f"{counted(len(many), 'mask')} {'holds' if len(many) == 1 else 'hold'} very many different values, of "
            "which only the most frequent were checked.",
            "Look whether they are masks of classes, and not of single objects or of depth.",
            [f"{s.pair.mask}: {s.mask.num_values:,} values" for s in many],
        )


def _by_mask(samples: Iterable[CheckedSample]) -> list[CheckedSample]:
    """One sample a mask: a file may be in the training and in the validation set."""
    return list({sample.pair.mask: sample for sample in samples}.values())


def _value_pixels(samples: Sequence[CheckedSample]) -> Counter[int]:
    """Pixels of every stored id, over all masks that hold ids."""
    pixels: Counter[int] = Counter()
    for sample in _by_mask(samples):
        if not sample.mask.is_color:
            pixels.update(sample.mask.counts)
    return pixels


def _allowed(labels: LabelRule) -> str:
    if labels.label_map:
        ids = sorted({value for ids in labels.label_map for value in ids} | {labels.ignore_index, *labels.dropped})
        more = f" and {len(ids) - 2 * VALUES_SHOWN} more" if len(ids) > 2 * VALUES_SHOWN else ""
        return f"the label map names {', '.join(map(str, ids[: 2 * VALUES_SHOWN]))}{more}"
    first, last = labels.stored_value(0), labels.stored_value(labels.num_classes - 1)
    unlabelled = f"{'0 and ' if labels.reduce_zero_label else ''}{labels.ignore_index}"
    return f"--num-classes {labels.num_classes} allows {first} to {last}, and {unlabelled} for unlabelled pixels"


def _binary_map(foreground: int) -> str:
    return json.dumps({"classes": {"background": 0, "foreground": foreground}})


CLASSES_SHOWN = 8
MOSTLY = 0.5
RARE = 0.01


def set_findings(
    train: Sequence[CheckedSample],
    val: Sequence[CheckedSample],
    labels: LabelRule,
    class_names: Sequence[str],
    test: Sequence[CheckedSample] = (),
) -> Iterator[Finding]:
    yield from _nothing_labelled(train, [*val, *test])
    yield from _missing_classes(train, val, labels, class_names)
    yield from image_findings(*([(s.pair.image, s.image) for s in samples] for samples in (train, val, test)))
    yield from _rare_classes(train, class_names)
    yield from _mixed_modes([*train, *val, *test])
    yield from _mostly_ignored(train)


def _nothing_labelled(train: Sequence[CheckedSample], val: Sequence[CheckedSample]) -> Iterator[Finding]:
    usable = [sample for sample in train if sample.usable]
    if usable and not any(sample.class_pixels for sample in usable):
        yield Finding(
            "error",
            "nothing-labelled",
            "No pixel of the training set carries a label: there is nothing to learn.",
            "Look at the masks, and at what --ignore-index, --reduce-zero-label and --label-map make of their values.",
        )
    else:
        usable += [sample for sample in val if sample.usable]
        empty = list(dict.fromkeys(str(sample.pair.mask) for sample in usable if not sample.class_pixels))
        if empty:
            yield Finding(
                "warning",
                "unlabelled-pictures",
                f"{counted(len(empty), 'mask')} {'has' if len(empty) == 1 else 'have'} no labelled pixel.",
                "Leave them out, or label them: they cost time and teach nothing.",
                empty,
            )


def _missing_classes(
    train: Sequence[CheckedSample], val: Sequence[CheckedSample], labels: LabelRule, class_names: Sequence[str]
) -> Iterator[Finding]:
    in_train, in_val = ({k for s in samples if s.usable for k in s.class_pixels} for samples in (train, val))
    missing = [k for k in range(len(class_names)) if k not in in_train]
    plain = not labels.label_map and not labels.palette
    if not in_train:
        return  # a finding of its own
    if missing == [0] and plain and len(class_names) > 2 and 0 not in in_val:
        first = labels.stored_value(0)
        yield Finding(
            "warning",
            "ids-from-one",
            f"Class 0 ({class_names[0]}), stored as {first}, never occurs, and all others do: ids may count from one.",
            f"Pass --reduce-zero-label --num-classes {len(class_names) - 1} if they do."
            if not labels.reduce_zero_label
            else "Look whether the classes are stored from 1 on, as --reduce-zero-label says.",
        )
    elif missing:
        remedy = "Look whether the masks are right; a class without examples cannot be learned."
        if plain and missing[0] > 1 and missing == list(range(missing[0], len(class_names))):
            remedy = f"Pass --num-classes {missing[0]} if there are no more classes."
        yield class_finding("class-missing-train", "training", missing, class_names, remedy)
    only_train = [k for k in sorted(in_train) if k not in in_val]
    if only_train and in_val:
        remedy = "Validate on more images: nothing can be said of how well these classes are found."
        yield class_finding("class-missing-val", "validation", only_train, class_names, remedy)


def _rare_classes(train: Sequence[CheckedSample], class_names: Sequence[str]) -> Iterator[Finding]:
    pixels: Counter[int] = Counter()
    for sample in train:
        if sample.usable:
            pixels.update(sample.class_pixels)
    yield from rare_classes([pixels[k] for k in range(len(class_names))], class_names)


def rare_classes(class_pixels: Sequence[int], class_names: Sequence[str]) -> Iterator[Finding]:
    """class_pixels: of each class in the training set."""
    total = sum(class_pixels)
    rare = [k for k, pixels in enumerate(class_pixels) if 0 < pixels < RARE * total]
    if rare:
        more = f" and {len(rare) - CLASSES_SHOWN} more" if len(rare) > CLASSES_SHOWN else ""
        shown = ", ".join(f"{class_names[k]} ({class_pixels[k] / total:.2%})" for k in rare[:CLASSES_SHOWN])
        yield Finding(
            "note",
            "rare-classes",
            f"{counted(len(rare), 'class', 'classes')} {'has' if len(rare) == 1 else 'have'} less than {RARE:.0%} "
            f"of the labelled pixels of the training set: {shown}{more}.",
            "If they matter, try --class-weights auto, --loss focal, --loss lovasz or --ohem with UPerNet and the "
            "linear head; mask heads need none of them.",
        )


def class_finding(code: str, split: str, missing: list[int], class_names: Sequence[str], remedy: str) -> Finding:
    """missing: the classes that never occur in that split, "training" or "validation"."""
    names = [class_names[k] for k in missing]
    more = f" and {len(names) - CLASSES_SHOWN} more" if len(names) > CLASSES_SHOWN else ""
    what = f"{len(names)} of {len(class_names)} classes never occur" if len(names) > 1 else "1 class never occurs"
    shown = f"{', '.join(names[:CLASSES_SHOWN])}{more}"
    return Finding("warning", code, f"{what} in the {split} set: {shown}.", remedy)


def _mixed_modes(samples: Sequence[CheckedSample]) -> Iterator[Finding]:
    mode_of = {sample.pair.mask: sample.mask.mode for sample in samples if not sample.mask.failure}
    modes = Counter(mode_of.values())
    if len(modes) > 1:
        usual = modes.most_common(1)[0][0]
        yield Finding(
            "note",
            "mixed-mask-modes",
            f"Masks are stored in {len(modes)} ways: {', '.join(f'{n} as {mode}' for mode, n in modes.most_common())}.",
            "Look whether their values mean the same.",
            [f"{path}: {mode}" for path, mode in mode_of.items() if mode != usual],
        )


def _mostly_ignored(train: Sequence[CheckedSample]) -> Iterator[Finding]:
    usable = [sample for sample in train if sample.usable]
    ignored = sum(sample.ignored for sample in usable)
    labelled = sum(sum(sample.class_pixels.values()) for sample in usable)
    if labelled and ignored > MOSTLY * (ignored + labelled):
        yield Finding(
            "note",
            "mostly-ignored",
            f"{ignored / (ignored + labelled):.1%} of the pixels of the training set carry no label.",
            "Look whether that is meant; unlabelled pixels count in no loss and no metric.",
        )
