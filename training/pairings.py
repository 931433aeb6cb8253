"""From arguments to the pairs of pictures and masks to train and to validate on. Imports no torch."""

import argparse
from dataclasses import replace

from data.pairs import Pairing, match_files, split_pairs


def find_pairings(args: argparse.Namespace) -> tuple[Pairing, Pairing | None]:
    """(train, val); val is None without --validate. Held-out pictures are taken out of the training data."""
    train = match_files(args.image_paths, args.mask_paths)
    if not args.validate:
        return train, None
    if args.val_image_paths is not None:
        flags = ("--val-image-paths", "--val-mask-paths")
        return train, match_files(args.val_image_paths, args.val_mask_paths, *flags)
    pairs, held_out = split_pairs(train.pairs, args.val_fraction, args.seed)
    return replace(train, pairs=pairs), Pairing(held_out, [], [], train.how)
