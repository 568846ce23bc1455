"""Models: ViT, hybrids and BiT ResNets as Flax modules, by name in `registry`."""
