"""The command line: the only part of Lamella that prints, asks, reads the environment and ends the process."""
