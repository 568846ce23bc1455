"""Device meshes, shardings and processes on several hosts."""
