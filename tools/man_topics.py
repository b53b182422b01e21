"""The manual pages that belong to no command: the configuration, the environment, and two documents of the project."""

from __future__ import annotations

CONFIGURATION_TEXT = """\
Root's configuration is /etc/lamella/*.toml, that of other users $XDG_CONFIG_HOME/lamella/*.toml, in order of their
names; LAMELLA_CONFIG names another file or directory. The files are TOML. An unknown key is an error that names the
file, the line and the nearest key: lamella config validate shows all of them. Options of the command line win.
"""

EXAMPLE = """\
# the repository that is used when none is named
default_repository = "usb"

[repositories.usb]
url = "/mnt/usb/lamella"
# at most one of keyfile, passphrase_file, passphrase_command
passphrase_file = "/etc/lamella/usb.passphrase"

[repositories.cloud]
url = "s3://backups/hosts/one?region=eu-central-1"
keyfile = "/etc/lamella/key"
# bytes a second in both directions, as --limit-rate
limit_rate = "5M"

[backup]
compression = "auto"
workers = 4

[prune]
# the calendar of all rules; without rules here or on the command line nothing is removed
zone = "Europe/Berlin"
keep_last = 3
keep_daily = 14
keep_monthly = "all"
# also keep_hourly, keep_weekly, keep_yearly, keep_within = "30d", keep_tags = ["release"],
# thin_older = ["1d:hour", "30d:week"]

# rules of one volume, instead of the general ones
[prune.volumes."work:private"]
keep_within = "1y6m"
"""

KEYS: dict[str, dict[str, str]] = {
    "Outside of tables": {
        "default_repository": "The repository that is used when none is named.",
    },
    "[repositories.NAME]": {
        "url": "Where it is: a path, ssh://, sftp://, s3://, rclone: or qubes://. The only key that must be there.",
        "keyfile": "A file whose content is the secret. Give one of keyfile, passphrase_file, passphrase_command.",
        "passphrase_file": "A file that holds the passphrase.",
        "passphrase_command": "A command that prints the passphrase; split into words, run without a shell.",
        "limit_rate": 'Bytes a second in both directions, as "5M", or by the time of day, as "1M@08:00-18:00,20M".',
        "ssh_command": "Instead of ssh, with options of its own.",
        "id": "The id of the only repository that counts as this one, of several that may be at the place.",
    },
    "[media.NAME]": {
        "repositories": "Names of repositories on media that take turns; each has an id. Must be there.",
        "stale_after": 'So long without a backup to any of them, and status warns, as "14d" (the default).',
    },
    "[backup]": {
        "compression": "auto, off, portable, or a level of zstd from 1 to 19.",
        "workers": "How many ranges are worked on at the same time.",
        "before": "A command before volumes are frozen.",
        "after": "A command as soon as they are.",
        "hook_seconds": "How long each of the two may take.",
        "checkpoint_dir": "Where checkpoints of files go, instead of .lamella beside them.",
        "domain": "The domain of volumes that are backed up for the first time.",
        "repositories": "Where backups go if no repository is named: all of these.",
        "read_rate": "Bytes a second that are read of sources.",
        "require_consistent": "true: a volume that changed while it was read is not published.",
        "deltas": "true: of a chunk only the blocks that changed are stored, where a checkpoint is kept.",
        "reread": "Bytes of unchanged data that every incremental backup reads and compares.",
        "check_compression": "sample or all: how many compressed chunks are decoded again before they are stored.",
        "chunk_size": 'Of volumes that are backed up for the first time, as "64K".',
        "backing_dirs": "Directories whose files a disk image may need, beside its own.",
        "exclude": "What is left out of directories and patterns.",
        "scrub": "Patterns of files that are left out of the volumes themselves, as for backup --scrub.",
    },
    "[lvm]": {
        "data_percent": "How full the data of a thin pool may be for a snapshot to be made in it.",
        "metadata_percent": "The same for its metadata.",
    },
    "[prune] and [prune.volumes.NAME]": {
        "zone": "The time zone of the calendar ([prune] alone).",
        "keep_last": "So many of the newest.",
        "keep_within": 'All that are younger, as "30d" or "1y6m".',
        "keep_hourly": "The newest of each of so many hours that have any.",
        "keep_daily": 'The same for days; a number or "all".',
        "keep_weekly": "The same for weeks.",
        "keep_monthly": "The same for months.",
        "keep_yearly": "The same for years.",
        "keep_tags": "All that have one of these tags.",
        "thin_older": 'One of each period beyond an age, as ["1d:hour", "30d:week"].',
    },
    "[profiles.NAME]": {
        "sources": "Absolute paths, directories, patterns, or sources with a driver such as lvm:.",
        "exclude": "Patterns of files that are left out.",
        "scrub": "Patterns of files that are left out of the volumes themselves, as for backup --scrub.",
        "repositories": "Where the backup goes; without it as for lamella backup.",
        "copy_to": "Repositories that snapshots are copied to afterwards.",
        "compression": "As in [backup], for this profile.",
        "domain": "As in [backup].",
        "require_consistent": "As in [backup], for this profile.",
        "prune": "true: by the rules of [prune]; or a table of rules; without it nothing is removed.",
        "verify": 'What is read back after each run: an amount as "10GiB", structure, sample, full, or false.',
        "stale_after": 'So long without a good snapshot, and somebody is told, as "3d".',
    },
    "[profiles.NAME.hooks]": {
        "before": "A command before the run; if it fails nothing runs.",
        "after": "A command after it, however it ended.",
        "success": "A command when every step was done.",
        "failure": "A command when one was not.",
        "stale": "A command when there was no good snapshot for too long.",
    },
    "[profiles.NAME.notify]": {
        "command": "A command that gets the message as JSON on standard input.",
        "ping": "An address that is asked for, with /fail behind it after a failure.",
        "mail": "An address that gets a letter through sendmail.",
        "desktop": "true: a notification on the desktop.",
        "apprise": "Addresses of services that apprise knows, as ntfys://ntfy.sh/topic (extra [notify]).",
        "nobody": "true: status does not warn that nobody is told.",
    },
    "[profiles.NAME.qubes]": {
        "names": "Save these qubes. An empty table: those that are marked for backups.",
        "tags": "Save the qubes with one of these tags.",
        "labels": "Save the qubes with one of these labels.",
        "everything": "true: save every qube, dom0 included.",
        "exclude": "Qubes that are left out.",
        "committed": "true: running qubes as they were at their last shutdown.",
        "pause": "true: pause running qubes while the checkpoints are made.",
        "template_roots": "false: leave out the root volumes of templates.",
    },
    "[profiles.NAME.files]": {
        "directories": "Save these directories file by file, each as a volume of its own.",
        "exclude": "Patterns of files and directories that are left out, as for files backup.",
        "exclude_caches": "true: leave out directories with a CACHEDIR.TAG.",
        "exclude_inside": "The name of a file in which a directory says what is left out below it.",
        "one_file_system": "true: stay out of other file systems mounted there.",
    },
    "[profiles.NAME.conditions]": {
        "ac_power": "true: only on mains.",
        "unmetered": "true: not over a network that is metered.",
        "ssid": "Only in one of these wireless networks.",
        "window": 'Only at this time of day, as "22:00-06:00".',
    },
    "[profiles.NAME.drill]": {
        "volumes": "These volumes; by default those that the run saved.",
        "every": 'So long after its last drill a volume is due again, as "30d" (default).',
        "budget": 'No further drill of a run begins after this time, as "15m" (default).',
        "kernel": "The kernel of the small guest, for volumes that cannot boot.",
    },
    "[profiles.NAME.schedule]": {
        "when": "A time as systemd.time(7) has it, such as daily.",
        "random_delay": "At most so much later, by chance.",
        "memory_max": 'The memory of a run with its drills, as "2G"; systemd alone keeps it.',
    },
}
"""Every key, by its table."""

DOCUMENTS = {
    ("lamella-emergency", 7): ("guide/emergency.md", "restore with nothing but the repository, Python and a secret"),
    ("lamella-format", 5): ("FORMAT.md", "the repository, byte by byte"),
}
"""Page and section -> the document that it shows, and its name in one line."""
