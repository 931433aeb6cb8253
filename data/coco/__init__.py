"""Data sets in COCO's format: read, checked, drawn, and as training samples. Instances and panoptic segments."""
