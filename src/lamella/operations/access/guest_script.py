"""The script that a guest runs: find the file system that is meant, mount it, send what was asked for.

The guest has no more than busybox and the modules of its own disk and port. Whatever else a disk turns out to need, the
guest asks the host for by a name of `guest_supply`, so that nothing is packed that this disk does not need. `SERVE` is
also what a disposable qube runs (qubes.inside): there `$B` is empty, and the programs are those of its template.
"""

from __future__ import annotations

PORT = "lamella"
"""The name of the serial port."""

_BOOT = r"""#!/bin/busybox sh
B=/bin/busybox; export PATH=/bin
$B mkdir -p /dev /proc /sys /mnt /run/cryptsetup /run/lock/lvm /etc/lvm /have
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
finish() { say "end $*"; exit 0; }
( $B sleep 20; [ -e /tmp/greeted ] || $B poweroff -f ) &
( $B sleep "$SECONDS_MOST"; $B poweroff -f ) &
say hello
: >/tmp/greeted
# What the host sends goes through a pipe. The port ends when the program that started this guest does, killed or not.
$B mkfifo /tmp/in
exec 4<>/tmp/in
( $B cat <&3 >/tmp/in; $B poweroff -f ) &

fetch() {
    [ -e "/have/$1" ] && return
    : >"/have/$1"
    say "need $1"
    ( cd / && $B cpio -idu <&4 2>/dev/null ) && load "$1"
}
PATHS=/paths
""".replace("= PORT ]", f"= {PORT} ]")

SERVE = r"""
hex() { $B dd if="$1" bs="$2" skip="$3" count=1 2>/dev/null | $B od -An -v -tx1 | $B tr -d ' \n'; }
kind() {
    h=$(hex "$1" 4120 0)
    case $h in fc4e2ba9*) echo RAID; return ;; 58465342*) echo xfs; return ;; 4c554b53babe*) echo LUKS; return ;; esac
    [ "${h:8192:8}" = fc4e2ba9 ] && { echo RAID; return; }
    [ "${h:1024:16}" = 4c4142454c4f4e45 ] && { echo LVM; return; }
    case ${h:6:16} in
    4558464154202020) echo exfat; return ;;
    4e54465320202020) echo ntfs; return ;;
    2d4656452d46532d) echo BitLocker; return ;;
    esac
    [ "${h:2160:4}" = 53ef ] && { echo ext4; return; }
    [ "${h:8172:20}" = 53574150535041434532 ] && { echo swap; return; }
    case $(hex "$1" 64 1025) in 5f42485266535f4d*) echo btrfs; return ;; esac
    [ "${h:1020:4}" = 55aa ] || return
    [ "${h:164:10}" = 4641543332 ] && { echo vfat; return; }
    [ "${h:108:6}" = 464154 ] && echo vfat
}

# A unit is a place where a file system can be: its name for people, its device, its kind.
unit() {
    k=$(kind "$2")
    say "part $1 $($B blockdev --getsize64 "$2") ${k:-unknown}"
    units="$units $1|$2|$k"
    [ "$k" = LVM ] && lvm=new
}

LVM='global{thin_check_executable="" cache_check_executable="" use_lvmpolld=0} devices{use_devicesfile=0}'
LVM="$LVM activation{udev_sync=0 udev_rules=0 monitoring=0} backup{backup=0 archive=0}"
volumes() {
    while [ "$lvm" = new ]; do
        lvm=
        fetch LVM
        DM_DISABLE_UDEV=1 lvm vgchange -ay --config "$LVM" >/dev/null 2>&1
        DM_DISABLE_UDEV=1 lvm lvs --noheadings --separator / -o lv_attr,vg_name,lv_name --config "$LVM" \
            2>/dev/null >/tmp/volumes
        while read -r row; do
            name=${row#*/}
            case $row in t*) continue ;; esac
            case " $units" in *" $name|"*) continue ;; esac
            if [ -b "/dev/$name" ]; then unit "$name" "/dev/$name"; else say "part $name 0 incomplete"; fi
        done </tmp/volumes
    done
}

opened=0
unlock() {
    fetch LUKS
    opened=$((opened + 1))
    [ $opened -gt 8 ] && finish "unopened $1 too many layers"
    costs=$(cryptsetup luksDump "$2" 2>/dev/null | $B sed -n 's/^[[:space:]]*Memory:[[:space:]]*//p' | $B sort -n)
    costs=${costs##*[!0-9]}
    have=${MEMORY:-$($B sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo)}
    # The guest was started for disks that are not encrypted: the slot's memory comes on top, and some to spare.
    [ -n "$costs" ] && [ $((costs + 524288)) -gt "$have" ] && finish "memory $costs"
    while :; do
        say "key $1"
        read -r n <&4
        $B head -c "$n" <&4 | cryptsetup open -q --type luks --key-file - "$2" "lamella$opened" 2>/tmp/why && break
        [ $? = 2 ] || finish "unopened $1 $($B head -n 2 /tmp/why | $B tr '\n' ' ')"
    done
    kept=
    for u in $units; do [ "${u%%|*}" = "$1" ] || kept="$kept $u"; done
    units=$kept
    unit "$1" "/dev/mapper/lamella$opened"
}

choose() {
    chosen=
    for u in $units; do
        if [ -n "$want" ]; then [ "$want" = "${u%%|*}" ] && chosen="$chosen $u"
        else case ${u##*|} in ext4|xfs|btrfs|vfat|exfat|ntfs|LUKS) chosen="$chosen $u" ;; esac; fi
    done
}

find_file_system() {
    units=; lvm=; want=$PARTITION
    [ -b "/dev/$1" ] || finish no-disk
    for d in /sys/class/block/"$1"?*; do p=${d##*/"$1"}; [ -d "$d" ] && unit "${p#p}" "/dev/${d##*/}"; done
    [ -n "$units" ] || unit disk "/dev/$1"
    volumes
    while :; do
        choose
        set -- $chosen
        if [ $# = 0 ]; then
            # A logical volume that is not there may lie inside of what is encrypted.
            locked=
            case $want in */*) for u in $units; do case $u in *"|LUKS") locked=$u ;; esac; done ;; esac
            [ -n "$locked" ] || finish nothing
            set -- "$locked"
        fi
        [ $# = 1 ] || finish several
        n=${1%%|*}; k=${1##*|}; dev=${1#*|}; dev=${dev%|*}
        case $k in
        LUKS) unlock "$n" "$dev"; volumes ;;
        LVM) want=; kept=
            for u in $units; do case ${u%%|*} in */*) kept="$kept $u" ;; esac; done
            units=$kept ;;
        *) return ;;
        esac
    done
}

mount_it() {
    case $k in ext4|xfs|btrfs|vfat|exfat|ntfs) ;; *) finish "cannot ${k:-unknown}" ;; esac
    fetch "$k"
    $B dmesg -c >/dev/null
    options=rw,nosuid,nodev,noexec
    if [ "$k" = ntfs ]; then
        [ -e /etc/mtab ] || : >/etc/mtab
        ntfs-3g -o "recover,$options" "$dev" /mnt 2>/tmp/why ||
            finish "unmountable $k $($B head -n 2 /tmp/why | $B tr '\n' ' ')"
        state=reset
    else
        $B grep -qw "$k" /proc/filesystems || finish "lacks $k"
        [ "$k" = vfat ] && options=$options,utf8
        if ! $B mount -t "$k" -o "$options" "$dev" /mnt 2>/tmp/why; then
            # Without the time of each line, and without the bytes that XFS shows.
            $B dmesg | $B sed -e 's/^\[[^]]*\] *//' -e '/: [0-9a-f]\{8\}: /d' >/tmp/said
            newer=$($B grep -iE 'unsupported.*(feature|revision)|(unknown|unrecognized).*(feature|option)' /tmp/said)
            [ -z "$newer" ] || finish "newer $k $($B printf '%s' "$newer" | $B head -n 2 | $B tr '\n' ' ')"
            finish "unmountable $k $($B tail -n 2 /tmp/said | $B tr '\n' ' ')"
        fi
        state=clean
        $B dmesg | $B grep -qE 'recovery complete|Ending recovery|tree-log replay|orphan inode' && state=replayed
        case $k in vfat|exfat) state=none ;; esac
    fi
    $B grep -q ' /mnt [^ ]* ro[, ]' /proc/mounts && state=not-replayed
    say "state $n $k $state"
}

# One answer at a time: head reads as much as is there, and keeps what it does not need.
named() { say "$1"; read -r n <&4; $B head -c "$n" <&4 >"/tmp/$1"; }
sums() {
    named files
    named links
    [ -s /tmp/files ] && $B xargs -0 $B sha256sum </tmp/files >&3 2>>/tmp/why
    [ -s /tmp/links ] && $B xargs -0 -n 1 $B sh -c "$B readlink \"\$1\" | $B sha256sum" x </tmp/links >&3 2>>/tmp/why
}

# Of a directory that fits only what is in it goes: programs expect their directories, with their owner and mode.
SCRUB='if [ -d "$1" ] && [ ! -L "$1" ]; then find "$1" -mindepth 1 -maxdepth 1 -exec rm -rf -- {} +
    else rm -f -- "$1"; fi'
scrub() {
    n=$#
    while [ $n -gt 0 ]; do
        p=$1; shift; n=$((n - 1))
        case $p in */*) set -- "$@" -o -path "./${p#/}" ;; *) set -- "$@" -o -name "$p" ;; esac
    done
    shift
    [ "$state" = not-replayed ] && finish readonly
    free() { $B sync; set -- $($B stat -f -c '%f %S' /mnt); freed=$(($1 * $2 - freed)); }
    freed=0; free
    $B find . -xdev ! -path . \( "$@" \) -print0 -prune >/tmp/matched 2>>/tmp/why
    count=$($B tr -cd '\0' </tmp/matched | $B wc -c)
    [ "$count" = 0 ] || $B xargs -0 -n 1 $B sh -c "$SCRUB" x </tmp/matched 2>>/tmp/why
    cd /
    # XFS gives back what removed files held later, beside other work; it comes to an end with that to become read-only.
    if [ "$k" = xfs ]; then
        for way in ro "$options"; do $B mount -t xfs -o "remount,$way" "$dev" /mnt 2>>/tmp/why; done
    fi
    free
    $B fstrim /mnt 2>/tmp/trim || finish "untrimmed $k $($B head -n 1 /tmp/trim)"
    $B umount /mnt 2>/tmp/trim || finish "mounted $k $($B head -n 1 /tmp/trim)"
    [ -s /tmp/why ] && say "why $($B head -n 3 /tmp/why | $B tr '\n' ' ')"
    say "scrubbed $count $freed"
    finish "done 0"
}

serve() {
    find_file_system "$1"
    mount_it
    cd /mnt || finish unmountable
    . "$PATHS"
    [ "$WHAT" = scrub ] && scrub "$@"
    for p; do
        shift
        if [ -e "$p" ] || [ -L "$p" ]; then set -- "$@" "$p"; else say "absent $p"; fi
    done
    [ $# = 0 ] && [ "$WHAT" != compare ] && finish done 0
    [ $# = 0 ] && set -- /nothing
    rows="$NONCE=%f %s %Y %n"
    case $WHAT in
    list) say rows; $B find "$@" -maxdepth 1 -exec $B stat -c "$rows" {} + >&3 2>/tmp/why; status=$? ;;
    walk) say rows; $B find "$@" -exec $B stat -c "$rows" {} + >&3 2>/tmp/why; status=$? ;;
    get) say tar; $B tar -c -f - -- "$@" >&3 2>/tmp/why; status=$? ;;
    compare) say rows; rows="$NONCE=%f %s %Y %u:%g %y %z %n"; status=0
        [ "$1" = /nothing ] || { $B find "$@" -exec $B stat -c "$rows" {} + >&3 2>/tmp/why; status=$?; }
        $B printf '\n' >&3; sums ;;
    esac
    $B printf '\n' >&3
    [ -s /tmp/why ] && say "why $($B head -n 3 /tmp/why | $B tr '\n' ' ')"
    finish "done $status"
}

for disk in $DISKS; do
    : >/tmp/why
    ( serve "$disk" )
    $B umount /mnt 2>/dev/null || $B umount -l /mnt 2>/dev/null
done
"""

START = f"{_BOOT}\n{SERVE}$B sleep 0.1\n$B poweroff -f\n"
"""What a small guest starts with."""
