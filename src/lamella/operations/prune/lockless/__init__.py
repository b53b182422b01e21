"""Deletion where no lock keeps others out (CONCURRENCY)."""
