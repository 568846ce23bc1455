"""The paper's tables beside what this code computes or finds."""
