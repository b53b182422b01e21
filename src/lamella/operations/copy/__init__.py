"""`lamella copy`."""
