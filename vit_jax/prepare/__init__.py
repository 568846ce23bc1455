"""Conversion of class folders and tar files to ArrayRecord data sets."""
