"""A trained model at work on images: what it finds, and the files that are made of it."""
