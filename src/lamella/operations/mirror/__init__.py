"""`lamella mirror`."""
