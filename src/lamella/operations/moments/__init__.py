"""Frozen moments of volumes: taking, keeping and rotating them."""
