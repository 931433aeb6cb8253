"""A local page: models on images, and runs while they train. demo/app.py starts it."""
