"""`python -m lamella` is the command `lamella`."""

from __future__ import annotations

from lamella.cli.main import entry

if __name__ == "__main__":
    entry()
