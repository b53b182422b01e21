"""The text a person finds in a repository, and the emergency reader that lies beside it (FORMAT 12)."""

from __future__ import annotations

from importlib.resources import files

from lamella.base.trust import Clear

_TEXT = """\
This is a Lamella backup repository: encrypted, deduplicated backups of disk volumes.

Nothing here is readable without the passphrase, recovery key or key file of its owner. Do not change, rename or delete
anything: every object is checked against its name and its keys.

To restore without Lamella installed you need restore.py and Python 3 with OpenSSL and, for most repositories, libzstd.
Do not run restore.py in this place: whoever can write here could have planted files beside it. Copy it to an empty
directory, compare the copy's SHA-256 with the one on your recovery sheet, and run

    python3 -I -S COPY --repo THIS-DIRECTORY list
    python3 -I -S COPY --repo THIS-DIRECTORY restore VOLUME --to FILE

The format is described byte by byte in docs/FORMAT.md of the Lamella sources.
"""


def readme_text() -> Clear:
    """The content of readme.txt."""
    return Clear(_TEXT.encode("utf-8"))


def rescue_source() -> Clear:
    """The content of restore.py: the emergency reader of this version."""
    return Clear(files("lamella").joinpath("rescue.py").read_bytes())
