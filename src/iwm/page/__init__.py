"""The interactive page: a world model asked from a browser, on this machine alone and without a network."""
