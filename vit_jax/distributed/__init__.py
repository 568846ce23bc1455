"""Device mesh, sharding rules and communication between processes."""
