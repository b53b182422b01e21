"""The disks of a running QEMU, asked for over its monitor (QMP): all of them at one moment."""
