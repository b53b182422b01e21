"""Runs the real qubesd without Xen, for tests/qubes/test_real_qubesd.py; nothing of Qubes OS is contained here.

    python real_qubesd.py FOLDER POOL

Needs the packages `qubes` (with its metadata), its own `test-packages`, and `qrexec` on PYTHONPATH. FOLDER gets
qubes.xml and the sockets, POOL the images. A start runs the storage driver's own start, a shutdown its stop; there is
no hypervisor.
Prints `ready`.
"""

# mypy: ignore-errors
# ruff: noqa: E402, ANN001, ANN002, ANN003, ANN201, ANN204

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

FOLDER, POOL = (Path(word).resolve() for word in sys.argv[1:3])
KERNEL = "6.6.0-none"
RUNNING: dict[str, int] = {}


def prepare() -> None:
    """Programs that the server calls and that may not be here, and a kernel that nobody boots."""
    programs = FOLDER / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    for name, body in (("sudo", 'while [ "${1#-}" != "$1" ]; do shift; done\nexec "$@"'), ("systemctl", "exit 0")):
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    os.environ["PATH"] = f"{programs}:{os.environ['PATH']}"
    kernel = POOL / "vm-kernels" / KERNEL
    kernel.mkdir(parents=True, exist_ok=True)
    for name in ("vmlinuz", "initramfs", "modules.img"):
        (kernel / name).touch()


class NoVolumes(subprocess.Popen):
    """While the server is imported: it asks `lvs` for volume groups, and there are none."""

    def __init__(self, command, *args, **options):
        if isinstance(command, list | tuple) and "lvs" in command:
            command = ["echo", '{"report":[{"lv":[]}]}']
        super().__init__(command, *args, **options)


prepare()
_popen, subprocess.Popen = subprocess.Popen, NoVolumes
import qubes.config

qubes.config.qubes_base_dir = str(POOL)
pools = qubes.config.defaults["pool_configs"]
pools["varlibqubes"]["dir_path"] = str(POOL)
pools["linux-kernel"]["dir_path"] = str(POOL / "vm-kernels")
import qubes
import qubes.api
import qubes.api.admin
import qubes.api.internal
import qubes.app
import qubes.storage
import qubes.vm.adminvm
import qubes.vm.qubesvm

subprocess.Popen = _popen
shutil.chown = lambda *args, **options: None  # the group `qubes` need not exist
if hasattr(qubes.storage, "VOLUME_STATE_DIR"):
    qubes.storage.VOLUME_STATE_DIR = f"{FOLDER}/run/"
    Path(qubes.storage.VOLUME_STATE_DIR).mkdir(exist_ok=True)


class PrintableOnly:
    """Stands for the library that says which characters of a note are safe to show."""

    def __init__(self, name):
        class Answer:
            def __call__(self, code):
                return chr(code).isprintable()

        self.qubes_pure_code_point_safe_for_display = Answer()


if hasattr(qubes.api.admin, "CDLL"):
    qubes.api.admin.CDLL = PrintableOnly


async def start(self, *args, **options):
    async with self.startup_lock:
        if self.name not in RUNNING:
            await self.fire_event_async("domain-pre-start", pre_event=True, start_guid=False, mem_required=0)
            await self.storage.verify()
            await self.storage.start()
            RUNNING[self.name] = len(RUNNING) + 1
            await self.fire_event_async("domain-start", start_guid=False)
    return self


async def stop(self, *args, **options):
    if self.name not in RUNNING:
        raise qubes.exc.QubesVMNotStartedError(self)
    del RUNNING[self.name]
    async with self.startup_lock:
        await self.storage.stop()
    await self.fire_event_async("domain-shutdown")
    return self


machine = qubes.vm.qubesvm.QubesVM
machine.is_running = lambda self: self.name in RUNNING
machine.is_halted = lambda self: self.name not in RUNNING
machine.is_paused = lambda self: False
machine.get_power_state = lambda self: "Running" if self.name in RUNNING else "Halted"
machine.start, machine.shutdown, machine.kill = start, stop, stop
machine.xid = property(lambda self: RUNNING.get(self.name, -1))
machine.create_qdb_entries = lambda self: None
qubes.app.VMMConnection.is_xen = property(lambda self: False)  # newer releases ask for what only Xen can do


def main() -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    app = qubes.Qubes.create_empty_store(str(FOLDER / "qubes.xml"), offline_mode=True)
    loop.run_until_complete(app.setup_pools())
    app.default_pool, app.default_kernel = "varlibqubes", KERNEL
    app.save()
    servers = {
        "qubesd.sock": qubes.api.admin.QubesAdminAPI,
        "qubesd.internal.sock": qubes.api.internal.QubesInternalAPI,
    }
    for name, server in servers.items():
        server.SOCKNAME = str(FOLDER / name)
    loop.run_until_complete(qubes.api.create_servers(*servers.values(), app=app))
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, loop.stop)
    print("ready", flush=True)
    loop.run_forever()


main()
