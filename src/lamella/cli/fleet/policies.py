"""What the destination has to be told, so that a host can only add to its own repository."""

from __future__ import annotations

import json
import shlex
from urllib.parse import unquote

from lamella.base.errors import UsageError
from lamella.stores.cold import LEAST_COLD
from lamella.stores.s3.place import parse_place


def ssh_line(url: str, name: str, quota: str | None) -> str:
    """The line of `authorized_keys` at the far side of an `ssh://` place."""
    _, _, path = url.removeprefix("ssh://").partition("/")
    path = unquote(path)
    place = path[2:] if path.startswith("~/") else f"/{path}"
    words = ["lamella", "serve", "--append-only", *(["--quota", quota] if quota else []), place]
    command = shlex.join(words).replace("\\", "\\\\").replace('"', '\\"')
    return f'restrict,command="{command}" KEY-OF-THE-HOST {name}'


def s3_policy(url: str) -> str:
    """A policy document for the credential of the host behind an `s3://` place: it reads and adds below its prefix."""
    place = parse_place(url.partition(":")[2], {})
    bucket = f"arn:aws:s3:::{place.bucket}"
    below = f"{bucket}/{place.prefix}"
    listing = {"Condition": {"StringLike": {"s3:prefix": f"{place.prefix}*"}}} if place.prefix else {}
    statements = [
        {
            "Sid": "SeeWhatIsThere",
            "Effect": "Allow",
            "Action": ["s3:ListBucket", "s3:ListBucketVersions"],
            "Resource": bucket,
            **listing,
        },
        {
            "Sid": "ReadAndAdd",
            "Effect": "Allow",
            "Action": ["s3:GetObject", "s3:GetObjectVersion", "s3:PutObject"],
            "Resource": f"{below}*",
        },
        {"Sid": "NoKeySlots", "Effect": "Deny", "Action": ["s3:PutObject"], "Resource": f"{below}keys/*"},
    ]
    return json.dumps({"Version": "2012-10-17", "Statement": statements}, indent=2) + "\n"


def s3_lifecycle(url: str) -> str:
    """The rule by which the bucket moves packs of data into a class from which they must be thawed; empty if it is to
    move nothing. Everything else, and what is small, stays where every run can read it (docs/decisions/0100).
    """
    place = parse_place(url.partition(":")[2], {})
    if not place.cold_after:
        return ""
    rule = {
        "ID": f"lamella {place.prefix}"[:255].strip(),
        "Status": "Enabled",
        "Filter": {"And": {"Prefix": f"{place.prefix}p/", "ObjectSizeGreaterThan": LEAST_COLD - 1}},
        "Transitions": [{"Days": place.cold_after, "StorageClass": place.cold_class}],
    }
    return json.dumps({"Rules": [rule]}, indent=2) + "\n"


def can_be_told(url: str) -> str:
    """`ssh` or `s3`, where a line or a document keeps a host from deleting; empty elsewhere."""
    scheme = url.partition(":")[0]
    return scheme if scheme in ("ssh", "s3") else ""


def require_below(url: str) -> None:
    """Raises UsageError for a place that is too wide for one host: a whole bucket."""
    if can_be_told(url) == "s3" and not parse_place(url.partition(":")[2], {}).prefix:
        raise UsageError("a host gets a prefix of the bucket, not all of it", obj=url, hint="write s3://BUCKET/HOST")
