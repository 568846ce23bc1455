"""Training objectives: losses, and the scores of evaluated examples."""
