"""Freezing every source of a run back to back, between the hooks, before any of them is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lamella.base.clock import Clock
from lamella.base.errors import LamellaError, SourceError
from lamella.memory.host import Host
from lamella.operations.moments.rotation import drop_unneeded
from lamella.run.spawn import run as run_command
from lamella.sources.base import FrozenVolume, Source

if TYPE_CHECKING:
    from lamella.stores.wrap import TokenBucket

Warn = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Hooks:
    """Commands run around the freeze, each for at most `seconds`."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    seconds: float = 60.0
    around: Callable[[], AbstractContextManager[None]] = nullcontext
    """Entered between the commands."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A frozen source, and when that was."""

    frozen: FrozenVolume
    time_ms: int


Moments = Mapping[bytes, Moment | SourceError]
"""By the source's identity: its moment, or why there is none."""


@contextmanager
def frozen_sources(
    sources: Sequence[Source], hooks: Hooks, clock: Clock, warn: Warn, *, bucket: TokenBucket | None = None
) -> Iterator[Moments]:
    """Freeze all sources; the moments end with the context. All reading of them goes through `bucket`.

    Raises LamellaError if `before` fails.
    """
    moments: dict[bytes, Moment | SourceError] = {}
    with ExitStack() as held:
        with _around(hooks, warn):
            for source in sources:
                try:
                    frozen = held.enter_context(source.freeze())
                except SourceError as error:
                    moments[source.identity] = error
                else:
                    moments[source.identity] = Moment(_limited(frozen, bucket), clock())
        yield moments


def _limited(frozen: FrozenVolume, bucket: TokenBucket | None) -> FrozenVolume:
    if bucket is None:
        return frozen
    # Loaded only by a run with a read limit.
    from lamella.operations.moments.limited_volume import LimitedVolume

    return LimitedVolume(frozen, bucket)


@contextmanager
def _around(hooks: Hooks, warn: Warn) -> Iterator[None]:
    """Run `before`, then what is inside, then `after` whatever happened."""
    try:
        if hooks.before:
            run_command(hooks.before, timeout_seconds=hooks.seconds, error=LamellaError)
        with hooks.around():
            yield
    finally:
        if hooks.after:
            try:
                run_command(hooks.after, timeout_seconds=hooks.seconds, error=LamellaError)
            except LamellaError as error:
                warn(f"the command after the freeze failed: {error.message}")


def clean(host: Host, sources: Sequence[Source], warn: Warn) -> None:
    """Remove moments that nothing needs: what a killed run left. The sources' locks are held."""
    for source in sources:
        try:
            drop_unneeded(host, source)
        except SourceError as error:
            warn(f"{source.default_name}: an old kept moment could not be removed: {error.message}")
