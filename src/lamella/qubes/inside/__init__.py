"""A disposable qube whose kernel mounts what a snapshot holds (decision 0084)."""
