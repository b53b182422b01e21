"""The bench of a paranoid restore: a disposable is a directory, and what runs in it a local process.

`qrexec-client` starts what `qubes.VMExec` would start there: the program that dom0 sends along, in a Python of its own.
Xen, a kernel of the disposable's own and the data path of qrexec are not there.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lamella.qubes.paranoid.disposable import NAME
from lamella_kit.fake_qubesd import FakeQubesd
from tests.system.qrexec import Bench, qrexec

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def disposables(monkeypatch: pytest.MonkeyPatch, system: FakeQubesd, program: str | None = None) -> Iterator[Bench]:
    """Disposables have a home as soon as they are started; `program` runs there instead of what dom0 sends along."""
    with qrexec(monkeypatch, dom0=True) as bench:

        def started(method: str, dest: str) -> None:
            if not dest.startswith(NAME):
                return
            home = bench.place / "qubes" / dest
            if method == "admin.vm.Start":
                bench.qube(dest)
                if program is not None:
                    (home / "rpc").mkdir()
                    service = home / "rpc" / "qubes.VMExec"
                    service.write_text(f"#!/bin/sh\nexec {program}\n")
                    service.chmod(0o755)
            elif method == "admin.vm.Kill":
                shutil.rmtree(home, ignore_errors=True)

        system.before_call = started
        yield bench


def lying(how: str, seed: int = 0) -> str:
    """A disposable that was taken over (liar.py)."""
    return f"env PYTHONPATH={ROOT / 'src'} {sys.executable} {Path(__file__).with_name('liar.py')} {how} {seed}"
