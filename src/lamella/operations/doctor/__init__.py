"""`lamella doctor`."""
