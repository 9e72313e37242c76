"""A source of images, opened and decoded: batches of crops."""
