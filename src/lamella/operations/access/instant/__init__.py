"""Instant restore: a volume that is used while it is restored (decision 0051)."""
