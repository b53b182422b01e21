"""The disks of a libvirt domain, running or halted: all of them at one moment."""
