"""Where an S3 store is: `//bucket/prefix?option=value`, and what the environment adds. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from lamella.base.errors import UsageError

OPTIONS = ("endpoint", "region", "addressing", "storage-class", "cold-after", "append-only", "profile", "timeout")
"""Options after the question mark."""
_ADDRESSING = ("path", "virtual")
_YES_NO = {"yes": True, "no": False}
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_PART = re.compile(r"(?!\.\.?(?:/|$))[A-Za-z0-9._-]+")
_MAX_PREFIX = 512
_STORAGE_CLASS = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_ASLEEP = {"GLACIER", "DEEP_ARCHIVE"}
"""Classes whose objects must be asked for hours before they can be read."""
_COLDEST = "DEEP_ARCHIVE"
_WORD = re.compile(r"[A-Za-z0-9._+@:/ -]{1,128}")


@dataclass(frozen=True, slots=True)
class S3Place:
    """A bucket, a prefix (empty, or ending in `/`), and how to reach them. No credentials."""

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    """Base address of the service; None for Amazon's own in `region`."""
    region: str | None = None
    path_style: bool = False
    """The bucket is named in the path of an address, not in its host."""
    storage_class: str | None = None
    """Storage class of packs; everything else stays in the bucket's default class, from which it is read at once."""
    cold_after: int = 0
    """Days after which a rule of the bucket moves packs of data into a class from which they must be thawed; 0: never.
    The rule's class is `cold_class`; a put names neither.
    """
    cold_class: str = ""
    append_only: bool = False
    """Neither replace nor delete, whatever the credential may do."""
    profile: str | None = None
    """Section of the AWS configuration files that holds credentials."""
    timeout: int = 120
    """Longest silence in seconds while an answer is awaited or read. Such a silence is not waited for twice
    (stores.wrap.patience).
    """


def parse_place(place: str, environment: Mapping[str, str]) -> S3Place:
    """Read the part of a REPO behind `s3:`; options given there win over `environment`. Raises UsageError."""
    path, question, query = place.partition("?")
    if not path.startswith("//") or "#" in place:
        raise _unusable(place, "write s3://BUCKET/PREFIX")
    bucket, _, prefix = path[2:].partition("/")
    if "@" in bucket or ":" in bucket:
        raise _unusable("//...", "credentials and hosts are no part of it: see the manual for endpoint= and AWS_*")
    if not _BUCKET.fullmatch(bucket):
        raise _unusable(place, "a bucket's name has 3 to 255 letters, digits, dots and dashes")
    prefix = prefix.strip("/")
    if prefix and (len(prefix) > _MAX_PREFIX or not all(map(_PART.fullmatch, prefix.split("/")))):
        raise _unusable(place, "a prefix is made of letters, digits, dots, dashes and slashes")
    options = _options(place, query) if question else {}
    endpoint = _endpoint(
        place, options.get("endpoint") or _first(environment, "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    )
    cold_after, storage_class = int(options.get("cold-after", "0")), options.get("storage-class")
    if storage_class in _ASLEEP and not cold_after:
        hint = "add cold-after=DAYS: a rule of the bucket moves packs there later; GLACIER_IR can be read at once"
        raise UsageError(f"s3: objects of class {storage_class} cannot be read when they are needed", hint=hint)
    addressing = options.get("addressing") or ("path" if endpoint else "virtual")
    return S3Place(
        bucket,
        f"{prefix}/" if prefix else "",
        endpoint,
        options.get("region") or _first(environment, "AWS_REGION", "AWS_DEFAULT_REGION"),
        addressing == "path",
        None if cold_after else storage_class,
        cold_after,
        (storage_class or _COLDEST) if cold_after else "",
        _YES_NO[options.get("append-only", "no")],
        options.get("profile") or _first(environment, "AWS_PROFILE"),
        int(options.get("timeout", "120")),
    )


def _unusable(place: str, hint: str) -> UsageError:
    return UsageError("not a place in S3", obj=f"s3:{place}", hint=hint)


def _first(environment: Mapping[str, str], *names: str) -> str | None:
    return next((environment[name] for name in names if environment.get(name)), None)


def _options(place: str, query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True)
    except ValueError as error:
        raise _unusable(place, "options are written ?NAME=VALUE&NAME=VALUE") from error
    options = dict(pairs)
    if len(options) != len(pairs):
        raise _unusable(place, "an option is given twice")
    for name, value in pairs:
        if name not in OPTIONS:
            raise UsageError(f"s3: has no option {name!r}", hint=f"there are: {', '.join(OPTIONS)}")
        _check_option(name, value)
    return options


def _check_option(name: str, value: str) -> None:
    if name == "addressing" and value not in _ADDRESSING:
        raise UsageError(f"s3: addressing is path or virtual, not {value!r}")
    if name == "append-only" and value not in _YES_NO:
        raise UsageError(f"s3: append-only is yes or no, not {value!r}")
    if name == "storage-class" and not _STORAGE_CLASS.fullmatch(value):
        raise UsageError(f"s3: not a storage class: {value!r}")
    if name == "cold-after" and not (value.isdecimal() and value.isascii() and 1 <= int(value[:6]) <= 36500):
        raise UsageError(f"s3: cold-after is a number of days, not {value!r}")
    if name == "timeout" and not (value.isdecimal() and value.isascii() and 1 <= int(value[:5]) <= 3600):
        raise UsageError(f"s3: a timeout is a number of seconds from 1 to 3600, not {value!r}")
    if not _WORD.fullmatch(value):
        raise UsageError(f"s3: not a value for {name}: {value!r}")


def _endpoint(place: str, text: str | None) -> str | None:
    if text is None:
        return None
    try:
        parts = urlsplit(text)
        sound = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        sound = False
    if not sound or parts.username is not None or parts.query or parts.fragment:
        raise _unusable(place, "an endpoint is an address like https://HOST:PORT")
    return text.rstrip("/")
