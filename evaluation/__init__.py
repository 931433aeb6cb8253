"""Metrics, whole and sliding-window inference, images."""
