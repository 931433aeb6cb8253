"""Where samples come from: mask pairs, COCO instances, COCO panoptic segments."""
