"""Data sets, image decoding, preprocessing, augmentation and batches of numpy arrays."""
