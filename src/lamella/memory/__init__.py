"""This host's memory between runs, in its state directory."""
