"""Foreign names and files <-> our parameters."""
