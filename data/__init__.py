"""From files to batches: pairing, reading, class ids, augmentation, and the drawn demo set."""
