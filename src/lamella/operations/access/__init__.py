"""Using a snapshot where it lies: its bytes at any offset, without restoring the volume."""
