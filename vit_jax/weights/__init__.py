"""Pretrained weights: find, read, adapt and write them in the formats of other projects."""
