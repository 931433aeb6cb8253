"""Exports of labelling tools and public data sets, as they are: recognized, and turned into pairs or COCO sets."""
