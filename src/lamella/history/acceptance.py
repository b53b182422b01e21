"""Taking a history as the right one although something is missing in it: the user's decision (FORMAT 9)."""

from __future__ import annotations

from lamella.base.ids import WriterId
from lamella.history.log import Log
from lamella.memory.pins import Problem, suffix


def accept_history(log: Log) -> list[Problem]:
    """Take the history that is here as the right one, at this place; returns what was accepted.

    A mirror, or a place unknown so far while another one is known, is from then on a repository of its own to this
    host: with a writer of its own, so that joining the places later forks nothing. What was seen at the other place is
    still expected there.
    """
    accepted = [*log.problems, *log.older]
    url = log.store.url
    own, memory = log.own_writer, log.memory
    apart = log.place.mirror or (not log.places.known(url) and log.places.elsewhere(url))
    if apart:
        log.recall(suffix(url))
        with log.memory.lock():
            # Its writer goes on for the one that this host is elsewhere, and owns what that one owns.
            if log.own_writer is None:
                log.memory.new_writer_key(memory.writer_seeds)
    log.places.accepted(url, log.history.heads, own=apart)
    log.pins.accept(log.history.heads, log.found)
    log.place, log.older = log.places.get(url), []
    if own is not None and not apart and _is_behind(log, own):
        # Later the pins do not tell any more that this host used more numbers than are here.
        with memory.lock():
            memory.new_writer_key()
    return accepted


def _is_behind(log: Log, writer: WriterId) -> bool:
    """Whether a commit of this writer is known that is newer than all that are here."""
    return log.history.newest(writer) < log.history.known.get(writer, 0)


def accept_seen(log: Log, writer: str) -> list[str]:
    """Take what this writer (the first 8 digits) saw and is not here as lost; returns what was accepted."""
    rows = [problem for problem in log.found if problem.kind == "seen"]
    rows = [problem for problem in rows if problem.key.rpartition(":")[2].startswith(writer[:8])]
    accepted = [problem for problem in rows if problem.key not in log.pins.accepted]
    log.pins.excuse(accepted)
    return [problem.message for problem in accepted]
