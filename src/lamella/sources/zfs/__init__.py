"""Volumes of ZFS."""
