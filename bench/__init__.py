"""Speeds and sizes of Lamella beside other programs on this machine: `python -m bench`, described in docs/bench.md."""
