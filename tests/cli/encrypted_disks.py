"""Disks as servers and laptops have them: logical volumes, encryption, both; made in a guest, which has device-mapper.

    python -m tests.cli.encrypted_disks      # makes tests/golden/disks again; a minute or two

The copies are taken while the file systems are in use, so that they look as snapshots of running machines do.
"""

from __future__ import annotations

import base64
import lzma
import struct
import tempfile
from pathlib import Path

from tests.guest.machine import Guest

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "disks"
SECONDS = 600
KEY = "a typed passphrase"

# The guest's first shell takes the programs of busybox for its own.
_MAKE = """
[ -n "$AGAIN" ] || AGAIN=1 exec /bin/sh "$0"
set -ex
modules=$(echo "$LAMELLA_ROOT"/.guest/lib/modules/*)
module() {
    line=$(grep "/$1.ko[.a-z]*:" "$modules/modules.dep") || return 0
    for m in $(for w in ${line#*:}; do echo "$w"; done | tac) ${line%%:*}; do
        /run/busybox insmod "$modules/$m" || true
    done
}
for m in dm-crypt algif_skcipher aes_generic aesni-intel xts cbc essiv sha256_generic exfat; do module $m; done
mkdir -p /run/w /run/m /run/cryptsetup; cd /run/w
table() { echo "$2" | base64 -d | dd of="$1" bs=1 seek=446 conv=notrunc 2>/dev/null; }
ext4() { mkfs.ext4 -q -N 64 -J size=1 -E lazy_itable_init=1,lazy_journal_init=1 "$1"; }
part() { losetup -f --show -o $(($2 * 1048576)) --sizelimit $(($3 * 1048576)) "$1"; }
fill() { # device, text: one file with everything, another that is only fsynced
    mount -o "${3:-noinit_itable}" "$1" /run/m; mkdir -p /run/m/home; echo "$2" >/run/m/home/letter; sync
    dd if=/run/w/text of=/run/m/home/synced conv=fsync 2>/dev/null
}
echo fsynced >text

# A server: /boot, and a volume group with a plain volume, a thin one, and space for swap.
truncate -s 72M server.img; table server.img "$SERVER"
ext4 "$(part server.img 1 8)"
p=$(part server.img 9 62); pvcreate -q "$p"; vgcreate -q -s 1M srv "$p"
lvcreate -q -L 16M -n root srv; lvcreate -q -L 4M -n swap srv; mkswap /dev/srv/swap
lvcreate -q -L 20M --thinpool pool srv; lvcreate -q -V 16M --thin -n data srv/pool
ext4 /dev/srv/data; fill /dev/srv/data thin; umount /run/m
ext4 /dev/srv/root; fill /dev/srv/root server
cp --sparse=always server.img /run/out/; umount /run/m; vgchange -an srv

# A laptop: an EFI partition, and an encrypted one with a volume group.
truncate -s 64M laptop.img; table laptop.img "$LAPTOP"
/run/busybox mkdosfs "$(part laptop.img 1 8)"
p=$(part laptop.img 9 54)
printf %s "$KEY" | cryptsetup luksFormat -q --pbkdf argon2id --pbkdf-memory 32768 --pbkdf-parallel 1 \\
    --pbkdf-force-iterations 4 --luks2-metadata-size 16k --luks2-keyslots-size 256k "$p" -
printf %s "$KEY" | cryptsetup open --key-file - "$p" made
mkdir -p /run/maps; ln -s /dev/mapper/made /dev/loop-made
config="devices { use_devicesfile=0 filter=[\\"a|.*|\\"] }"
pvcreate -q --config "$config" /dev/mapper/made; vgcreate -q -s 1M --config "$config" lap /dev/mapper/made
lvcreate -q --config "$config" -L 16M -n root lap; lvcreate -q --config "$config" -L 16M -n home lap
ext4 /dev/lap/root; ext4 /dev/lap/home; fill /dev/lap/home laptop
cp --sparse=always laptop.img /run/out/; umount /run/m; vgchange --config "$config" -an lap; cryptsetup close made

truncate -s 4M exfat.img; p=$(losetup -f --show exfat.img); mkfs.exfat "$p" >/dev/null; fill "$p" exfat rw
cp --sparse=always exfat.img /run/out/; umount /run/m
"""


def partition_table(*rows: tuple[int, int, int]) -> bytes:
    """The end of an MBR, from byte 446 on: kind, start and length in MiB of each partition."""
    entries = b"".join(struct.pack("<4xB3xII", kind, start * 2048, length * 2048) for kind, start, length in rows)
    return entries.ljust(64, b"\0") + b"\x55\xaa"


def _shell(table: bytes) -> str:
    return base64.b64encode(table).decode()


def made(place: Path) -> Path:
    """Make the disks; the directory that holds them."""
    tables = {
        "SERVER": partition_table((0x83, 1, 8), (0x8E, 9, 62)),
        "LAPTOP": partition_table((0x0C, 1, 8), (0x83, 9, 54)),
    }
    words = "".join(f"{name}={_shell(table)}\n" for name, table in tables.items())
    guest = Guest(place, f"KEY='{KEY}'\n{words}{_MAKE}")
    try:
        assert guest.ended(SECONDS), guest.last_words()
        status = guest.out / "status"
        assert status.exists() and status.read_text().strip() == "0", guest.last_words()
    finally:
        guest.close()
    (place / "disk").unlink()
    return guest.out


def main() -> int:
    """Make the disks again."""
    with tempfile.TemporaryDirectory(prefix="lamella-disks-") as folder:
        for image in sorted(made(Path(folder) / "guest").glob("*.img")):
            (GOLDEN / f"{image.name}.xz").write_bytes(lzma.compress(image.read_bytes(), preset=9))
    return 0


def unpacked(name: str, folder: Path) -> Path:
    """The image of a disk, as NAME.img in a folder."""
    image = folder / f"{name}.img"
    image.write_bytes(lzma.decompress((GOLDEN / f"{name}.img.xz").read_bytes()))
    return image


if __name__ == "__main__":
    raise SystemExit(main())
