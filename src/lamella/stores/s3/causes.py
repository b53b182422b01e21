"""The meaning of an answer of an S3 service: the real cause, and the remedy."""

from __future__ import annotations

from typing import Any

from lamella.base.errors import (
    LamellaError,
    NoRepository,
    ObjectCold,
    ObjectNotFound,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
    printable,
)

_LONGEST_TEXT = 200
_NOT_FOUND = {"NoSuchKey", "NoSuchVersion", "404", "NotFound"}
_LATER = {"ConditionalRequestConflict", "OperationAborted", "RequestTimeout", "SlowDown", "RequestLimitExceeded"}
_EXPIRED = "AWS_SESSION_TOKEN has expired: get new credentials"
_REGION = "name the bucket's region: ?region=NAME"
_HINTS = {
    "InvalidAccessKeyId": "check AWS_ACCESS_KEY_ID",
    "InvalidClientTokenId": "check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "check AWS_SECRET_ACCESS_KEY and the region",
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "InvalidToken": "AWS_SESSION_TOKEN does not belong to AWS_ACCESS_KEY_ID: get new credentials, or unset it",
    "RequestTimeTooSkewed": "set this machine's clock",
    "RequestExpired": "set this machine's clock",
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "PermanentRedirect": "name the bucket's region and endpoint: ?region=NAME&endpoint=URL",
    "TemporaryRedirect": "name the bucket's region and endpoint: ?region=NAME&endpoint=URL",
    "InvalidStorageClass": "the service does not have it: leave out ?storage-class=",
}
_SAYS_NOTHING = {"InvalidRequest", "InvalidArgument", "NotImplemented", "BadRequest", "MalformedHeaderValue"}
"""Codes by which services refuse a header that they do not know."""
_PORTAL = "is it the login page of a network? open any page in a browser; otherwise check endpoint="


def answer_error(reply: Any, obj: str, bucket: str) -> LamellaError:  # noqa: ANN401 - as botocore hands it over
    """The error for a reply that is one: `reply` is the parsed answer with `Error` and `ResponseMetadata`."""
    error = reply.get("Error", {})
    code = shown(error.get("Code", ""))
    status = status_of(reply)
    said = f"{code}: {shown(error.get('Message') or '')}".strip(": ") or f"status {status}"
    if _is_foreign(reply, code, status):
        return not_s3(obj)
    if code == "NoSuchBucket":
        return NoRepository(
            f"there is no bucket {bucket}", obj=bucket, hint="make it first, with your provider's own tools"
        )
    if code in _NOT_FOUND or status == 404:
        return ObjectNotFound("no such object", obj=obj)
    if "Quota" in code or "StorageFull" in code or status == 507:
        return StoreFull(
            f"no space left in bucket {bucket}: {said}", obj=obj, hint="make room there, then run the command again"
        )
    if code in _LATER or status in {409, 429} or status >= 500:
        return StoreUnavailable(f"the service cannot do it now: {said}", obj=obj)
    if code == "InvalidObjectState":
        text = "the object lies in a class from which the service must thaw it first"
        return ObjectCold(text, obj=obj, hint="lamella restore --thaw has it thawed, or the service's own tools")
    hint = _HINTS.get(code, "may this credential do that here?" if status in {401, 403} else "")
    return StoreRefused(f"the service refuses: {said}", obj=obj, hint=hint)


def not_s3(obj: str) -> StoreUnavailable:
    """The error for an answer that no S3 service gives."""
    return StoreUnavailable("what answers is no S3 service", obj=obj, hint=_PORTAL)


def refuses_terms(reply: Any) -> bool:  # noqa: ANN401 - as botocore hands it over
    """Whether a put may have been refused for a header that the service does not know, and not for anything else."""
    code = str(reply.get("Error", {}).get("Code", ""))
    return status_of(reply) in {400, 501} and (code in _SAYS_NOTHING or code.isdecimal())


def is_page(reply: Any) -> bool:  # noqa: ANN401 - as botocore hands it over
    """Whether an answer that is no error is a web page: an object has an ETag, whatever its service."""
    return "ETag" not in reply


def require_listing(reply: Any, obj: str) -> None:  # noqa: ANN401 - as botocore hands it over
    """Raises StoreUnavailable for a page that merely parses: it would look like an empty bucket."""
    if "Name" not in reply and "IsTruncated" not in reply:
        raise not_s3(obj)


def _is_foreign(reply: Any, code: str, status: int) -> bool:  # noqa: ANN401 - as botocore hands it over
    """Whether a web server or a login page answers: a redirect or an error without the XML of S3."""
    headers = reply.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    page = str(headers.get("content-type", "")).startswith("text/html") and status < 500
    redirected = status in {302, 303, 307, 308} and not code.endswith("Redirect")
    return status == 511 or redirected or (page and code in {"", str(status)})


def shown(text: object) -> str:
    """The words of the service, as one line of at most 200 characters."""
    return printable(str(text)[:_LONGEST_TEXT])


def status_of(reply: Any) -> int:  # noqa: ANN401 - as botocore hands it over
    """The status of a reply, 0 without one."""
    status = reply.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status if isinstance(status, int) else 0
