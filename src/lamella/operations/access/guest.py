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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lamella.base.errors import LamellaError, shown_bytes
from lamella.operations.access.guest_kernel import GuestKernel
from lamella.operations.access.guest_script import PORT
from lamella.operations.access.guest_start import GuestRequest, What, initramfs
from lamella.operations.access.guest_tar import ArchiveCut
from lamella.run.spawn import Child

QEMU = "qemu-system-x86_64"
KVM = Path("/dev/kvm")
KVM_SECONDS = 5.0
"""A guest with KVM that has said nothing after this time is ended: nested or broken virtualisation."""
LINE_MOST = 8 * 1024
"""Bytes of a line from a guest."""
_PIECE = 1 << 18
_END_SECONDS = 2.0


class Guest:
    """A running guest, whose port is a stream of bytes. Raises LamellaError where that ends, or is late.

    The deadline is one of time.monotonic().
    """

    def __init__(self, child: Child, nonce: str, deadline: float) -> None:
        self._child = child
        self._prefix = f"{nonce} ".encode()
        self.deadline = deadline
        self._buffer = bytearray()
        os.set_blocking(child.stdout, False)
        os.set_blocking(child.stdin, False)

    def word(self) -> str:
        """The next line of ours, without its secret word; everything else is skipped, up to 1 MiB of it."""
        skipped = 0
        while True:
            line = self._line()
            if line.startswith(self._prefix):
                return line[len(self._prefix) :].decode("utf-8", "replace")
            skipped += len(line)
            if skipped > 1 << 20:
                raise LamellaError("the guest sent an invalid answer")

    def take(self, count: int) -> bytes:
        """Exactly so many bytes."""
        while len(self._buffer) < count:
            self._more(self.deadline)
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def archive(self, mark: bytes) -> Callable[[int], bytes]:
        """A function like `take` for an archive that `mark` follows. Raises ArchiveCut where that comes too soon."""

        def take(count: int) -> bytes:
            while not (cut := self._cut(mark, count)) and len(self._buffer) < count + len(mark) - 1:
                self._more(self.deadline)
            if cut:
                raise ArchiveCut("the guest did not send the whole archive")
            return self.take(count)

        return take

    def _cut(self, mark: bytes, count: int) -> bool:
        """Whether `mark` begins within the next `count` bytes; what comes before is dropped then."""
        at = self._buffer.find(mark, 0, count + len(mark) - 1)
        if at >= 0:
            del self._buffer[:at]
        return at >= 0

    def until(self, mark: bytes, most: int) -> Iterator[bytes]:
        """The bytes before `mark`, in pieces; the mark stays. Raises LamellaError above `most` bytes."""
        total = 0
        while (at := self._buffer.find(mark)) < 0:
            whole = max(0, len(self._buffer) - len(mark) + 1)
            if whole:
                yield self.take(whole)
                total += whole
                if total > most:
                    raise LamellaError(f"the guest sent more than {shown_bytes(most)}", hint="name fewer paths")
            self._more(self.deadline)
        yield self.take(at)

    def send(self, content: bytes) -> None:
        """Send bytes to the guest, which has asked for them."""
        left = memoryview(content)
        waiting = select.poll()
        waiting.register(self._child.stdin, select.POLLOUT)
        while left:
            if not waiting.poll(max(0, (self.deadline - time.monotonic()) * 1000)):
                raise _late()
            with suppress(BlockingIOError):
                try:
                    left = left[os.write(self._child.stdin, left[:_PIECE]) :]
                except BrokenPipeError:
                    raise self._ended() from None

    def send_counted(self, content: bytes) -> None:
        """Send a line with the number of bytes, then the bytes."""
        self.send(b"%d\n" % len(content) + content)

    def answers(self, seconds: float) -> bool:
        """Whether it says anything within this time."""
        with suppress(_Late):
            while not self._buffer:
                self._more(min(time.monotonic() + seconds, self.deadline))
        return bool(self._buffer)

    def end(self) -> None:
        """Kill it."""
        self._child.kill()
        self._child.end(_END_SECONDS)

    def _line(self) -> bytes:
        while (at := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > LINE_MOST:
                raise LamellaError("the guest sent an invalid answer")
            self._more(self.deadline)
        return self.take(at + 1)[:-1]

    def _more(self, deadline: float) -> None:
        waiting = select.poll()
        waiting.register(self._child.stdout, select.POLLIN)
        waiting.register(self._child.stderr, select.POLLIN)
        left = deadline - time.monotonic()
        ready = dict(waiting.poll(max(0, left * 1000)))
        if not ready:
            raise _late()
        self._child.drain_stderr()
        if self._child.stdout not in ready:
            return
        piece = os.read(self._child.stdout, _PIECE)
        if not piece:
            raise self._ended()
        self._buffer += piece

    def _ended(self) -> LamellaError:
        self._child.wait(_END_SECONDS)
        self._child.drain_stderr()
        said = self._child.said() or "a damaged or hostile file system can do that"
        return LamellaError(f"the guest ended before it was done: {said}")


class _Late(LamellaError):
    """The time is up."""


def _late() -> _Late:
    return _Late("the guest did not finish in time", hint="allow more with --seconds, or name fewer paths")


def spare_mib() -> int:
    """The memory that this host can give to a guest."""
    lines = Path("/proc/meminfo").read_text("ascii", "replace").splitlines()
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("MemAvailable:")), 1 << 20)


@contextmanager
def started(
    kernel: GuestKernel, uris: Sequence[str], request: GuestRequest, memory_file: Path, cache: Path
) -> Iterator[Guest]:
    """A guest with the disks at these NBD URIs, with KVM where that works; killed when the block is left.

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
            child = _start(kernel.image, archive, uris, request, "kvm")
            guest = _with_kvm(Guest(child, request.nonce, deadline), memory_file)
        if guest is None:
            child = _start(kernel.uncompressed(cache), archive, uris, request, "tcg,thread=multi")
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


def _start(image: Path, archive: Path, uris: Sequence[str], request: GuestRequest, accelerator: str) -> Child:
    words = [QEMU, "-M", "q35", "-accel", accelerator, "-cpu", "host" if accelerator == "kvm" else "max"]
    words += [
        "-m",
        str(request.memory_mib),
        "-smp",
        "1",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ]
    words += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    words += ["-kernel", str(image), "-initrd", str(archive)]
    words += ["-append", "quiet loglevel=3 oops=panic panic=-1 mitigations=off nokaslr no_timer_check"]
    words += ["-chardev", "stdio,id=port,signal=off", "-device", "virtio-serial-pci"]
    words += ["-device", f"virtserialport,chardev=port,name={PORT}"]
    for number, uri in enumerate(uris):
        given_back = ",discard=unmap" if request.what == What.SCRUB else ""
        words += ["-drive", f"file={uri},if=none,id=disk{number},format=raw,cache=unsafe{given_back}"]
        words += ["-device", f"virtio-blk-pci,drive=disk{number}"]
    return Child(words)
