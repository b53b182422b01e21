"""Datastores of Proxmox Backup Server (proxmox-backup: file-formats.rst, technical-overview.rst)."""
