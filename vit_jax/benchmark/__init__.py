"""Timing of training and inference of vit_jax and of timm."""
