"""Features -> Pyramid, trainable."""
