"""The command `prepare`: image folders or tar files to ArrayRecord data sets."""
