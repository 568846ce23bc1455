"""Checkpoints, workdirs and the signals that end a run."""
