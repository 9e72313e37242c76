"""What changes between source and target."""
