"""Metrics, whole and sliding-window inference, pictures."""
