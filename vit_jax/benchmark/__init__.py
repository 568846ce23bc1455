"""Timing of training and inference, beside other projects in the same run."""
