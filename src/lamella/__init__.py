"""Encrypted, deduplicating, incremental backups of virtual machine volumes: the public interface, all of it.

    with lamella.open("/mnt/backup/lamella", keyfile="/etc/lamella/main.key") as repo:
        saved = repo.backup("/srv/vm/*.img")
        repo.restore(f"web@{saved.snapshot}", "copy.img")
        assert not repo.verify().damaged
        repo.prune(keep_daily=14, keep_weekly=8)

`open` is the short way. The other names are its parts, for programs that plan first, choose keys, copy or mirror.
A name is imported when it is first used: `public` says from where, and __init__.pyi tells type checkers. Nothing but
`Host.here` reads the environment: every other host is what its caller says. Names that are not in `__all__` may change
at any time.
"""


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    # Nothing is imported beforehand: an early Ctrl-C must find an entry point.
    from importlib import import_module

    if name.startswith("__") and name != "__all__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    public = import_module("lamella.public")
    found: object = sorted(public.HOME_OF) if name == "__all__" else public.found(name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """The public names, also those not imported yet."""
    names: list[str] = __getattr__("__all__")  # type: ignore[assignment]
    return sorted({*globals(), *names})
