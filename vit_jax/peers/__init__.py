"""Other implementations, each run in a process of its own, for the verb `benchmark`."""
