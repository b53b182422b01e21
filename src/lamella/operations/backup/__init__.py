"""`lamella backup`."""
