"""Images of Ceph RBD."""
