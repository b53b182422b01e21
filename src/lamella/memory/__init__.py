"""What this host remembers between runs, in its state directory."""
