"""Findings about the sets as a whole: classes that never occur, pictures that occur twice, pixels without a label."""

from collections import Counter
from collections.abc import Iterator, Sequence

from data.checks.finding import CheckedSample, Finding, counted
from data.checks.picture_findings import picture_findings
from data.labels import LabelRule

CLASSES_SHOWN = 8
MOSTLY = 0.5


def set_findings(
    train: Sequence[CheckedSample], val: Sequence[CheckedSample], labels: LabelRule, class_names: Sequence[str]
) -> Iterator[Finding]:
    yield from _nothing_labelled(train, val)
    yield from _missing_classes(train, val, labels, class_names)
    yield from picture_findings(*([(s.pair.image, s.image) for s in samples] for samples in (train, val)))
    yield from _mixed_modes([*train, *val])
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
        remedy = "Validate on more pictures: nothing can be said of how well these classes are found."
        yield class_finding("class-missing-val", "validation", only_train, class_names, remedy)


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
