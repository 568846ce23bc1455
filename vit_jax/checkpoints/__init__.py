"""Checkpoints, workdirs and signal handling."""
