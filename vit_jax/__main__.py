"""`python -m vit_jax`, the same as `python -m vit_jax.main`."""

from vit_jax.main import main

if __name__ == "__main__":
    main()
