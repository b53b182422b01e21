"""The file that `lamella config init` writes: all of it comments, so that nothing happens until its reader says so."""

from __future__ import annotations

EXAMPLE = """\
# Configuration of Lamella. Remove the "# " before what you want; an unknown key is an error.
# Check it with: lamella config validate

# default_repository = "usb"

# [repositories.usb]
# url = "/mnt/usb/lamella"                    # a path, ssh://, sftp://, s3://, rclone: or qubes://
# passphrase_file = "/etc/lamella/usb.pass"   # or keyfile, or passphrase_command

# [prune]
# zone = "UTC"
# keep_last = 3
# keep_daily = 14
# keep_weekly = 8
# keep_monthly = 12

# [profiles.nightly]                          # lamella run nightly; lamella schedule install nightly
# sources = ["/var/lib/libvirt/images/*.qcow2"]
# repositories = ["usb"]                      # instead of sources, or beside them: the tables qubes and files
# prune = true                                # by the rules of [prune]
# verify = "10GiB"                            # read so much back after each run, the longest unread first
# stale_after = "3d"                          # so long without a good backup, and somebody is told

# [profiles.nightly.notify]
# mail = "root"                               # or command, ping, desktop
"""
