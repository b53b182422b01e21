"""Thin volumes of LVM."""
