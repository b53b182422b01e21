"""From the command line to the exit code: the one place where errors become lines and numbers."""

from __future__ import annotations

import gc
import os
import sys

# The interpreter has loaded these by itself, or has them built in. Everything else is imported where it is needed:
# --help must be quick, and `entry` must catch a Ctrl-C that comes while modules are imported.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping, Sequence


def entry() -> None:
    """The command `lamella`."""
    if sys.getfilesystemencoding() != "utf-8" and sys.executable:
        # Names are UTF-8 on the disk whatever the locale says, and a repository is shared by machines with others.
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    try:
        code = _guarded(sys.argv[1:])
    except KeyboardInterrupt:
        code = 130  # as a shell says it of a program that SIGINT ended
    gc.freeze()  # the interpreter ends, and would search everything for garbage once more: 10 ms
    sys.exit(code)


def _guarded(argv: Sequence[str]) -> int:
    env = dict(os.environ)
    # A history is many small objects that live to the end: the collector's usual pace costs a quarter of reading them.
    gc.set_threshold(100_000, 50, 100)
    _take_streams()
    from lamella.cli import signals
    from lamella.run.private import is_secret, keep_memory_private

    keep_memory_private()
    for name in filter(is_secret, env):
        del os.environ[name]  # no program that is started from here inherits a secret
    signals.take()
    try:
        return _flushed(main(argv, env))
    finally:
        signals.leave()


def _flushed(code: int) -> int:
    """Flush standard output. A failure there is a failure of the command; a closed pipe is not."""
    try:
        sys.stdout.flush()
    except OSError as error:
        from lamella.cli.nowhere import drop

        drop(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            sys.stderr.write(f"lamella: cannot write the result: {error.strerror}\n")
            return code or 1
    return code


def _take_streams() -> None:
    """Open the three streams that are closed, and make every name printable.

    Otherwise the next file to be opened would get the number of the closed stream, and messages would go into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def main(argv: Sequence[str], env: Mapping[str, str]) -> int:
    """Run one command and return its exit code. Never raises a LamellaError."""
    from lamella.base.errors import UsageError
    from lamella.cli.arguments import build, parse

    try:
        args = parse(argv)
    except UsageError as error:
        from lamella.cli.near import failed_before_parsing

        return failed_before_parsing(argv, error)
    except SystemExit as done:  # argparse ends so after --help
        return done.code if isinstance(done.code, int) else 0
    if args.version:
        return _version()
    if args.command is None:
        if not (args.json or args.json_lines):
            build().print_help(sys.stderr)
        from lamella.cli.near import failed_before_parsing

        return failed_before_parsing(argv, UsageError("no command is named", hint="see: lamella --help"))
    return _command(args, env)


def _command(args: Namespace, env: Mapping[str, str]) -> int:
    from lamella.base.errors import Interrupted, LamellaError
    from lamella.cli.arguments import load
    from lamella.cli.output import Output

    # --quiet takes nothing of what only tells something.
    out = Output(
        args.command,
        as_json=args.json,
        as_events=args.json_lines,
        quiet=args.quiet,
        verbose=args.verbose,
        answers=args.command in ("list", "info", "diff", "config") or getattr(args, "dry_run", False),
    )
    try:
        from lamella.cli.context import Context

        return load(args.command).run(Context(args, env, out))
    except LamellaError as error:
        _trace(args.debug)
        return out.failure(error, error.exit_code)
    except KeyboardInterrupt:
        _trace(args.debug)
        stopped = Interrupted("interrupted", hint="the repository is whole; run the command again")
        return out.failure(stopped, stopped.exit_code)
    except OSError as error:  # a path of the user's that cannot even be looked at
        _trace(args.debug)
        place = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else ""
        return out.failure(LamellaError(error.strerror or str(error), obj=place), 1)
    except Exception as error:  # noqa: BLE001  (a fault of ours is still one line for the user; --debug shows the rest)
        _trace(args.debug)
        text = " ".join(f"internal error: {type(error).__name__}: {error}".split())
        hint = "" if args.debug else "run it again with --debug and report what it shows"
        return out.failure(LamellaError(text, hint=hint), 1)
    finally:
        out.clear()


def _version() -> int:
    from importlib.metadata import version

    print(f"lamella {version('lamella')}")
    return 0


def _trace(wanted: bool) -> None:
    if wanted:
        import traceback

        traceback.print_exc()
