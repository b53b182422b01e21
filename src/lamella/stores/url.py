"""From the text a user gives as REPO to an open store. A scheme's module is imported when it is used, not before."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol, cast

from lamella.base.errors import UsageError
from lamella.stores.base import Store

SCHEMES: dict[str, str] = {
    "file": "lamella.stores.local.store:LocalStore.open",
    "s3": "lamella.stores.s3.store:S3Store.open",
    "ssh": "lamella.stores.pipe.ssh:open_ssh",
    "sftp": "lamella.stores.sftp.opening:open_sftp",
    "rclone": "lamella.stores.rclone.store:open_rclone",
    "qubes": "lamella.stores.pipe.qubes:open_qubes",
    "qubes-ssh": "lamella.stores.pipe.qubes:open_qubes_ssh",
}
"""Scheme -> "module:factory". What follows the scheme's colon is the factory's first argument."""
WITH_ENVIRONMENT = frozenset({"s3", "ssh", "sftp"})
"""Schemes whose factory also takes `environment`, the variables of the caller."""

_WITH_OPTIONS = frozenset({"s3"})


class StoreFactory(Protocol):
    """Opens a store at a place; see `open_store` for the arguments and errors."""

    def __call__(self, place: str, /, *, create: bool, read_only: bool) -> Store: ...


def open_store(
    repo: str, *, create: bool = False, read_only: bool = False, environment: Mapping[str, str] | None = None
) -> Store:
    """Open the store that `repo` names: a path, `file:` and an absolute path, or `s3://bucket/prefix`.

    A text is a path unless a colon stands before its first slash, so `./a:b` is a path and `a:b` is not. `create` makes
    the directory (not its parents) if it is missing. `environment` are variables that some kinds of stores know.
    Raises UsageError for a scheme this version does not have,
    NoRepository when there is no directory at that place.
    """
    if create and read_only:
        raise UsageError("a repository cannot be created and read-only at once", obj=repo)
    scheme, place = _split(repo)
    factory = _factory(scheme, repo)
    if scheme in WITH_ENVIRONMENT:
        factory = partial(cast("Callable[..., Store]", factory), environment=environment or {})
    return factory(place, create=create, read_only=read_only)


def below(repo: str, name: str) -> str:
    """The place `name` below the one that `repo` names; options that end a URL stay at its end. Raises UsageError."""
    scheme, _ = _split(repo)
    place, question, options = repo.partition("?") if scheme in _WITH_OPTIONS else (repo, "", "")
    return f"{place.rstrip('/')}/{name}{question}{options}"


def _split(repo: str) -> tuple[str, str]:
    head, colon, rest = repo.partition(":")
    if not repo or "\0" in repo:
        raise UsageError("not a repository's place", obj=repr(repo), hint="give a path")
    if not colon or "/" in head:
        return "file", repo
    scheme = head.lower()
    if scheme == "file" and not rest.startswith("/"):
        raise UsageError("file: needs an absolute path", obj=repo, hint="write file:/path, or the path alone")
    if scheme == "file" and rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host not in {"", "localhost"} or not slash:
            raise UsageError("file: reaches only this computer", obj=repo, hint="write file:/path")
        return scheme, "/" + path.lstrip("/")
    return scheme, rest


def _factory(scheme: str, repo: str) -> StoreFactory:
    target = SCHEMES.get(scheme)
    if target is None:
        raise UsageError(
            f"this version has no destination of the kind {scheme!r}",
            obj=repo,
            hint=f"known: {', '.join(f'{name}:' for name in sorted(SCHEMES))}; write ./ before a path with a colon",
        )
    return cast("StoreFactory", pkgutil.resolve_name(target))
