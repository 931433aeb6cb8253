"""A model, trained here or released, on a data set: its metrics, image by image."""
