"""A trained model at work on pictures: what it finds, and the files that are made of it."""
