"""The recovery sheet: what a person needs when everything but the repository is lost (FORMAT 12)."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path

from lamella.base.clock import iso, now_ms
from lamella.base.errors import LamellaError
from lamella.cli.new_files import exists, write_file
from lamella.cli.output import Output
from lamella.cli.shown import shown
from lamella.cli.terminal import shows_secrets


@dataclass(frozen=True, slots=True)
class SheetFacts:
    """The content of the sheet. Before the repository is made, only its place and the key are known."""

    recovery_key: str
    place: str
    admin: bool
    repo_id: str = ""
    fingerprint: str = ""
    rescue_sha256: str = ""


def sheet_text(facts: SheetFacts) -> str:
    """The sheet, ready to print: lines of at most 78 columns, unless the place is long, on one page."""
    head = f"""\
LAMELLA RECOVERY SHEET                                {iso(now_ms())}

Keep this sheet on paper or offline, away from the machine and from the
repository. Whoever has the recovery key can read every backup in the
repository{" and authorise deletion" if facts.admin else ""}.

Recovery key: 14 groups; the last letter of each checks the group

    {_lines(facts.recovery_key)}
{_square(facts.recovery_key)}
Repository     {shown(facts.place)}
"""
    if not facts.repo_id:
        return head
    before, command = _copied(facts.place)
    return f"""{head}Repository id  {facts.repo_id}
Fingerprint    {facts.fingerprint}; every backup prints the new one
restore.py     has this SHA-256:
    {facts.rescue_sha256}

With Lamella: write the recovery key into a file KEY, then

    REPO={shown(shlex.quote(facts.place.removeprefix("file:")))}
    lamella -r "$REPO" --recovery-key-file KEY list
    lamella -r "$REPO" --recovery-key-file KEY restore VOLUME --to FILE

Without Lamella: Python 3 is enough. {before}Never run restore.py inside the
repository: whoever can write there could have put other files beside it.
Copy it, and compare the SHA-256 of the copy with the one above first of all:

{command}    mkdir emergency
    cp "$REPO/restore.py" emergency/copy.py
    sha256sum emergency/copy.py
    python3 -I -S emergency/copy.py --repo "$REPO" \\
        --recovery-key-file KEY list
    python3 -I -S emergency/copy.py --repo "$REPO" \\
        --recovery-key-file KEY restore VOLUME --to FILE

Add --expect with the newest fingerprint you know: it refuses a repository
that was set back to an older state.
"""


def _lines(key: str) -> str:
    """A recovery key in two lines."""
    groups = key.split("-")
    half = len(groups) // 2
    return f"{'-'.join(groups[:half])}-\n    {'-'.join(groups[half:])}"


_COPIERS = {
    "ssh": "scp -r",
    "sftp": "scp -r",
    "rclone": "rclone copy",
    "s3": "any program for S3",
    "qubes": "qvm-copy",
    "qubes-ssh": "scp -r",
}


def _copied(place: str) -> tuple[str, str]:
    """What comes first where the repository is no directory, the only thing that `restore.py` reads: words, command."""
    kind, colon, _ = place.partition("/")[0].partition(":")
    if not colon or kind == "file":
        return "", ""
    with_what = _COPIERS.get(kind, "what can read it")
    return (
        f"It reads directories only:\ncopy the repository into a new DIRECTORY, with {with_what}.\n",
        "    REPO=DIRECTORY\n",
    )


def _square(text: str) -> str:
    """The text as a QR code of half blocks, where python3-qrcode is installed; else nothing."""
    if find_spec("qrcode") is None:
        return ""
    code = import_module("qrcode").QRCode(border=1)
    code.add_data(text)
    rows: list[list[bool]] = code.get_matrix()
    pairs = zip_longest(rows[::2], rows[1::2], fillvalue=[False] * len(rows))
    lines = ("".join(_HALVES[up, down] for up, down in zip(*pair, strict=True)) for pair in pairs)
    return "".join(f"    {line}".rstrip() + "\n" for line in lines)


_HALVES = {(False, False): " ", (True, False): "\u2580", (False, True): "\u2584", (True, True): "\u2588"}


class Sheet:
    """Where a recovery key goes: to a file, or to the terminal. The file exists before the key opens anything."""

    def __init__(self, out: Output, path: Path | None) -> None:
        self._out = out
        self.path = path
        self._stream = "" if path is not None else shows_secrets(as_json=out.as_json)

    @property
    def possible(self) -> bool:
        """Whether there is any place that shows the key to its owner."""
        return self.path is not None or bool(self._stream)

    def require_free(self) -> None:
        """Raises UsageError if the file is there already."""
        if self.path is not None and (self.path.exists() or self.path.is_symlink()):
            raise exists(self.path)

    def reserve(self, facts: SheetFacts) -> None:
        """Write what is known beforehand: a full disk later must not cost the key. Raises UsageError, LamellaError."""
        if self.path is not None:
            write_file(self.path, sheet_text(facts).encode("utf-8"), overwrite=False)

    def discard(self) -> None:
        """Take a reserved sheet back: its key opens nothing."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def complete(self, facts: SheetFacts) -> None:
        """Write the whole sheet, or show it. Raises LamellaError; the key that was written beforehand stays."""
        text = sheet_text(facts)
        if self.path is not None:
            write_file(self.path, text.encode("utf-8"), overwrite=True)
        elif self._stream:
            self._out.clear()
            target = sys.stdout if self._stream == "stdout" else sys.stderr  # a terminal
            target.write(text)
            target.flush()
        else:
            raise LamellaError("there is no place to show the recovery key")
