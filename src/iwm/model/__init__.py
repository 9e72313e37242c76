"""Views in, loss out; and what is used afterwards."""
