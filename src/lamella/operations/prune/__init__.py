"""`lamella prune` and `lamella delete`."""
