"""Which images to label next, and annotations to start from."""
