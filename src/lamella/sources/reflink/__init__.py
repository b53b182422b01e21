"""Images on file systems that clone: Btrfs and XFS."""
