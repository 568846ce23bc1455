"""Estimates of memory, FLOPs, communication and time of a run."""
