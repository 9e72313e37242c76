"""What a model is trained to do: each objective owns its targets and its loss."""
