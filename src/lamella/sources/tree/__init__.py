"""The `files` driver: a tree of files as a volume of its own making (docs/TREES.md, docs/decisions/0076)."""

from typing import Final

DOCUMENT: Final = "tree.json"
"""The document that says that a volume is a tree, and what is missing in it."""
