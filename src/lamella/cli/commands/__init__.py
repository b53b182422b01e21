"""One module a command: `add_arguments(parser)`, and `run(context)` which returns the exit code."""
