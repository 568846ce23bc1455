"""Command line: verbs, flags and help texts."""
