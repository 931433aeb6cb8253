"""The loop, optimizer and schedule, checkpoints, logs and command-line arguments."""
