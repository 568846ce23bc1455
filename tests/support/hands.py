"""A clock whose hands a test moves."""


class Hands:
    """Stands in for the module `time`; `now` is a number of seconds."""

    def __init__(self, now: float = 0.0):
        self.now = now

    def perf_counter(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now
