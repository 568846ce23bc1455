"""Scores of a model on a whole split."""
