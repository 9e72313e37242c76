"""The world model: how good it is, what it imagines, finds and undoes."""
