"""`lamella restore`."""
