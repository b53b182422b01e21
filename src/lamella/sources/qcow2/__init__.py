"""Disks in qcow2 files: what a header says, which other files may be opened for it, and what a guest sees."""
