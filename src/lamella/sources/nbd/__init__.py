"""Volumes that an NBD server exports: QEMU, qemu-nbd, qemu-storage-daemon, nbdkit and others."""
