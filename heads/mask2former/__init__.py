"""The Mask2Former head (Cheng et al. 2022)."""
