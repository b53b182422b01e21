"""A store behind a server of the SSH File Transfer Protocol: sshd's own, or rclone's."""
