"""Stores behind a pipe: client, server and agent (PIPE)."""
