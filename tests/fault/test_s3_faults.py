"""A service that fails, lies, cuts answers off and forgets to answer: nothing is lost, and little is done twice."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import pytest

from lamella.base.errors import (
    LamellaError,
    NoRepository,
    ObjectCold,
    ObjectNotFound,
    StoreError,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
)
from lamella.base.trust import Sealed
from lamella.stores.base import Store
from lamella.stores.s3.client import S3Client
from lamella.stores.s3.place import parse_place
from lamella.stores.s3.store import S3Store
from lamella.stores.wrap.patience import Backoff
from lamella.stores.wrap.retrying import RetryingStore
from tests.cli.program import Lamella
from tests.fault.world import Truth, backup, check_sound, fresh_host, host_at, init, short_rescue, volume
from tests.s3_proxy import Answer, Fault, Proxy, Seen, cut, hang_up, lose_reply, proxied, say, status
from tests.s3_services import CREDENTIALS, S3Service, moto

T = TypeVar("T")
FIRST = b"1" * 65536 + b"2" * 65536 + bytes(65536) + b"end"
SECOND = b"1" * 65536 + b"X" * 65536 + b"Y" * 65536 + b"end"


@pytest.fixture(scope="module")
def service() -> Iterator[S3Service]:
    """A running service."""
    with moto() as found:
        yield found


@pytest.fixture
def proxy(service: S3Service) -> Iterator[Proxy]:
    """A proxy of the test's own before it."""
    with proxied(service) as found:
        yield found


def store_at(proxy: Proxy, bucket: str | None = None) -> S3Store:
    return proxy.through.store(bucket or proxy.service.new_bucket())


def patient(store: Store, pauses: list[float] | None = None, attempts: int = 5) -> RetryingStore:
    """Retrying, without really waiting."""
    return RetryingStore(store, Backoff(attempts=attempts), sleep=(pauses if pauses is not None else []).append)


TRANSIENT = {
    "500": status(500),
    "503": status(503, "SlowDown"),
    "429": status(429, "TooManyRequests"),
    "conflict": status(409, "ConditionalRequestConflict"),
    "hang up": hang_up,
    "nonsense": status(502, "<<<"),
}


@pytest.mark.parametrize("enforced", [True, False])
def test_a_service_is_asked_once_whether_it_refuses_taken_names(proxy: Proxy, enforced: bool) -> None:
    """With something small, sent twice; where it does refuse them no put needs a look before."""
    proxy.dropped_headers = frozenset() if enforced else frozenset({"if-none-match"})
    store = store_at(proxy)
    store.put("p/large", Sealed(bytes(100_000)))
    proxy.forget()
    for number in range(3):
        store.put(f"p/{number}", Sealed(b"small"))
    assert proxy.count() == {"HEAD": 1 if enforced else 3, "PUT": 4}
    with pytest.raises(StoreRefused, match="other bytes"):
        store.put("p/0", Sealed(b"other"))
    store.put("p/0", Sealed(b"small"))
    assert store.get("p/0") == b"small"


@pytest.mark.parametrize("fault", TRANSIENT.values(), ids=TRANSIENT.keys())
@pytest.mark.parametrize("method", ["put", "get", "stat", "list", "delete"])
def test_what_may_pass_is_tried_again_and_only_then(proxy: Proxy, method: str, fault: Fault) -> None:
    store = store_at(proxy)
    store.put("p/a", Sealed(b"content"))
    calls: dict[str, Callable[[Store], object]] = {
        "put": lambda one: one.put("p/b", Sealed(b"other")),
        "get": lambda one: one.get("p/a"),
        "stat": lambda one: one.stat("p/a"),
        "list": lambda one: list(one.list("p/")),
        "delete": lambda one: one.delete("p/a"),
    }
    proxy.faults = [("*", fault)]
    with pytest.raises(StoreUnavailable):
        calls[method](store)
    pauses: list[float] = []
    proxy.faults = [("*", fault), ("*", fault)]
    proxy.forget()
    calls[method](patient(store, pauses))
    assert len(pauses) == 2
    assert sum(proxy.count().values()) == 3
    proxy.faults = [("*", fault)] * 5
    with pytest.raises(StoreUnavailable):
        calls[method](patient(store, pauses))
    assert proxy.faults == []
    store.close()


REFUSED = {"AccessDenied": 403, "InvalidAccessKeyId": 403, "MethodNotAllowed": 405}


def test_what_must_be_thawed_is_neither_refused_nor_tried_again(proxy: Proxy) -> None:
    with closing(store_at(proxy)) as store:
        proxy.faults = [("GET", status(403, "InvalidObjectState"))]
        with pytest.raises(ObjectCold, match="thaw"):
            patient(store).get("p/a")
        assert proxy.count()["GET"] == 1


@pytest.mark.parametrize(("name", "code"), REFUSED.items())
def test_what_is_refused_is_not_tried_again(proxy: Proxy, name: str, code: int) -> None:
    store = store_at(proxy)
    proxy.faults = [("GET", status(code, name))]
    with pytest.raises(StoreRefused) as caught:
        patient(store).get("p/a")
    assert name in caught.value.message
    assert caught.value.hint or name == "MethodNotAllowed"
    assert proxy.count()["GET"] == 1
    store.close()


@pytest.mark.parametrize(
    ("name", "code"), [("QuotaExceeded", 403), ("XMinioStorageFull", 507), ("InsufficientStorage", 507)]
)
def test_a_full_service_is_full(proxy: Proxy, name: str, code: int) -> None:
    store = store_at(proxy)
    proxy.faults = [("PUT", status(code, name))]
    with pytest.raises(StoreFull):
        store.put("p/a", Sealed(b"x"))
    store.close()


def test_a_bucket_that_is_gone_is_no_missing_object(proxy: Proxy) -> None:
    store = store_at(proxy, "never-made")
    for call in (lambda: store.get("a"), lambda: list(store.list("")), lambda: store.put("a", Sealed(b"x"))):
        with pytest.raises(NoRepository):
            call()
    store.close()


def test_an_answer_cut_off_is_never_taken_for_the_object(proxy: Proxy) -> None:
    store = store_at(proxy)
    content = bytes(range(256)) * 1000
    store.put("p/a", Sealed(content))
    for keep in (0, 1, len(content) - 1):
        proxy.faults = [("GET", cut(keep))]
        with pytest.raises(StoreUnavailable):
            store.get("p/a")
        proxy.faults = [("GET", cut(keep))]
        assert patient(store).get("p/a") == content
    proxy.faults = [("GET", cut(100))]
    with pytest.raises(StoreUnavailable):
        list(store.list(""))
    proxy.faults = [("GET", cut(100))]
    assert [entry.name for entry in patient(store).list("")] == ["p/a"]
    store.close()


def test_a_put_whose_answer_was_lost_finds_its_own_bytes(proxy: Proxy) -> None:
    store = store_at(proxy)
    proxy.faults = [("PUT", lose_reply)]
    patient(store).put("p/a", Sealed(b"content"))
    assert store.get("p/a") == b"content"
    assert proxy.count()["PUT"] == 1
    proxy.faults = [("DELETE", lose_reply)]
    patient(store).delete("p/a")
    store.close()


def test_a_service_that_answers_with_another_range_is_not_believed(proxy: Proxy) -> None:
    store = store_at(proxy)
    content = bytes(range(200))
    store.put("p/a", Sealed(content))
    # Ignoring the range is allowed (RFC 9110), and costs time only.
    proxy.dropped_headers = frozenset({"range"})
    assert store.get("p/a", 10, 20) == content[10:30]
    assert store.get("p/a", 190) == content[190:]
    with pytest.raises(StoreError):
        store.get("p/a", 190, 20)
    proxy.dropped_headers = frozenset()
    for text in ("bytes 11-30/200", "bytes x-y/z", "bytes 10-29/*", "pages 1-2/3"):
        proxy.faults = [("GET", with_header("Content-Range", text))]
        with pytest.raises(StoreUnavailable):
            store.get("p/a", 10, 20)
    store.close()


def pass_on(seen: Seen, passed: Callable[[], Answer]) -> Answer:
    """No fault."""
    return passed()


def with_header(name: str, value: str) -> Fault:
    def fault(seen: Seen, passed: Callable[[], Answer]) -> Answer:
        answer = passed()
        answer.headers = [row for row in answer.headers if row[0].lower() != name.lower()] + [(name, value)]
        return answer

    return fault


PAGE = b"""<?xml version="1.0"?><ListBucketResult><IsTruncated>true</IsTruncated>
<NextContinuationToken>again</NextContinuationToken>%s</ListBucketResult>"""
ROW = b"<Contents><Key>%s</Key><Size>1</Size></Contents>"


def test_a_listing_that_goes_round_in_circles_ends(proxy: Proxy) -> None:
    store = store_at(proxy)
    proxy.faults = [("GET", say(PAGE % b""))] * 9
    with pytest.raises(StoreUnavailable):
        list(store.list(""))
    assert len(proxy.faults) == 7
    store.close()


def pages(*rows: bytes) -> list[tuple[str, Fault]]:
    """Pages with these rows, each with a token of its own."""
    return [("GET", say((PAGE % row).replace(b"again", b"token%d" % number))) for number, row in enumerate(rows)]


@pytest.mark.parametrize("key", [b"pre/fix/p/b", b"pre/fix/p/a"], ids=["again", "one before it"])
def test_pages_that_do_not_ascend_end_the_listing(proxy: Proxy, key: bytes) -> None:
    store = store_at(proxy)
    proxy.faults = pages(ROW % b"pre/fix/p/b", ROW % key, ROW % b"pre/fix/p/c")
    with pytest.raises(StoreUnavailable, match="circles"):
        list(store.list(""))
    assert len(proxy.faults) == 1
    store.close()


def test_empty_pages_for_ever_end_the_listing(proxy: Proxy) -> None:
    store = store_at(proxy)
    proxy.faults = pages(*[b""] * 300)
    with pytest.raises(StoreUnavailable, match="circles"):
        list(store.list(""))
    assert len(proxy.faults) == 200
    store.close()


@pytest.mark.parametrize("code", [200, 403])
@pytest.mark.parametrize("method", ["list", "get"])
def test_an_answer_without_an_end_is_given_up(proxy: Proxy, method: str, code: int) -> None:
    if (method, code) == ("get", 200):
        pytest.skip("an object that is read only as far as it was asked for")
    store = store_at(proxy)
    proxy.faults = [("GET", lambda seen, passed: Answer(code, [], b"<x>" * (5 << 20)))]
    with pytest.raises(StoreUnavailable, match="no end"):
        store.get("p/a") if method == "get" else list(store.list(""))
    # The connection is not used again with the rest of that answer in it.
    store.put("p/a", Sealed(b"x"))
    assert store.get("p/a") == b"x"
    store.close()


def test_a_listing_of_what_was_not_asked_for_is_not_believed(proxy: Proxy) -> None:
    store = store_at(proxy)
    proxy.faults = [("GET", say(PAGE % (ROW % b"elsewhere/lamella")))]
    with pytest.raises(StoreUnavailable):
        list(store.list(""))
    store.close()


def test_keys_that_are_no_names_are_left_out_up_to_a_limit(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = proxy.service.new_bucket()
    store = store_at(proxy, bucket)
    store.put("p/a", Sealed(b"x"))
    for key in ("A B", "..", "p/../x", "p//x", ".x", "\u00e4", "p/", "a%2fb", "x?y"):
        proxy.service.client.put_object(Bucket=bucket, Key=f"pre/fix/{key}", Body=b"1")
    assert [entry.name for entry in store.list("")] == ["p/a"]
    rows = b"".join(ROW % b"pre/fix/NO-%04d" % number for number in range(1001))
    page = (PAGE % rows).replace(b"true", b"false")
    proxy.faults = [("GET", say(page))]
    assert list(store.list("")) == []  # whoever may add objects may add these
    monkeypatch.setattr("lamella.stores.s3.store.MOST_OTHERS", 1000)
    proxy.faults = [("GET", say(page))]
    with pytest.raises(StoreRefused, match="more than 1000"):
        list(store.list(""))
    store.close()


def test_texts_of_the_service_are_shown_without_control_characters(proxy: Proxy) -> None:
    store = store_at(proxy)
    body = "<Error><Code>Odd</Code><Message>&#27;[2J\u202e\r\nroot# </Message></Error>"
    proxy.faults = [("GET", lambda seen, passed: Answer(400, [("Content-Type", "application/xml")], body.encode()))]
    with pytest.raises(StoreError) as caught:
        store.get("p/a")
    assert caught.value.message.isprintable()
    store.close()


def test_a_life_on_a_bad_service(proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third request fails in one way or another; nothing is stored twice, and all is there."""
    bucket = proxy.service.new_bucket()
    store = patient(store_at(proxy, bucket), attempts=20)
    truth = Truth()
    faults = [hang_up, status(503, "SlowDown"), lose_reply, status(500), cut(3)]
    proxy.faults = [("*", one) for fault in faults * 40 for one in (pass_on, pass_on, fault)]
    planned = len(proxy.faults)
    with short_rescue(monkeypatch):
        init(store, host_at(tmp_path / "one"))
        for content in (FIRST, SECOND):
            truth.learn(backup(store, host_at(tmp_path / "one"), volume(content)), {"disk": content})
        check_sound(store, host_at(tmp_path / "one"), truth, tmp_path)
    assert planned - len(proxy.faults) > 60
    proxy.faults = []
    check_sound(store, fresh_host(tmp_path / "other"), truth, tmp_path)
    packs = [entry for entry in store.list("p/")]
    assert len(packs) == 2
    store.close()


class Ended(Exception):
    """The process is gone."""


class EndingStore(RetryingStore):
    """Stops the program at one call, before or after it was made: what was put stays."""

    def __init__(self, inner: Store, call: int, *, after: bool) -> None:
        super().__init__(inner)
        self._left = call
        self._after = after

    def _through(self, call: Callable[[], T]) -> T:
        self._left -= 1
        if self._left <= 0 and not (self._left == 0 and self._after):
            raise Ended
        result = call()
        if self._left <= 0:
            raise Ended
        return result


def test_a_run_ended_anywhere_is_followed_by_one_that_works(
    service: S3Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = 0
    with short_rescue(monkeypatch):
        for call in range(1, 200, 3):
            bucket = service.new_bucket()
            host = host_at(tmp_path / f"host-{call}")
            truth = Truth()
            plain = service.store(bucket)
            init(plain, host)
            truth.learn(backup(plain, host, volume(FIRST)), {"disk": FIRST})
            try:
                backup(EndingStore(plain, call, after=call % 2 == 0), host, volume(SECOND))
            except Ended:
                ended += 1
            else:
                break
            truth.learn(backup(plain, host, volume(SECOND)), {"disk": SECOND})
            check_sound(plain, host, truth, tmp_path, others=(SECOND,))
            check_sound(plain, fresh_host(tmp_path / f"fresh-{call}"), truth, tmp_path, others=(SECOND,))
            plain.close()
    assert ended > 3


def test_nobody_listens() -> None:
    store = S3Store.open("//bucket/x?endpoint=http://127.0.0.1:1", environment=CREDENTIALS)
    with pytest.raises(StoreUnavailable):
        store.get("a")
    with pytest.raises(LamellaError):
        S3Store.open("//bucket/x?endpoint=http://127.0.0.1:1", create=True, environment=CREDENTIALS)
    store.close()


# --- the cause that is really the cause -------------------------------------------------------------------------------

CAUSES = {
    "skewed clock": ("RequestTimeTooSkewed", 403, "set this machine's clock"),
    "wrong region": ("AuthorizationHeaderMalformed", 400, "region=NAME"),
    "redirect": ("PermanentRedirect", 301, "endpoint=URL"),
    "bad secret": ("SignatureDoesNotMatch", 403, "AWS_SECRET_ACCESS_KEY"),
    "bad key": ("InvalidAccessKeyId", 403, "AWS_ACCESS_KEY_ID"),
    "expired token": ("ExpiredToken", 400, "AWS_SESSION_TOKEN has expired"),
    "foreign token": ("InvalidToken", 400, "AWS_SESSION_TOKEN does not belong"),
    "no right": ("AccessDenied", 403, "may this credential do that here?"),
}


@pytest.mark.parametrize(("code", "answer", "hint"), CAUSES.values(), ids=CAUSES.keys())
def test_every_command_names_the_cause_of_a_refusal(
    proxy: Proxy, tmp_path: Path, code: str, answer: int, hint: str
) -> None:
    """HEAD has no body: whatever asks by HEAD first must find out all the same."""
    bucket = proxy.service.new_bucket()
    (tmp_path / "key").write_bytes(bytes(32))
    (tmp_path / "key").chmod(0o600)
    env = {**CREDENTIALS, "LAMELLA_REPO": f"s3:{proxy.through.place(bucket)}"}
    lamella = Lamella(env, ["--keyfile", str(tmp_path / "key")])
    (tmp_path / "img").write_bytes(b"content")
    for command in (["init"], ["list"], ["backup", str(tmp_path / "img")], ["doctor"]):
        proxy.faults = [("*", status(answer, code))] * 100
        done = lamella.run(*command)
        assert done.code == 1, (command, done)
        assert code in done.err + done.out, (command, done)
        assert hint in done.err + done.out, (command, done)
        assert "init" not in done.err


@pytest.mark.parametrize("command", ["list", "backup", "verify"])
def test_a_missing_bucket_is_no_missing_repository(proxy: Proxy, tmp_path: Path, command: str) -> None:
    (tmp_path / "key").write_bytes(bytes(32))
    (tmp_path / "key").chmod(0o600)
    env = {**CREDENTIALS, "LAMELLA_REPO": f"s3:{proxy.through.place('never-made')}"}
    source = [str(tmp_path / "key")] if command == "backup" else []
    done = Lamella(env, ["--keyfile", str(tmp_path / "key")]).run(command, *source)
    assert done.code == 10
    assert "there is no bucket never-made" in done.err
    assert "lamella init" not in done.err


def test_a_name_that_is_free_costs_one_question(proxy: Proxy) -> None:
    """The second question, by GET, is asked until the bucket has shown itself, not for every name."""
    store = store_at(proxy)
    for number in range(5):
        with pytest.raises(ObjectNotFound):
            store.stat(f"p/{number}")
    assert proxy.count() == {"HEAD": 5, "GET": 1}
    store.close()


# --- services that do not know every header ---------------------------------------------------------------------------


def refuses(header: str, code: int, name: str) -> Fault:
    """Refuse every request that carries a header; pass the others on."""
    refused = status(code, name)

    def fault(seen: Seen, passed: Callable[[], Answer]) -> Answer | None:
        found = any(one.startswith(header) for one in seen.headers)
        return refused(seen, passed) if found else passed()

    return fault


@pytest.mark.parametrize(("code", "name"), [(400, "InvalidRequest"), (501, "NotImplemented"), (400, "InvalidArgument")])
@pytest.mark.parametrize("headers", [["x-amz-checksum-"], ["if-none-match"], ["x-amz-checksum-", "if-none-match"]])
def test_a_service_that_refuses_a_header_is_asked_without(
    proxy: Proxy, headers: list[str], code: int, name: str
) -> None:
    store = store_at(proxy)

    def fault(seen: Seen, passed: Callable[[], Answer]) -> Answer | None:
        for header in headers:
            if any(one.startswith(header) for one in seen.headers):
                return status(code, name)(seen, passed)
        assert seen.method != "PUT" or "content-md5" in seen.headers or "x-amz-checksum-sha256" in seen.headers
        return passed()

    proxy.faults = [("*", fault)] * 100
    store.put("p/a", Sealed(b"content"))
    assert store.get("p/a") == b"content"
    store.put("p/a", Sealed(b"content"))
    with pytest.raises(StoreRefused):
        store.put("p/a", Sealed(b"other"))
    proxy.forget()
    store.put("p/b", Sealed(b"content"))
    assert proxy.count()["PUT"] == 1, "what the service takes is known by now"
    store.close()


def test_a_refusal_with_a_meaning_is_no_reason_to_ask_for_less(proxy: Proxy) -> None:
    store = store_at(proxy)
    for name in ("BadDigest", "ExpiredToken", "EntityTooLarge", "InvalidStorageClass"):
        proxy.faults = [("PUT", status(400, name))]
        proxy.forget()
        with pytest.raises(StoreRefused):
            store.put("p/a", Sealed(b"content"))
        assert proxy.count()["PUT"] == 1
    store.close()


# --- what is no S3 service --------------------------------------------------------------------------------------------

LOGIN = b"<html><head><title>Welcome</title></head><body>Log in to this network.</body></html>"


def login_page(code: int, *headers: tuple[str, str]) -> Fault:
    """Answer as a login page does."""
    return lambda seen, passed: Answer(code, [("Content-Type", "text/html"), *headers], LOGIN)


LOGINS = {
    "200": login_page(200),
    "302": login_page(302, ("Location", "http://192.0.2.1/login")),
    "307": login_page(307, ("Location", "http://192.0.2.1/login")),
    "404": login_page(404),
    "403": login_page(403),
    "511": login_page(511),
}


@pytest.mark.parametrize("fault", LOGINS.values(), ids=LOGINS.keys())
@pytest.mark.parametrize("method", ["put", "get", "stat", "list", "init"])
def test_a_login_page_is_neither_damage_nor_an_empty_bucket(
    proxy: Proxy, service: S3Service, method: str, fault: Fault
) -> None:
    bucket = service.new_bucket()
    store = store_at(proxy, bucket)
    calls: dict[str, Callable[[], object]] = {
        "put": lambda: store.put("p/b", Sealed(b"other")),
        "get": lambda: store.get("p/a"),
        "stat": lambda: store.stat("p/a"),
        "list": lambda: list(store.list("")),
        "init": lambda: S3Store.open(proxy.through.place(bucket), create=True, environment=CREDENTIALS),
    }
    proxy.faults = [("*", fault)] * 20
    with pytest.raises(StoreUnavailable) as caught:
        calls[method]()
    assert "no S3 service" in caught.value.message
    assert "login page" in caught.value.hint
    store.close()


def test_a_trickle_ends_at_its_deadline() -> None:
    """An answer that comes a little at a time is given up when it is late, not when it is whole."""
    moments = iter([0.0, 0.0])  # the deadline is set, some bytes come; then the night is over
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as threads:

        def trickle() -> None:
            with listening.accept()[0] as line:
                line.recv(1 << 16)
                line.sendall(b"HTTP/1.1 200 OK\r\nETag: x\r\nContent-Length: 1048576\r\n\r\n" + bytes(65536))
                while line.recv(1):  # until the other side hangs up
                    continue

        told = threads.submit(trickle)
        place = parse_place(f"//bucket/x?endpoint=http://127.0.0.1:{listening.getsockname()[1]}", {})
        client = S3Client(place, CREDENTIALS, lambda: next(moments, 1e9))
        with pytest.raises(StoreUnavailable, match="too slowly"):
            client.read("p/ab/x", 0, None)
        client.close()
        told.result(60)
