"""A small QEMU guest that reads one disk and sends bytes: no network, no other device, nothing of this host.

Whatever the guest sends may be a lie, and its kernel may be under the control of whoever wrote the disk. It is read
with bounds and a deadline; closing the guest kills it.
"""

from __future__ import annotations

import os
import select
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lamella.base.errors import LamellaError
from lamella.operations.access.guest_kernel import GuestKernel
from lamella.operations.access.guest_start import PORT, GuestRequest, initramfs
from lamella.run.spawn import Child

QEMU = "qemu-system-x86_64"
KVM = Path("/dev/kvm")
KVM_SECONDS = 5.0
"""A guest with KVM that has said nothing after this time is ended: nested or broken virtualisation."""
MEMORY_MIB = 512
LINE_MOST = 8 * 1024
"""Bytes of a line from a guest."""
_PIECE = 1 << 18
_END_SECONDS = 2.0


class Guest:
    """A running guest, whose port is a stream of bytes. Raises LamellaError where that ends or is late."""

    def __init__(self, child: Child, nonce: str, deadline: float) -> None:
        self._child = child
        self._prefix = f"{nonce} ".encode()
        self._deadline = deadline
        self._buffer = bytearray()
        os.set_blocking(child.stdout, False)

    def word(self) -> str:
        """The next line of ours, without its secret word; everything else is skipped, up to 1 MiB of it."""
        skipped = 0
        while True:
            line = self._line()
            if line.startswith(self._prefix):
                return line[len(self._prefix) :].decode("utf-8", "replace")
            skipped += len(line)
            if skipped > 1 << 20:
                raise LamellaError("the guest sends nonsense")

    def take(self, count: int) -> bytes:
        """Exactly so many bytes."""
        while len(self._buffer) < count:
            self._more(self._deadline)
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def until(self, mark: bytes, most: int) -> Iterator[bytes]:
        """The bytes before `mark`, in pieces; the mark stays. Raises LamellaError above `most` bytes."""
        total = 0
        while (at := self._buffer.find(mark)) < 0:
            whole = max(0, len(self._buffer) - len(mark) + 1)
            if whole:
                yield self.take(whole)
                total += whole
                if total > most:
                    raise LamellaError(f"the guest sent more than {most} bytes", hint="name fewer paths")
            self._more(self._deadline)
        yield self.take(at)

    def answers(self, seconds: float) -> bool:
        """Whether it says anything within this time."""
        with suppress(_Late):
            while not self._buffer:
                self._more(min(time.monotonic() + seconds, self._deadline))
        return bool(self._buffer)

    def end(self) -> None:
        """Kill it."""
        self._child.kill()
        self._child.end(_END_SECONDS)

    def _line(self) -> bytes:
        while (at := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > LINE_MOST:
                raise LamellaError("the guest sends nonsense")
            self._more(self._deadline)
        return self.take(at + 1)[:-1]

    def _more(self, deadline: float) -> None:
        waiting = select.poll()
        waiting.register(self._child.stdout, select.POLLIN)
        waiting.register(self._child.stderr, select.POLLIN)
        left = deadline - time.monotonic()
        ready = dict(waiting.poll(max(0, left * 1000)))
        if not ready:
            raise _Late("the guest did not finish in time", hint="allow more with --seconds, or name fewer paths")
        self._child.drain_stderr()
        if self._child.stdout not in ready:
            return
        piece = os.read(self._child.stdout, _PIECE)
        if not piece:
            self._child.wait(_END_SECONDS)
            self._child.drain_stderr()
            said = self._child.said()
            raise LamellaError("the guest ended before it was done" + (f": {said}" if said else ""))
        self._buffer += piece


class _Late(LamellaError):
    """The time is up."""


@contextmanager
def started(kernel: GuestKernel, uri: str, request: GuestRequest, memory_file: Path, cache: Path) -> Iterator[Guest]:
    """A guest with the disk at an NBD URI, with KVM where that works; killed when the block is left.

    `memory_file` remembers that KVM did not work here; `cache` keeps an uncompressed kernel. Raises LamellaError.
    """
    if shutil.which(QEMU) is None:
        hint = "install qemu-system-x86 (Debian) or qemu-system-x86-core (Fedora)"
        raise LamellaError(f"{QEMU} is not installed", hint=hint)
    deadline = time.monotonic() + request.seconds
    with tempfile.TemporaryDirectory(prefix="lamella-guest-") as folder:
        archive = Path(folder) / "initramfs"
        archive.write_bytes(initramfs(kernel, request))
        guest = None
        if os.access(KVM, os.R_OK | os.W_OK) and not memory_file.exists():
            guest = _with_kvm(Guest(_start(kernel.image, archive, uri, "kvm"), request.nonce, deadline), memory_file)
        if guest is None:
            child = _start(kernel.uncompressed(cache), archive, uri, "tcg,thread=multi")
            guest = Guest(child, request.nonce, deadline)
        try:
            yield guest
        finally:
            guest.end()


def _with_kvm(guest: Guest, memory_file: Path) -> Guest | None:
    """The guest if it says anything; else it is ended, and remembered that KVM does not work where it was silent."""
    try:
        if guest.answers(KVM_SECONDS):
            return guest
        with suppress(OSError):
            memory_file.write_text("A guest with KVM did not answer here. Remove this file to try again.\n")
    except LamellaError:  # QEMU ended: what is wrong is said without KVM, too, if it is not that
        pass
    except BaseException:
        guest.end()
        raise
    guest.end()
    return None


def _start(image: Path, archive: Path, uri: str, accelerator: str) -> Child:
    words = [QEMU, "-M", "q35", "-accel", accelerator, "-cpu", "host" if accelerator == "kvm" else "max"]
    words += ["-m", str(MEMORY_MIB), "-smp", "1", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    words += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    words += ["-kernel", str(image), "-initrd", str(archive)]
    words += ["-append", "quiet loglevel=3 panic=-1 mitigations=off nokaslr no_timer_check"]
    words += ["-chardev", "stdio,id=port,signal=off", "-device", "virtio-serial-pci"]
    words += ["-device", f"virtserialport,chardev=port,name={PORT}"]
    words += ["-drive", f"file={uri},if=none,id=disk,format=raw,cache=unsafe", "-device", "virtio-blk-pci,drive=disk"]
    return Child(words)
