"""The requests of an S3 store, made with botocore: plain values out, Lamella's errors, a deadline on every wait.

botocore's own retries are off: `RetryingStore` is the one place that tries again.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from typing import Any, NamedTuple

import botocore.auth
import botocore.loaders
import botocore.parsers
import botocore.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
)
from urllib3.exceptions import HTTPError
from urllib3.exceptions import TimeoutError as SilentTooLong

from lamella.base.errors import ObjectCold, ObjectNotFound, StoreRefused, StoreUnavailable, UsageError
from lamella.stores.cold import Warmth
from lamella.stores.s3.body import read_body
from lamella.stores.s3.causes import answer_error, is_page, not_s3, refuses_terms, require_listing, shown, status_of
from lamella.stores.s3.place import S3Place

SLOWEST_BYTES_PER_SECOND = 4096
"""An answer that comes slower than this on the whole is given up, so that a trickle cannot hold us for ever."""
MAX_ANSWER = 8 << 20
"""A page of 1000 keys of 1024 bytes, each byte written as three, with everything said about them, has half of it."""
CONNECT_SECONDS = 20
"""Time for a connection, and for each `_SENT_PIECE` on its way out."""
_SENT_PIECE = 1 << 16
CONNECTIONS = 32
PAGE = 1000
MAX_EMPTY = 100
"""Pages of a listing in a row that have no name, at most."""
_ANSWER_PIECE = 1 << 16
_READ_AT_ONCE = frozenset(
    ("", "STANDARD", "STANDARD_IA", "ONEZONE_IA", "REDUCED_REDUNDANCY", "GLACIER_IR", "EXPRESS_ONEZONE")
)
_ARCHIVES = frozenset(("GLACIER", "DEEP_ARCHIVE"))
"""Storage classes of Amazon's; of others the service's answer to a GET is the only sign."""
_CREDENTIALS_HINT = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile: ?profile=NAME"


class HashedBody(BytesIO):
    """The content of a put, hashed once.

    A file, not bytes: each piece then has its own deadline, so a slow line is not taken for a dead one.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.content = memoryview(content)  # `getbuffer` would copy it
        self.sha256 = hashlib.sha256(content)

    def read(self, size: int | None = -1, /) -> Any:  # noqa: ANN401 - what can be sent
        """The next piece, not copied, and larger than is asked for: each costs the layers above a turn of their own."""
        if size is None or size < 0:
            return super().read(size)
        start = self.tell()
        piece = self.content[start : start + max(size, _SENT_PIECE)]
        self.seek(start + len(piece))
        return piece


class OnceHashed(botocore.auth.S3SigV4Auth):  # type: ignore[misc]
    """Signs a put together with the hash of its content, which is known already.

    Every service has to compare a signed hash; some take a checksum header that is wrong (radosgw 16). botocore would
    leave the hash of a put over TLS unsigned, and compute it once more for any other.
    """

    def payload(self, request: Any) -> str:  # noqa: ANN401 - botocore's
        """The hash that is signed."""
        body = request.body
        return body.sha256.hexdigest() if isinstance(body, HashedBody) else str(super().payload(request))


class BoundedSession:
    """Stands in for botocore's HTTP session: sends through it, and bounds what botocore would read to its end, however
    long it is: listings and errors. Objects are read piece by piece by `S3Client`.
    """

    def __init__(self, inner: Any, clock: Callable[[], float], silence: int) -> None:  # noqa: ANN401 - botocore's
        self._inner = inner
        self._clock = clock
        self._silence = silence

    def send(self, request: Any) -> Any:  # noqa: ANN401 - botocore's
        """Send a prepared request; the body of the reply is left unread only if it is a wanted object."""
        wanted = request.stream_output
        request.stream_output = True
        reply = self._inner.send(request)
        if not wanted or reply.status_code >= 300:
            reply._content = self._whole(reply.raw)
        return reply

    def _whole(self, raw: Any) -> bytes:  # noqa: ANN401 - urllib3's
        deadline = self._clock() + self._silence + MAX_ANSWER / SLOWEST_BYTES_PER_SECOND
        pieces: list[bytes] = []
        size = 0
        try:
            for piece in raw.stream(_ANSWER_PIECE):
                size += len(piece)
                if size > MAX_ANSWER or self._clock() > deadline:
                    raw.close()
                    raise ResponseStreamingError(error="the answer has no end")
                pieces.append(piece)
        except (HTTPError, OSError, ValueError) as error:
            raise ResponseStreamingError(error=error) from error
        return b"".join(pieces)

    def close(self) -> None:
        """Close connections."""
        self._inner.close()


class RangeRead(NamedTuple):
    """A range that was read: `content` starts at the offset asked for, `size` is the whole object's."""

    content: bytes
    size: int


class Listed(NamedTuple):
    """One name of a listing, and its version in listings of versions."""

    name: str
    size: int
    version: str = ""
    may_be_cold: bool = False
    """Its storage class is none of those that are read at once, as far as these are known."""


class S3Client:
    """Requests on one bucket. Thread-safe."""

    def __init__(
        self, place: S3Place, environment: Mapping[str, str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._bucket = place.bucket
        self._prefix = place.prefix
        self._clock = clock
        self._silence = place.timeout
        self._terms = 0
        """Which of `_TERMS` the service takes."""
        self._answered = False
        try:
            self._client: Any = _client(place, environment)
            endpoint = self._client._endpoint
            endpoint.http_session = BoundedSession(endpoint.http_session, clock, place.timeout)
        except (BotoCoreError, ValueError) as error:
            raise UsageError(f"s3: cannot be used as configured: {shown(error)}") from error

    @property
    def is_amazon(self) -> bool:
        """Whether requests go to Amazon itself, whose promises are known."""
        host = str(self._client.meta.endpoint_url).partition("://")[2].partition("/")[0].partition(":")[0]
        return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))

    def close(self) -> None:
        """Close connections."""
        self._client.close()

    def put(self, name: str, content: bytes, *, new: bool = True, storage_class: str | None = None) -> bool:
        """Put an object, whole or not at all; False if it is to be `new` and the service says that the name is taken.

        The service checks a hash of the content before it answers. `new` False replaces what is there. A service that
        refuses a header is asked with an older one, and without the condition in the end: whether the name is taken is
        then seen by the look that the store takes before.
        """
        arguments = {} if storage_class is None else {"StorageClass": storage_class}
        terms, first = self._terms, self._terms
        body = HashedBody(content)
        with self._translated(name):
            while True:
                try:
                    body.seek(0)
                    reply = self._client.put_object(
                        Bucket=self._bucket,
                        Key=self._prefix + name,
                        Body=body,
                        **arguments,
                        **_TERMS[terms](body, new),
                    )
                except ClientError as error:
                    if _code(error) == "PreconditionFailed" or _status(error) == 412:
                        return False
                    if terms + 1 == len(_TERMS) or self.is_amazon or not refuses_terms(error.response):
                        raise
                    terms += 1
                    continue
                self._require_object(reply, name)
                if terms != first:
                    self._terms = terms  # the service takes these
                return True

    def size(self, name: str, version: str = "") -> int:
        """The size of an object in bytes. Raises ObjectNotFound."""
        with self._translated(name):
            try:
                reply = self._client.head_object(Bucket=self._bucket, Key=self._prefix + name, **_version(version))
            except ClientError as error:
                self._raise_with_cause(error, name)
                raise
            self._require_object(reply, name)
            return int(reply["ContentLength"])

    def _raise_with_cause(self, error: Any, name: str) -> None:  # noqa: ANN401 - botocore's
        """Ask once more by GET: an answer to HEAD has no body, so it cannot say what is wrong with the request.

        That there is no such object is believed once the service has shown that there is the bucket.
        """
        status = _status(error)
        if status == 404 and self._answered:
            raise ObjectNotFound("no such object", obj=name) from error
        if not 300 <= status < 500 or status in {409, 429}:
            return
        try:
            reply = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name, Range="bytes=0-0")
        except ClientError as reason:
            # A real 404 for the object alone: from now on its name is enough.
            self._answered = self._answered or _code(reason) in {"NoSuchKey", "NoSuchVersion"}
            raise
        reply["Body"].close()

    def _require_object(self, reply: Any, name: str) -> None:  # noqa: ANN401 - botocore's
        """Raises StoreUnavailable for a web page in place of an object."""
        if is_page(reply):
            raise not_s3(name)
        self._answered = True

    def read(self, name: str, offset: int, end: int | None, version: str = "") -> RangeRead | None:
        """Read the bytes [offset, end) (to the end when None), or fewer where the object ends before.

        None if the object has no byte at `offset`, which is also so for every empty range. Raises ObjectNotFound.
        """
        arguments: dict[str, Any] = _version(version)
        if offset or end is not None:
            arguments["Range"] = f"bytes={offset}-" + ("" if end is None else str(end - 1))
        with self._translated(name):
            try:
                reply = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name, **arguments)
            except ClientError as error:
                if _status(error) == 416:
                    return None
                raise
            with reply["Body"] as body:
                self._require_object(reply, name)
                return self._part(reply, body, offset, end, name)

    def _part(self, reply: Any, body: Any, offset: int, end: int | None, name: str) -> RangeRead:  # noqa: ANN401 - botocore's
        length = int(reply["ContentLength"])
        start, size = 0, length
        if "ContentRange" in reply:
            start, size = _content_range(str(reply["ContentRange"]), name)
        wanted_end = size if end is None else min(end, size)
        if start > offset or start + length < wanted_end:
            raise StoreUnavailable("the service answered with another range than was asked for", obj=name)
        content = self._body(body, wanted_end - start, name)
        return RangeRead(content[offset - start :], size)

    def _body(self, body: Any, length: int, name: str) -> bytes:  # noqa: ANN401 - botocore's
        deadline = self._clock() + self._silence + length / SLOWEST_BYTES_PER_SECOND

        def late() -> None:
            if self._clock() > deadline:
                raise StoreUnavailable("the answer comes too slowly", obj=name)

        return read_body(body, length, late, name)

    def listing(self, prefix: str) -> Iterator[Listed]:
        """All objects whose name starts with `prefix`, page by page, ascending as S3 gives them.

        Raises StoreUnavailable for a service that repeats names, lists others, or gives empty pages for ever.
        """
        before = whole = self._prefix + prefix
        token: dict[str, str] = {}
        empty = 0
        while empty < MAX_EMPTY:
            with self._translated(prefix):
                reply = self._client.list_objects_v2(Bucket=self._bucket, Prefix=whole, MaxKeys=PAGE, **token)
                require_listing(reply, prefix)
                rows = [_listed(row) for row in reply.get("Contents", ())]
            for row in rows:
                if not row.name.startswith(whole):
                    raise StoreUnavailable("the service lists what was not asked for", obj=prefix)
                if row.name <= before:
                    raise StoreUnavailable("the service's listing goes round in circles", obj=prefix)
                before = row.name
                yield row._replace(name=row.name[len(self._prefix) :])
            if not reply.get("IsTruncated"):
                return
            following = {"ContinuationToken": str(reply.get("NextContinuationToken", ""))}
            if following == token or not following["ContinuationToken"]:
                break
            token, empty = following, 0 if rows else empty + 1
        raise StoreUnavailable("the service's listing goes round in circles", obj=prefix)

    def versions(self, name: str) -> list[Listed]:
        """The stored versions of one key, newest first, at most a page of them."""
        with self._translated(name):
            reply = self._client.list_object_versions(Bucket=self._bucket, Prefix=self._prefix + name, MaxKeys=PAGE)
        rows = (row for row in reply.get("Versions", ()) if row["Key"] == self._prefix + name)
        return [Listed(name, int(row["Size"]), str(row["VersionId"])) for row in rows]

    def delete(self, name: str, version: str = "") -> None:
        """Remove an object, or one version of it; no error if there is none."""
        try:
            with self._translated(name):
                self._client.delete_object(Bucket=self._bucket, Key=self._prefix + name, **_version(version))
        except ObjectNotFound:
            return

    def warmth(self, name: str) -> Warmth:
        """Whether an object can be read, by HEAD; where that does not say, by reading a byte."""
        with self._translated(name):
            reply = self._client.head_object(Bucket=self._bucket, Key=self._prefix + name)
            self._require_object(reply, name)
        said = str(reply.get("Restore", ""))
        if said:
            return Warmth.THAWING if 'ongoing-request="true"' in said else Warmth.READABLE
        if reply.get("StorageClass") in _ARCHIVES or reply.get("ArchiveStatus"):
            return Warmth.COLD
        try:
            self.read(name, 0, 1)
        except ObjectCold:
            return Warmth.COLD
        return Warmth.READABLE

    def thaw(self, name: str, days: int, tier: str) -> None:
        """Ask for a copy that can be read for so many days."""
        wanted = {"Days": days, "GlacierJobParameters": {"Tier": tier.capitalize()}}
        with self._translated(name):
            try:
                self._client.restore_object(Bucket=self._bucket, Key=self._prefix + name, RestoreRequest=wanted)
            except ClientError as error:
                if _code(error) != "RestoreAlreadyInProgress":
                    raise

    def require_bucket(self) -> None:
        """Raises NoRepository if there is no such bucket."""
        with self._translated(""):
            # Below the prefix: a credential may be bound to that.
            require_listing(self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1), "")

    @contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            raise answer_error(error.response, name, self._bucket) from error
        except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError) as error:
            raise StoreRefused("there are no usable credentials for S3", obj=name, hint=_CREDENTIALS_HINT) from error
        except ParamValidationError as error:
            raise StoreRefused(f"S3 has no such request: {shown(error)}", obj=name) from error
        except botocore.parsers.ResponseParserError as error:
            raise not_s3(name) from error
        except (BotoCoreError, KeyError, ValueError) as error:
            failed = StoreUnavailable(f"the service does not answer properly: {shown(error)}", obj=name)
            failed.silent = isinstance(error, ReadTimeoutError) or isinstance(error.__cause__, SilentTooLong)
            raise failed from error


def _client(place: S3Place, environment: Mapping[str, str]) -> Any:  # noqa: ANN401 - botocore has no types
    session = botocore.session.Session(profile=place.profile)
    session.register_component("data_loader", _descriptions())
    key, secret = environment.get("AWS_ACCESS_KEY_ID"), environment.get("AWS_SECRET_ACCESS_KEY")
    if key and secret and place.profile is None:
        session.set_credentials(key, secret, environment.get("AWS_SESSION_TOKEN") or None)
    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=place.timeout,
        retries={"total_max_attempts": 1},
        max_pool_connections=CONNECTIONS,
        tcp_keepalive=True,
        s3={"addressing_style": "path" if place.path_style else "virtual"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    client = session.create_client(
        "s3",
        region_name=place.region or session.get_config_variable("region") or "us-east-1",
        endpoint_url=place.endpoint,
        verify=environment.get("AWS_CA_BUNDLE") or None,
        config=config,
    )
    client.meta.events.register("before-call.s3.HeadBucket", _never_ask)
    botocore.auth.AUTH_TYPE_MAPS["s3v4"] = OnceHashed  # as before for bodies that are not ours
    return client


def _never_ask(**_: object) -> None:
    """botocore looks for the region of a bucket by HEAD after a redirect that names none, and again after the redirect
    that answers, without end. The redirect itself says enough.
    """
    raise ClientError({"ResponseMetadata": {"HTTPHeaders": {}}}, "HeadBucket")


@lru_cache(maxsize=1)
def _descriptions() -> Any:  # noqa: ANN401 - botocore's
    """botocore's descriptions of services, read once a process: a fifth of a second."""
    return botocore.loaders.create_loader()


def _sha256(body: HashedBody) -> dict[str, str]:
    return {"ChecksumSHA256": base64.b64encode(body.sha256.digest()).decode()}


def _md5(body: HashedBody) -> dict[str, str]:
    return {"ContentMD5": base64.b64encode(hashlib.md5(body.content, usedforsecurity=False).digest()).decode()}


def _if_new(new: bool) -> dict[str, str]:
    return {"IfNoneMatch": "*"} if new else {}


_TERMS: tuple[Callable[[HashedBody, bool], dict[str, str]], ...] = (
    lambda body, new: _sha256(body) | _if_new(new),
    lambda body, new: _md5(body) | _if_new(new),
    lambda body, new: _sha256(body),
    lambda body, new: _md5(body),
)
"""The conditions of a put, the best first."""


def _listed(row: Any) -> Listed:  # noqa: ANN401 - botocore's
    return Listed(str(row["Key"]), int(row["Size"]), may_be_cold=row.get("StorageClass", "") not in _READ_AT_ONCE)


def _version(version: str) -> dict[str, Any]:
    return {"VersionId": version} if version else {}


def _code(error: Any) -> str:  # noqa: ANN401 - botocore's
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: Any) -> int:  # noqa: ANN401 - botocore's
    return status_of(error.response)


def _content_range(text: str, name: str) -> tuple[int, int]:
    """First byte and whole size from `bytes FIRST-LAST/SIZE` (RFC 9110, 14.4)."""
    unit, _, rest = text.partition(" ")
    span, _, size = rest.partition("/")
    first = span.partition("-")[0]
    if unit != "bytes" or not (first.isdecimal() and size.isdecimal() and first.isascii() and size.isascii()):
        raise StoreUnavailable("the service answered with a range that makes no sense", obj=name)
    return int(first), int(size)
