"""`lamella verify`."""
