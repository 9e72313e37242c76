"""What the numbers of a run say, as words, tables and a page."""
