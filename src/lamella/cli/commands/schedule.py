"""`lamella schedule`: have a profile run by systemd, or by cron, and watched."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from lamella.base.clock import now_ms
from lamella.base.durable import sync_directory
from lamella.base.errors import LamellaError, NothingMatched, UsageError
from lamella.cli.actions import add_actions
from lamella.cli.arguments import add_dry_run
from lamella.cli.context import Context
from lamella.cli.everyday import units
from lamella.cli.everyday.profiles import Profile, is_profile_name, require_profile
from lamella.memory.runs import Profiles
from lamella.run.spawn import run as run_program

SYSTEMD = Path("/run/systemd/system")
_SECONDS = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    add = add_actions(parser, "action")
    install = add("install", "write the timers of a profile and start them")
    _add_profile(install)
    install.add_argument("--print", action="store_true", help="print the units, or the lines for cron; write nothing")
    install.add_argument(
        "--on-mount", action="store_true", help="also run the profile when a disk of its repositories is mounted"
    )
    _add_profile(add("remove", "stop the timers of a profile and remove them"))
    _add_profile(add("show", "show the timers of a profile and when they run next"), dry_run=False)


def _add_profile(parser: argparse.ArgumentParser, *, dry_run: bool = True) -> None:
    parser.add_argument("profile", metavar="PROFILE", help="a [profiles.PROFILE] of the configuration")
    parser.add_argument(
        "--user", action="store_true", help="timers of your own user; root's are the system's (default for other users)"
    )
    parser.add_argument("--cron", action="store_true", help="use cron although systemd is there")
    if dry_run:
        add_dry_run(parser)


def run(context: Context) -> int:
    """Do it."""
    args = context.args
    if not is_profile_name(args.profile):
        raise UsageError(f"no profile can be called {args.profile}", obj=args.profile)
    place: _Systemd | _Cron = _Cron(context) if args.cron or not SYSTEMD.is_dir() else _Systemd(context)
    if args.action == "install":
        return _install(context, place)
    return place.remove() if args.action == "remove" else place.show()


def _install(context: Context, place: _Systemd | _Cron) -> int:
    profile = require_profile(context.config.profiles, context.args.profile)
    if context.args.print or context.args.dry_run:
        files = place.texts(profile)
        for name, text in files.items():
            for line in [f"# {name}", *text.splitlines()]:
                context.out.line(line)
        context.out.document({"dry_run": True, "files": files})
        return 0
    place.install(profile)
    # From now on the watch counts the days without a good backup.
    Profiles(context.host).see(profile.name, now_ms(), profile.messages)
    return 0


def _mounts(context: Context, profile: Profile) -> list[str]:
    """The units of the mount points where repositories of a profile may come. Raises UsageError if none is a path."""
    from lamella.cli.destination import named_destinations
    from lamella.cli.media import members

    names = members(context.config, profile.repositories or named_destinations(context))
    places = [context.named_place(name)[0].removeprefix("file:") for name in names]
    found = units.mount_units(place for place in places if place.startswith("/"))
    if not found:
        raise UsageError("--on-mount: no repository of the profile is a path of this machine", obj=profile.name)
    return found


def _program() -> list[str]:
    """The command that starts this Lamella again, wherever it is installed."""
    script = Path(sys.argv[0]).absolute()
    if script.name == "lamella" and os.access(script, os.X_OK):
        return [str(script)]
    return [sys.executable, "-m", "lamella"]


class _Systemd:
    """Units of the system or of a user."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._user = context.args.user or os.geteuid() != 0
        home = context.env.get("XDG_CONFIG_HOME") or f"{context.env.get('HOME', '')}/.config"
        if self._user and not Path(home).is_absolute():
            raise UsageError("there is no home directory to keep the timers in: set HOME")
        self._folder = Path(home) / "systemd/user" if self._user else Path("/etc/systemd/system")

    def texts(self, profile: Profile) -> dict[str, str]:
        """Path -> text of each unit."""
        mounts = _mounts(self._context, profile) if self._context.args.on_mount else []
        made = units.units(profile, _program(), self._context.env, user=self._user, mounts=mounts)
        return {str(self._folder / name): text for name, text in made.items()}

    def install(self, profile: Profile) -> None:
        """Write, load, enable and start."""
        units.require_time(profile.schedule.when, f"profiles.{profile.name}.schedule.when")
        self._systemctl("daemon-reload")  # where no manager answers nothing is written
        texts = self.texts(profile)
        for path, text in texts.items():
            _write(Path(path), text)
        sync_directory(self._folder)
        timers = [name for name in units.names(profile.name) if name.endswith(".timer")]
        self._systemctl("daemon-reload")
        self._systemctl("enable", "--now", *timers)
        services = [
            Path(path).name for path, text in texts.items() if "[Install]" in text and path.endswith(".service")
        ]
        if services:
            self._systemctl("enable", *services)
        out = self._context.out
        out.line(f"{profile.name} runs {profile.schedule.when}; next: {self._next(timers[0])}")
        if self._user:
            out.say("a user's timers run while the user is logged in, or always after: loginctl enable-linger")
        out.document({"profile": profile.name, "units": list(self.texts(profile)), "next": self._next(timers[0])})

    def remove(self) -> int:
        """Stop, disable and delete. Nothing there is code 4."""
        found = [name for name in units.names(self._context.args.profile) if (self._folder / name).exists()]
        if not found:
            raise NothingMatched(f"no timer of {self._context.args.profile} is installed", obj=str(self._folder))
        if not self._context.args.dry_run:
            on_mount = units.names(self._context.args.profile)[-1]
            begun = [name for name in found if name.endswith(".timer") or name == on_mount]
            self._systemctl("disable", "--now", *begun)
            for name in found:
                (self._folder / name).unlink(missing_ok=True)
            self._systemctl("daemon-reload")
        would = "would remove" if self._context.args.dry_run else "removed"
        self._context.out.line(f"{would} {', '.join(found)}")
        self._context.out.document({"removed": found, "dry_run": self._context.args.dry_run})
        return 0

    def show(self) -> int:
        """The installed timers, and their next runs."""
        name = self._context.args.profile
        found = [unit for unit in units.names(name) if (self._folder / unit).exists()]
        if not found:
            raise NothingMatched(f"no timer of {name} is installed", obj=str(self._folder), hint=_hint(name))
        rows = [(unit, self._next(unit)) for unit in found if unit.endswith(".timer")]
        self._context.out.table([("TIMER", "NEXT"), *rows])
        self._context.out.document({"profile": name, "timers": [{"unit": one, "next": when} for one, when in rows]})
        return 0

    def _next(self, timer: str) -> str:
        shown = self._systemctl("show", "--property=NextElapseUSecRealtime", "--value", timer)
        return shown.strip() or "not scheduled"

    def _systemctl(self, *words: str) -> str:
        scope = ["--user"] if self._user else []
        try:
            return run_program(["systemctl", *scope, *words], timeout_seconds=_SECONDS).decode("utf-8", "replace")
        except LamellaError as error:
            if self._user and not error.hint:
                error.hint = "the timers of a user need a login, or once: loginctl enable-linger"
            raise


class _Cron:
    """Lines between two marks in the user's crontab."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def texts(self, profile: Profile) -> dict[str, str]:
        """The lines, as one text. Raises UsageError for what only systemd can do."""
        if self._context.args.on_mount:
            raise UsageError("cron notices no mount: --on-mount needs systemd")
        return {"crontab": "\n".join(self._new_lines(profile))}

    def install(self, profile: Profile) -> None:
        """Put the lines into the crontab, in place of older ones."""
        self.texts(profile)
        if shutil.which("crontab") is None:
            hint = f"lamella schedule install --print {profile.name} shows what should run"
            raise LamellaError("neither systemd nor cron runs here", hint=hint)
        lines = self._new_lines(profile)
        self._write([*units.without(self._lines(), profile.name), *lines])
        for line in lines:
            self._context.out.line(line)
        self._context.out.document({"profile": profile.name, "crontab": lines})

    def _new_lines(self, profile: Profile) -> list[str]:
        if profile.schedule.when not in units.CRON:
            known = ", ".join(units.CRON)
            self._context.out.warn(f"cron knows {known}: {profile.name} will run daily, not '{profile.schedule.when}'")
        if profile.schedule.memory_max is not None:
            self._context.out.warn(f"cron limits no memory: memory_max of {profile.name} counts with systemd alone")
        return units.crontab_lines(profile, _program(), self._context.env)

    def remove(self) -> int:
        """Take the lines out."""
        name, lines = self._context.args.profile, self._lines()
        kept = units.without(lines, name)
        if kept == lines:
            raise NothingMatched(f"no line of {name} is in the crontab")
        if not self._context.args.dry_run:
            self._write(kept)
        self._context.out.line(f"{'would remove' if self._context.args.dry_run else 'removed'} {name} from the crontab")
        self._context.out.document({"removed": [name], "dry_run": self._context.args.dry_run})
        return 0

    def show(self) -> int:
        """The lines."""
        name, lines = self._context.args.profile, self._lines()
        kept = units.without(lines, name)
        own = [line for line in lines if line not in kept and not line.startswith("#")]
        if not own:
            raise NothingMatched(f"no line of {name} is in the crontab", hint=_hint(name))
        for line in own:
            self._context.out.line(line)
        self._context.out.document({"profile": name, "crontab": own})
        return 0

    def _lines(self) -> list[str]:
        try:
            return run_program(["crontab", "-l"], timeout_seconds=_SECONDS).decode("utf-8", "replace").splitlines()
        except LamellaError as error:
            if "no crontab" in error.message:
                return []
            raise

    def _write(self, lines: list[str]) -> None:
        text = "".join(f"{line}\n" for line in lines)
        run_program(["crontab", "-"], input=text.encode(), timeout_seconds=_SECONDS)


def _hint(profile: str) -> str:
    return f"install it with: lamella schedule install {profile}"


def _write(path: Path, text: str) -> None:
    """A unit, readable for everybody: it holds no secret."""
    made = path.with_name(f".{path.name}.lamella-partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        made.write_text(text, "utf-8")
        made.chmod(0o644)
        made.replace(path)
    except OSError as error:
        raise LamellaError(f"cannot write {path}: {error.strerror}", obj=str(path)) from error
