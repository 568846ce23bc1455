"""The paper's tables and scaling figures, beside results of finished runs."""
