"""What S3's answers mean for a caller of the store. Pure; texts of the server are cut and made printable."""

from __future__ import annotations

from typing import Any

from lamella.base.errors import LamellaError, NoRepository, ObjectNotFound, StoreFull, StoreRefused, StoreUnavailable

_LONGEST_TEXT = 200
_NOT_FOUND = {"NoSuchKey", "NoSuchVersion", "404", "NotFound"}
_LATER = {"ConditionalRequestConflict", "OperationAborted", "RequestTimeout", "SlowDown", "RequestLimitExceeded"}
_HINTS = {
    "InvalidAccessKeyId": "check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "check AWS_SECRET_ACCESS_KEY and the region",
    "ExpiredToken": "AWS_SESSION_TOKEN has expired: get new credentials",
    "RequestTimeTooSkewed": "set this machine's clock",
    "AuthorizationHeaderMalformed": "name the bucket's region: ?region=NAME",
    "PermanentRedirect": "name the bucket's region and endpoint: ?region=NAME&endpoint=URL",
    "InvalidObjectState": "the object lies in an archive class: have the service restore it first",
}


def printable(text: object) -> str:
    """At most 200 characters of a text that came from outside, without control characters."""
    return "".join(one if one.isprintable() else " " for one in str(text)[:_LONGEST_TEXT]).strip()


def answer_error(reply: Any, obj: str, bucket: str) -> LamellaError:  # noqa: ANN401 - as botocore hands it over
    """The error for a reply that is one: `reply` is the parsed answer with `Error` and `ResponseMetadata`."""
    error = reply.get("Error", {})
    code = printable(error.get("Code", ""))
    status = _status(reply)
    said = f"{code}: {printable(error.get('Message', ''))}".strip(": ") or f"status {status}"
    if code == "NoSuchBucket":
        return NoRepository(
            f"there is no bucket {bucket}", obj=bucket, hint="make it first, with your provider's own tools"
        )
    if code in _NOT_FOUND or status == 404:
        return ObjectNotFound("no such object", obj=obj)
    if "Quota" in code or "StorageFull" in code or status == 507:
        return StoreFull(f"no space left: {said}", obj=obj)
    if code in _LATER or status in {409, 429} or status >= 500:
        return StoreUnavailable(f"the service cannot do it now: {said}", obj=obj)
    hint = _HINTS.get(code, "may this credential do that here?" if status in {401, 403} else "")
    return StoreRefused(f"the service refuses: {said}", obj=obj, hint=hint)


def _status(reply: Any) -> int:  # noqa: ANN401 - as botocore hands it over
    status = reply.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status if isinstance(status, int) else 0
