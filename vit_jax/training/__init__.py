"""Training: optimizer, train step, loop, logging and sweeps."""
