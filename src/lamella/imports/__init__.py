"""Histories of other tools, which become snapshots (docs/decisions/0092)."""
