"""What a guest does with a volume: the initramfs of busybox, the kernel's modules and a script.

The guest mounts one file system of the disk for writing, so that its journal is replayed, and sends what was asked for
through a serial port of virtio. Lines of ours begin with a word that nobody who wrote the disk could know.
"""

from __future__ import annotations

import shlex
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from lamella.base.errors import LamellaError
from lamella.operations.access.guest_kernel import BASE, FILE_SYSTEMS, GuestKernel

PORT = "lamella"
"""The name of the serial port."""

_START = r"""#!/bin/busybox sh
B=/bin/busybox
$B mkdir -p /dev /proc /sys /mnt
$B mount -t proc proc /proc; $B mount -t sysfs sys /sys; $B mount -t devtmpfs dev /dev
load() { for m in $($B cat "/order/$1"); do $B insmod "/modules/$m" 2>/dev/null; done; }
load base
. /request
port=; tries=0
while [ -z "$port" ] && [ $tries -lt 500 ]; do
    for d in /sys/class/virtio-ports/*; do [ "$($B cat "$d/name" 2>/dev/null)" = PORT ] && port=/dev/${d##*/}; done
    [ -n "$port" ] || { $B usleep 10000; tries=$((tries + 1)); }
done
[ -n "$port" ] || $B poweroff -f
exec 3<>"$port"
say() { $B printf '%s %s\n' "$NONCE" "$*" >&3; }
finish() { say "end $*"; $B sleep 0.1; $B poweroff -f; }
( $B sleep 20; [ -e /tmp/greeted ] || $B poweroff -f ) &
( $B sleep "$SECONDS_MOST"; $B poweroff -f ) &
say hello
: >/tmp/greeted
# The port ends when the program that started this guest does, killed or not.
( $B cat <&3 >/dev/null; $B poweroff -f ) &

magic() { $B dd if="$1" bs=1 skip="$2" count="$3" 2>/dev/null | $B od -An -v -tx1 | $B tr -d ' \n'; }
kind() {
    case $(magic "$1" 0 6) in 58465342*) echo xfs; return ;; 4c554b53babe) echo LUKS; return ;; esac
    case $(magic "$1" 3 8) in 4558464154202020) echo exfat; return ;; 4e54465320202020) echo ntfs3; return ;; esac
    [ "$(magic "$1" 1080 2)" = 53ef ] && { echo ext4; return; }
    [ "$(magic "$1" 65600 8)" = 5f42485266535f4d ] && { echo btrfs; return; }
    [ "$(magic "$1" 512 8)" = 4c4142454c4f4e45 ] && { echo LVM; return; }
    [ "$(magic "$1" 4086 10)" = 53574150535041434532 ] && { echo swap; return; }
    [ "$(magic "$1" 510 2)" = 55aa ] || return
    [ "$(magic "$1" 82 5)" = 4641543332 ] && { echo vfat; return; }
    [ "$(magic "$1" 54 3)" = 464154 ] && echo vfat
}

[ -b /dev/vda ] || finish no-disk
names=
for d in /sys/class/block/vda?*; do [ -d "$d" ] && names="$names ${d##*/vda}"; done
[ -n "$names" ] || names=disk
chosen=
for n in $names; do
    dev=/dev/vda$n; [ "$n" = disk ] && dev=/dev/vda
    k=$(kind "$dev")
    say "part $n $($B blockdev --getsize64 "$dev") ${k:-unknown}"
    if [ -n "$PARTITION" ]; then [ "$PARTITION" = "$n" ] && chosen="$chosen $n:$k"
    elif [ -e "/order/$k" ] && [ -n "$k" ]; then chosen="$chosen $n:$k"; fi
done
set -- $chosen
[ $# = 0 ] && finish nothing
[ $# = 1 ] || finish several
n=${1%%:*}; k=${1#*:}
dev=/dev/vda$n; [ "$n" = disk ] && dev=/dev/vda
[ -n "$k" ] && [ -e "/order/$k" ] || finish "cannot ${k:-unknown}"
load "$k"
$B grep -qw "$k" /proc/filesystems || finish "lacks $k"
options=rw,nosuid,nodev,noexec
[ "$k" = vfat ] && options=$options,utf8
$B mount -t "$k" -o "$options" "$dev" /mnt 2>/tmp/why ||
    finish "unmountable $k $($B dmesg | $B tail -n 2 | $B tr '\n' ' ')"
state=clean
$B dmesg | $B grep -qE 'recovery complete|Ending recovery|tree-log replay|orphan inode' && state=replayed
case $k in vfat|exfat) state=none ;; esac
say "state $n $k $state"

cd /mnt || finish unmountable
. /paths
for p; do
    shift
    if [ -e "$p" ] || [ -L "$p" ]; then set -- "$@" "$p"; else say "absent $p"; fi
done
[ $# = 0 ] && finish done 0
case $WHAT in
list) say rows; $B find "$@" -maxdepth 1 -exec $B stat -c "$NONCE=%f %s %Y %n" {} + >&3 2>/tmp/why; status=$? ;;
walk) say rows; $B find "$@" -exec $B stat -c "$NONCE=%f %s %Y %n" {} + >&3 2>/tmp/why; status=$? ;;
get) say tar; $B tar -c -f - -- "$@" >&3 2>/tmp/why; status=$? ;;
esac
echo >&3
[ -s /tmp/why ] && say "why $($B head -n 3 /tmp/why | $B tr '\n' ' ')"
finish "done $status"
"""


class What(Enum):
    """What a guest is asked for."""

    LIST = "list"
    """The entries of directories."""
    WALK = "walk"
    """Everything below directories."""
    GET = "get"
    """Files and directories with all that is in them."""


@dataclass(frozen=True, slots=True)
class GuestRequest:
    """What a guest is to do. `paths` are relative to the root of the file system, and begin with `./`."""

    what: What
    paths: tuple[str, ...]
    nonce: str
    partition: str = ""
    """The number of a partition, `disk` for the whole disk; empty where only one file system can be meant."""
    seconds: int = 600
    """The guest ends by itself after this time."""

    def script(self) -> str:
        """The request as the guest's shell reads it."""
        words = {"NONCE": self.nonce, "WHAT": self.what.value, "PARTITION": self.partition}
        lines = [f"{name}={shlex.quote(word)}" for name, word in words.items()]
        lines.append(f"SECONDS_MOST={self.seconds}")
        return "\n".join(lines) + "\n"


def initramfs(kernel: GuestKernel, request: GuestRequest) -> bytes:
    """The archive that the kernel unpacks and starts. Raises LamellaError for what is missing on this host."""
    files: dict[str, tuple[int, bytes]] = {
        name: (stat.S_IFDIR | 0o755, b"") for name in ("bin", "dev", "order", "modules", "tmp")
    }
    files["bin/busybox"] = (stat.S_IFREG | 0o755, _busybox())
    start = _START.replace("= PORT ]", f"= {PORT} ]")
    files["init"] = (stat.S_IFREG | 0o755, start.encode())
    files["request"] = (stat.S_IFREG | 0o600, request.script().encode())
    wanted = shlex.join(["set", "--", *request.paths])
    files["paths"] = (stat.S_IFREG | 0o600, f"{wanted}\n".encode("utf-8", "surrogateescape"))
    for name, modules in {"base": BASE, **FILE_SYSTEMS}.items():
        paths = kernel.order(modules)
        names = [path.rpartition("/")[2].partition(".ko")[0] + ".ko" for path in paths]
        files[f"order/{name}"] = (stat.S_IFREG | 0o644, "".join(f"{one}\n" for one in names).encode())
        for one, path in zip(names, paths, strict=True):
            if f"modules/{one}" not in files:
                files[f"modules/{one}"] = (stat.S_IFREG | 0o644, kernel.module(path))
    return archive(files)


def archive(files: Mapping[str, tuple[int, bytes]]) -> bytes:
    """A cpio archive, `newc` (Linux: Documentation/driver-api/early-userspace/buffer-format.rst): name, mode, bytes."""
    rows: Sequence[tuple[str, tuple[int, bytes]]] = [*files.items(), ("TRAILER!!!", (0, b""))]
    out = bytearray()
    for number, (name, (mode, content)) in enumerate(rows, 1):
        path = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + path
        out += bytes(-len(out) % 4) + content
        out += bytes(-len(out) % 4)
    return bytes(out)


def _busybox() -> bytes:
    hint = "install busybox-static (Debian) or busybox (Fedora)"
    place = shutil.which("busybox")
    if place is None:
        raise LamellaError("busybox, the program of the guest, is not installed", hint=hint)
    program = Path(place).read_bytes()
    if b"/ld-linux" in program[:4096] or b"/ld-musl" in program[:4096]:
        raise LamellaError(f"{place} needs libraries, which a guest does not have", obj=place, hint=hint)
    return program
