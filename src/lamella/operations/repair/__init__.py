"""`lamella repair`."""
