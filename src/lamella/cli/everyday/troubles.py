"""From results to messages: each trouble is told once, and once more when it is over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from lamella.base.clock import iso, now_ms
from lamella.base.errors import LamellaError, RepositoryError
from lamella.cli.context import Context
from lamella.cli.everyday.messages import Message, notify, ping, run_hook
from lamella.cli.everyday.profiles import Profile, messages_from
from lamella.cli.everyday.steps import SKIPPED, StepResult, well_saved
from lamella.cli.local_time import shown_time
from lamella.memory.runs import ProfileRecord, Profiles, goes_on

CONFIGURATION = "configuration"
RUN = "run"
"""The trouble of a run that was broken off, by the kernel or the power."""
_AHEAD_MS = 3_600_000
"""A last run so far in the future was not the last one: the clock was set back since."""


class Reporting:
    """The messages of one profile. What cannot be delivered is a warning, and is tried again at the next occasion."""

    def __init__(self, context: Context, name: str, profiles: Profiles, profile: Profile | None = None) -> None:
        self.profiles = profiles
        self._context = context
        self._name = name
        # Without a readable profile, whom it told when it could still be read.
        known = messages_from(profiles.of(name).messages)
        self._hooks, self._notify = known if profile is None else (profile.hooks, profile.notify)

    def began(self) -> None:
        """Tell the monitor that a run begins."""
        ping(self._notify, "start", self._warn)

    def hook(self, event: str) -> None:
        """Run the command of the profile for "before" or "after". Raises LamellaError if it fails."""
        run_hook(self._hooks, self._message(event, f"{event} the run"))

    def ended(self, rows: Sequence[StepResult], record: ProfileRecord) -> None:
        """Tell of new troubles and of those that are over, and run the hook for the outcome."""
        # What was skipped follows from another failure, which is told.
        now = {_key(row): row.text or row.word for row in rows if row.failed and row.code != SKIPPED}
        seen = {_key(row) for row in rows if row.code == 0} | {CONFIGURATION, RUN}
        seen |= {f"stale {name}" for name in well_saved(rows)}
        details = {"steps": [_step(row) for row in rows]}
        event = "failure" if now else "success"
        text = _joined(now) or "every step was done"
        with self._surviving():
            run_hook(self._hooks, self._message(event, text, details=details))
        ping(self._notify, "fail" if now else "", self._warn, text.encode("utf-8", "replace"))
        self._tell("failure", now, seen & record.troubles.keys(), details)

    def unreadable(self, error: LamellaError) -> None:
        """The configuration cannot be used, so nothing runs."""
        text = f"the profile {self._name} cannot run: {error.message}"
        with self._surviving():
            run_hook(self._hooks, self._message("failure", text))
        ping(self._notify, "fail", self._warn, text.encode("utf-8", "replace"))
        if self._name in self.profiles.all():
            self._tell("failure", {CONFIGURATION: text}, set(), {})

    def check_broken_off(self, *, alone: bool = False) -> str:
        """Tell of a run that was broken off. Returns what happened; empty if the last one ended, or goes on.

        `alone`: whoever asks holds the lock of runs, so none goes on.
        """
        record = self.profiles.of(self._name)
        why = broken_off(record) if alone or not goes_on(self._context.host, self._name) else ""
        if why and RUN not in record.troubles:
            with self._surviving():
                run_hook(self._hooks, self._message("failure", why))
            ping(self._notify, "fail", self._warn, why.encode())
            self._tell("failure", {RUN: why}, set(), {})
        return why

    def check_stale(self, repositories: Sequence[str], after_ms: int) -> dict[str, str]:
        """Tell of repositories without a good snapshot for too long. Returns them with the reason."""
        record, now = self.profiles.of(self._name), now_ms()
        stale = {}
        for name in repositories:
            media = self._context.config.media.get(name)
            why = staleness(record, name, after_ms if media is None else media.stale_after, now)
            if why:
                stale[f"stale {name}"] = why
        fine = {f"stale {name}" for name in repositories} - stale.keys()
        new = [stale[about] for about in sorted(stale.keys() - record.troubles.keys())]
        if new:
            with self._surviving():
                run_hook(self._hooks, self._message("stale", "; ".join(new)))
        self._tell("stale", stale, fine & record.troubles.keys(), {})
        return stale

    # -- telling ------------------------------------------------------------------------------------------------------

    def _tell(self, event: str, now: Mapping[str, str], over: set[str], details: Mapping[str, Any]) -> None:
        """Send one message for what is new and one for what is over, and remember what was told."""
        troubles = self.profiles.of(self._name).troubles
        new = {about: text for about, text in now.items() if about not in troubles}
        if new and not self._send(self._message(event, _joined(new), tuple(new), details)):
            new = {}
        if over and not self._send(
            self._message("over", f"well again: {', '.join(sorted(over))}", tuple(sorted(over)))
        ):
            over = set()
        if not new and not over:
            return
        time_ms = now_ms()

        def update(one: ProfileRecord) -> ProfileRecord:
            kept = {about: since for about, since in one.troubles.items() if about not in over}
            return replace(one, troubles={**kept, **dict.fromkeys(new, time_ms)})

        try:
            self.profiles.change(self._name, update)
        except RepositoryError as error:  # it will be told twice, which is better than never
            self._warn(error.message)

    def _send(self, message: Message) -> bool:
        """Whether the message needs not to be sent again."""
        ways = (self._notify.command, self._notify.mail, self._notify.desktop, self._notify.apprise)
        return notify(self._notify, message, self._warn) or not any(ways)

    def _message(
        self, event: str, text: str, about: tuple[str, ...] = (), details: Mapping[str, Any] | None = None
    ) -> Message:
        return Message(event, self._name, self._context.host.label, now_ms(), text, about, details or {})

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        """An error inside is a warning: a hook that fails must not hide what it was called for."""
        try:
            yield
        except LamellaError as error:
            self._warn(f"a hook failed: {error.message}")

    def _warn(self, text: str) -> None:
        self._context.out.warn(text)


def broken_off(record: ProfileRecord) -> str:
    """What became of a run that did not end, if none goes on; empty if it ended."""
    if not record.began_ms:
        return ""
    when = f"the run of {shown_time(iso(record.began_ms))} was broken off"
    return (
        f"{when}: it was killed, perhaps for want of memory, or the machine stopped; its log and the kernel's say more"
    )


def staleness(record: ProfileRecord, repository: str, after_ms: int, now: int) -> str:
    """Why a repository counts as stale; empty if it does not."""
    good = record.good.get(repository, 0)
    if good > now + _AHEAD_MS:
        return f"the last good backup to {repository} lies in the future: the clock of this machine was set back"
    since = good or record.first_ms
    if not since or now - since <= after_ms:
        return ""
    days = f"{(now - since) / 86_400_000:.1f} days"
    return f"no good backup to {repository} " + (f"for {days}" if good else f"yet, {days} after the profile was made")


def _joined(troubles: Mapping[str, str]) -> str:
    """The troubles with their reasons; several of the same reason together."""
    together: dict[str, list[str]] = {}
    for about, why in troubles.items():
        together.setdefault(why, []).append(about)
    return "; ".join(f"{', '.join(abouts)}: {why}" for why, abouts in together.items())


def _key(row: StepResult) -> str:
    return f"{row.step} {row.repository}".strip()


def _step(row: StepResult) -> dict[str, object]:
    return {"step": row.step, "repository": row.repository, "result": row.word, "reason": row.text}
