"""`lamella run`: everything that a profile says: backup, prune, verify, copy, and the messages about it."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from lamella.base.clock import local_now, now_ms
from lamella.base.errors import Absent, Interrupted, LamellaError, UsageError
from lamella.cli.arguments import SECRETS, add_dry_run
from lamella.cli.context import Context
from lamella.cli.everyday.conditions import unmet
from lamella.cli.everyday.profiles import Profile, require_profile
from lamella.cli.everyday.steps import ABSENT, SAVING, StepResult, Steps, well_saved
from lamella.cli.everyday.troubles import Reporting
from lamella.cli.output import INCOMPLETE
from lamella.cli.shown import shown_seconds
from lamella.memory.runs import ProfileRecord, Profiles, StepRecord, lock_of
from lamella.memory.writing import held_file

POSTPONED = Absent.exit_code
_INSTANT_SECONDS = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.epilog = (
        "exit codes of run: 0 every step was done, 3 a step failed (the output and the messages say which), 11 the\n"
        "profile is running already, 75 no destination is there or a condition of the profile is not met.\n\n"
    ) + SECRETS
    parser.add_argument("profile", metavar="PROFILE", help="a [profiles.PROFILE] of the configuration")
    parser.add_argument("--now", action="store_true", help="run even if a condition of the profile is not met")
    add_dry_run(parser)


def run(context: Context) -> int:
    """Do it."""
    profiles = Profiles(context.host)
    try:
        profile = require_profile(context.config.profiles, context.args.profile)
        steps = Steps(context, profile)
    except UsageError as error:
        # Nobody reads the output of a timer: whoever was told by this profile before is told of this, too.
        if not context.args.dry_run:
            Reporting(context, context.args.profile, profiles).unreadable(error)
        raise
    if context.args.dry_run:
        return _show(context, steps)
    profiles.see(profile.name, now_ms(), profile.messages)
    with _alone(context, profile):
        reasons = [] if context.args.now else unmet(profile.conditions, local_now())
        if reasons:
            context.out.line(f"postponed: {'; '.join(reasons)}")
            context.out.document({"profile": profile.name, "result": "postponed", "reasons": reasons, "steps": []})
            return POSTPONED
        return _run(context, profile, steps, Reporting(context, profile.name, profiles, profile))


def _show(context: Context, steps: Steps) -> int:
    commands = list(steps.commands())
    for words in commands:
        context.out.line(" ".join(word if word == "VOLUME..." else shlex.quote(word) for word in words))
    context.out.document({"dry_run": True, "commands": commands})
    return 0


@contextmanager
def _alone(context: Context, profile: Profile) -> Iterator[None]:
    """No two runs of one profile: the later one waits as long as --lock-wait says, or ends with 11."""
    # Who only asks whether a run goes on holds the lock for an instant, which is no run.
    wait = max(context.args.lock_wait, _INSTANT_SECONDS)
    with held_file(lock_of(context.host, profile.name), wait, f"the profile {profile.name} is running already"):
        yield


def _run(context: Context, profile: Profile, steps: Steps, reporting: Reporting) -> int:
    started, rows = time.monotonic(), []
    reporting.check_broken_off(alone=True)
    reporting.profiles.change(profile.name, lambda one: replace(one, began_ms=now_ms()))
    reporting.began()
    try:
        reporting.hook("before")
        for row in steps:
            rows.append(row)
            _say(context, row)
    except (KeyboardInterrupt, Interrupted):  # by somebody who knows of that
        reporting.profiles.change(profile.name, lambda one: replace(one, began_ms=0))
        raise
    except LamellaError as error:  # the hook: nothing was done
        rows.append(StepResult("before", "", error.exit_code, error.message))
        _say(context, rows[-1])
    finally:
        _after(reporting, rows)
    sets = {name: one.repositories for name, one in context.config.media.items()}
    record = reporting.profiles.change(profile.name, lambda one: _remembered(one, rows, sets))
    reporting.ended(rows, record)
    result = _result(rows)
    failed = sum(row.failed for row in rows)
    absent = dict.fromkeys(row.repository for row in rows if row.step in SAVING and row.code == ABSENT)
    done = "every step was done" + (f" but for {', '.join(absent)}, which is absent" if absent else "")
    words = {0: done, ABSENT: "no destination is there"}
    summary = words.get(result, f"{failed} of {len(rows)} steps FAILED")
    context.out.line(f"{profile.name}: {summary}, in {shown_seconds(time.monotonic() - started)}")
    context.out.document(
        {
            "profile": profile.name,
            "result": {0: "complete", ABSENT: "absent"}.get(result, "incomplete"),
            "seconds": round(time.monotonic() - started, 3),
            "steps": [document(row) for row in rows],
        }
    )
    return result


def _after(reporting: Reporting, rows: list[StepResult]) -> None:
    """The hook that undoes what `before` did runs whatever happened."""
    try:
        reporting.hook("after")
    except LamellaError as error:
        rows.append(StepResult("after", "", error.exit_code, error.message))


def _result(rows: list[StepResult]) -> int:
    if any(row.failed for row in rows):
        return INCOMPLETE
    saved = [row for row in rows if row.step in SAVING]
    return ABSENT if all(row.code == ABSENT for row in saved) else 0


def _remembered(one: ProfileRecord, rows: list[StepResult], sets: Mapping[str, Sequence[str]]) -> ProfileRecord:
    now = now_ms()
    good = dict.fromkeys(well_saved(rows), now)
    good |= {name: now for name, members in sets.items() if not good.keys().isdisjoint(members)}
    volumes = sorted({name for row in rows for name in row.volumes}) if good else one.volumes
    return replace(
        one,
        ended_ms=now,
        began_ms=0,
        steps=tuple(StepRecord(row.step, row.repository, max(row.code, 0), f"{row.word}: {row.text}") for row in rows),
        good={**one.good, **good},
        volumes=tuple(volumes),
    )


def _say(context: Context, row: StepResult) -> None:
    where = f" {row.repository}" if row.repository else ""
    context.out.line(f"[{row.step}{where}] {row.word}{f': {row.text}' if row.text else ''}")


def document(row: StepResult) -> dict[str, object]:
    """A step for JSON."""
    return {
        "step": row.step,
        "repository": row.repository,
        "result": row.word,
        "exit": max(row.code, 0),
        "reason": row.text,
        "seconds": row.seconds,
        "document": dict(row.document),
    }
