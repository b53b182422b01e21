#!/usr/bin/env bash
# Makes what the Makefile's targets need, and nothing when it is already there.
#
#   tools/setup-env.sh try     .venv with Lamella, its kit, and what both need to run
#   tools/setup-env.sh dev     .venv with the tools of the tests as well
#   tools/setup-env.sh system  programs of the system that the tests use; installed when root, named otherwise
#
# PYTHON names the interpreter (default python3). System packages come from apt-get (Debian, Ubuntu) or dnf (Fedora).
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
PATH=$PATH:/usr/sbin:/sbin
VENV=.venv
STAMP=$VENV/lamella-stamp

say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 1; }

is_root() { [ "$(id -u)" = 0 ]; }

installer() {
    if command -v apt-get >/dev/null; then echo apt-get; elif command -v dnf >/dev/null; then echo dnf; fi
}

# Installs the packages named; fails if that is not possible here.
install_packages() {
    is_root || return 1
    local log status=0
    log=$(mktemp)
    say "installing $*"
    case $(installer) in
    apt-get)
        export DEBIAN_FRONTEND=noninteractive
        { apt-get update -q -o DPkg::Lock::Timeout=120 &&
            apt-get install -q -y --no-install-recommends -o DPkg::Lock::Timeout=120 "$@"; } >"$log" 2>&1 || status=1
        ;;
    dnf) dnf install -q -y --setopt=install_weak_deps=False "$@" >"$log" 2>&1 || status=1 ;;
    *) status=1 ;;
    esac
    [ $status = 0 ] || tail -n 5 "$log" >&2
    rm -f "$log"
    return $status
}

check_python() {
    command -v "$PYTHON" >/dev/null || die "no $PYTHON found; install Python 3.11 or newer, or name one: make PYTHON=..."
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$("$PYTHON" --version) is too old; name Python 3.11 or newer: make PYTHON=python3.12 ..."
}

# A Python without ensurepip cannot make a virtual environment that has pip.
can_make_venv() { "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; }

venv_packages() {
    local version
    version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    case $(installer) in
    apt-get) echo "python$version-venv" ;;
    *) echo "python3-libs python3-pip" ;;
    esac
}

make_venv() {
    if ! can_make_venv; then
        local packages
        packages=$(venv_packages)
        # shellcheck disable=SC2086 # one word a package
        { install_packages $packages && can_make_venv; } ||
            die "$PYTHON cannot make virtual environments here; install $packages, then run this again"
    fi
    rm -rf "$VENV"
    "$PYTHON" -m venv "$VENV"
}

# What the environment was made from. The path is part of it: an editable install in a copied directory points at the old one.
fingerprint() {
    { pwd -P; "$VENV/bin/python" --version; cat pyproject.toml kit/pyproject.toml tools/setup-env.sh; } | sha256sum | cut -d ' ' -f 1
}

venv_works() { "$VENV/bin/python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# An environment made for `dev` serves `try` as well.
is_current() {
    [ -f "$STAMP" ] && [ -x "$VENV/bin/lamella" ] && "$VENV/bin/python" -c '' 2>/dev/null || return 1
    local made
    made=$(cat "$STAMP")
    [ "$made" = "dev $(fingerprint)" ] || [ "$made" = "$1 $(fingerprint)" ]
}

set_up_python() {
    is_current "$1" && return
    check_python
    venv_works || make_venv
    rm -f "$STAMP"
    local what=.
    if [ "$1" = dev ]; then what='.[dev]'; fi
    say "installing Lamella ($1) into $VENV"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$what" --editable kit
    echo "$1 $(fingerprint)" >"$STAMP"
}

missing_packages() {
    local mount_package=util-linux rpm_package=rpm-build ssh_package=openssh-clients ip_package=iproute program package
    local thin_package=device-mapper-persistent-data qemu_package=qemu-img nbd_package=libnbd zbar_package=zbar guest=''
    if [ "$(installer)" = apt-get ]; then
        mount_package=mount rpm_package=rpm ssh_package=openssh-client ip_package=iproute2
        thin_package=thin-provisioning-tools qemu_package=qemu-utils nbd_package=libnbd-bin zbar_package=zbar-tools
        guest='qemu-system-x86_64:qemu-system-x86 qemu-storage-daemon:qemu-system-common busybox:busybox-static depmod:kmod extlinux:extlinux mcopy:mtools'
        guest+=' cryptsetup:cryptsetup-bin ntfs-3g:ntfs-3g'
        guest+=' dbus-daemon:dbus cron:cron zsh:zsh fish:fish promtool:prometheus chromium:chromium'
        # It has no program; without it no user has a manager.
        [ -e /usr/share/pam-configs/systemd ] || echo libpam-systemd
        # The system's own Python has the oldest libraries that packages allow.
        [ -e /usr/lib/python3/dist-packages/zstandard ] || echo python3-zstandard
        [ -e /usr/lib/python3/dist-packages/cryptography ] || echo python3-cryptography
        # UEFI for drills, and a boot loader for their disks.
        [ -e /usr/share/OVMF/OVMF_CODE_4M.fd ] || echo ovmf
        [ -e /usr/lib/systemd/boot/efi/systemd-bootx64.efi ] || echo systemd-boot-efi
        # The tests lend the system's module to the virtual environment.
        { command -v libvirtd >/dev/null && [ -e /usr/lib/python3/dist-packages/libvirt.py ]; } ||
            printf '%s\n' libvirt-daemon libvirt-daemon-driver-qemu python3-libvirt
        # A Ceph of one machine; the bindings are no program either.
        guest+=' ceph-mon:ceph-mon ceph-osd:ceph-osd ceph-mgr:ceph-mgr rbd:ceph-common radosgw:radosgw'
        [ -e /usr/lib/python3/dist-packages/rbd-*.egg-info ] || echo python3-rbd
    fi
    for pair in gcc:gcc mkfs.ext4:e2fsprogs debugfs:e2fsprogs zstd:zstd mkfs.btrfs:btrfs-progs mkfs.xfs:xfsprogs \
        losetup:$mount_package mount:$mount_package rpmbuild:$rpm_package cpio:cpio \
        sshd:openssh-server rclone:rclone borg:borgbackup restic:restic scrypt:scrypt systemd-analyze:systemd ssh:$ssh_package ip:$ip_package lvs:lvm2 thin_delta:$thin_package \
        qemu-img:$qemu_package nbdcopy:$nbd_package fusermount3:fuse3 zbarimg:$zbar_package $guest; do
        program=${pair%%:*} package=${pair#*:}
        command -v "$program" >/dev/null || echo "$package"
    done | sort -u
}

set_up_system() {
    local packages
    packages=$(missing_packages | xargs)
    if [ -n "$packages" ]; then
        # shellcheck disable=SC2086 # one word a package
        install_packages $packages || say "not installed here: $packages; tests that need them are skipped"
    fi
    # The kernel that tests/guest boots; what is there already is kept.
    "$PYTHON" tools/guest_kernel.py || say "there is no kernel for the guest; tests of LVM and of files are skipped"
}

# A second S3 service for the tests, from npm where there is one.
set_up_s3rver() {
    local place=$VENV/s3rver
    [ -x "$place/node_modules/.bin/s3rver" ] && return
    command -v npm >/dev/null && [ -d "$VENV" ] || return 0
    say "installing s3rver into $place"
    npm install --prefix "$place" --no-audit --no-fund --silent s3rver >/dev/null 2>&1 ||
        say "not installed here: s3rver; tests that need it are skipped"
}

case ${1:-} in
try | dev) set_up_python "$1" ;;
system) set_up_system && set_up_s3rver ;;
*) die "usage: tools/setup-env.sh try|dev|system" ;;
esac
