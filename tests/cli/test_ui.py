"""`lamella ui` as its users fear it: somebody else speaks to it, and one who is slow keeps everybody out."""

from __future__ import annotations

import html
import os
import re
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.page_server import PageServer, serving
from tests.cli.program import ROOT, Lamella

PLACES = ("/", "/volumes", "/profiles", "/jobs", "/r/0/disk", "/style.css", "/page.js", "/jobs/1/now", "/nowhere")
BOUND_SECONDS = 5.0
"""Much longer than an answer takes on a busy machine, and shorter than a deadline."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    base = tmp_path_factory.mktemp("page")
    (base / "disk.img").write_bytes(os.urandom(3 << 20))
    (base / "key").write_bytes(os.urandom(32))
    (base / "key").chmod(0o600)
    env = {f"LAMELLA_{name}": str(base / name.lower()) for name in ("STATE_DIR", "CACHE_DIR", "CONFIG")}
    lamella = Lamella({**env, "LAMELLA_REPO": str(base / "repository")}, ["--keyfile", str(base / "key")])
    lamella.ok("init", "-q")
    lamella.ok("backup", base / "disk.img")
    with serving(lamella) as server:
        server.folder = base
        server.enter()
        yield server


@pytest.fixture
def page(shared: PageServer, monkeypatch: pytest.MonkeyPatch) -> PageServer:
    """One server for all; each test begins in its session."""
    monkeypatch.setattr(shared, "cookie", shared.cookie)
    return shared


def snapshot_place(page: PageServer) -> str:
    found = re.search(r'href="(/r/0/disk/[^"]+)"', page.get("/r/0/disk").text)
    assert found is not None
    return found[1]


def until_ended(page: PageServer, place: str) -> str:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        text = page.get(place).text
        if '<strong id="state">works' not in text:
            return text
        time.sleep(0.2)
    raise AssertionError(text)


def test_pages_show_what_there_is_and_start_a_restore(page: PageServer, tmp_path: Path) -> None:
    assert "1 to look at" in page.get("/").text and "disk" in page.get("/volumes").text
    place = snapshot_place(page)
    assert "chunk size" in page.get(place).text and "Restore it" in page.get(place).text
    began = time.perf_counter()
    for one in ("/", "/volumes", "/jobs", "/profiles", "/r/0/disk", place, f"{place}/restore"):
        assert page.get(one).status == 200
    assert time.perf_counter() - began < BOUND_SECONDS, "nothing is asked of the repository again"
    target = tmp_path / "out of it.img"
    plan = page.post(f"{place}/plan", {"to": str(target)})
    assert f"will create {target}" in plan.text and not target.exists()
    job = page.post(f"{place}/restore", {"to": str(target)})
    assert job.status == 303
    text = until_ended(page, job.headers["Location"])
    assert '<strong id="state">done' in text and "restored disk@" in text
    assert f"will create {target}\nrestored disk@" in text, "a line a message"
    assert target.read_bytes() == (page.folder / "disk.img").read_bytes()
    again = page.post(f"{place}/plan", {"to": str(target)})
    assert "exists already" in again.text and "overwrite" in again.text
    refused = page.post(f"{place}/restore", {"to": str(target)})
    assert "exists already" in until_ended(page, refused.headers["Location"])


def test_only_this_machine_is_listened_to(empty: Lamella, tmp_path: Path) -> None:
    for place in ("0.0.0.0:0", "[::]:0", "192.0.2.1:80", "nonsense"):
        done = empty.run("ui", "--listen", place)
        assert done.code == 2 and len(done.err.splitlines()) == 1 and not done.out, done
    long = tmp_path / ("x" * 120)
    assert empty.run("ui", "--socket", str(long)).code == 2
    (tmp_path / "file").touch()
    assert empty.run("ui", "--socket", str(tmp_path / "file")).code == 2
    assert empty.run("ui", "--socket", "x", "--listen", "127.0.0.1:0").code == 2


def test_a_socket_file_is_for_its_owner_alone() -> None:
    with tempfile.TemporaryDirectory(prefix="lamella-") as folder:  # a socket's path has 107 bytes
        base = Path(folder)
        (base / "key").write_bytes(os.urandom(32))
        (base / "key").chmod(0o600)
        lamella = Lamella({"LAMELLA_REPO": str(base / "repo")}, ["--keyfile", str(base / "key")])
        lamella.ok("init", "-q")
        path = base / "page"
        with serving(lamella, "--socket", str(path), path=path) as server:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert server.get("/", Host="evil.example").status == 421
            server.enter()
            assert "Nothing is saved yet" in server.get("/", Host="localhost:9999").text
        assert not path.exists()


def test_without_the_session_nothing_is_told(page: PageServer) -> None:
    cookie, page.cookie = page.cookie, ""
    name, _, value = cookie.partition("=")
    for wrong in ("", f"{name}=", f"{name}=x", f"other={value}", f"{name}={value[:-1]}", f"{name}={value}x"):
        for place in PLACES:
            reply = page.get(place, Cookie=wrong or None)
            assert reply.status == 403 and "disk" not in reply.text, (wrong, place)
        assert page.post("/look", {}, Cookie=wrong or None).status == 403
    assert page.get("/", Cookie=f"a=b; {cookie}; c=d").status == 200


def test_the_token_opens_once_and_dies_of_guesses(empty: Lamella) -> None:
    with serving(empty) as server:
        query = server.url.partition("?")[2]
        assert server.get(f"/?{query}").status == 303
        assert server.get(f"/?{query}").status == 403
    with serving(empty) as server:
        query = server.url.partition("?")[2]
        for guess in ("token=", "token=x", f"{query}x", f"{query[:-1]}", "token=%ff"):
            assert server.get(f"/?{guess}").status == 403
        assert server.get(f"/?{query}").status == 403, "the right one, too late"


def test_only_its_own_name_is_answered(page: PageServer) -> None:
    port = page.host.rpartition(":")[2]
    assert page.get("/", Host=f"localhost:{port}").status == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", "127.0.0.1:1", f"127.0.0.1.nip.io:{port}", None):
        reply = page.get("/", Host=host)
        assert reply.status == 421 and "disk" not in reply.text, host
    two = f"GET / HTTP/1.1\r\nHost: {page.host}\r\nHost: evil.example\r\nCookie: {page.cookie}\r\n\r\n"
    assert b" 421 " in page.raw(two.encode()).partition(b"\r\n")[0]


def test_forms_of_other_sites_do_nothing(page: PageServer, tmp_path: Path) -> None:
    place, target = snapshot_place(page), tmp_path / "out.img"
    fields = {"to": str(target)}
    port = int(page.host.rpartition(":")[2])
    for origin in (None, "null", "http://evil.example", f"https://{page.host}", f"http://127.0.0.1:{port ^ 1}"):
        assert page.post(f"{place}/restore", fields, Origin=origin).status == 403, origin
    assert page.post(f"{place}/restore", fields, Sec_Fetch_Site="cross-site").status == 403
    for seal in ("", "x", page.seal[:-1]):
        assert page.post(f"{place}/restore", {**fields, "seal": seal}).status == 403
    assert page.get(f"{place}/restore?to={target}&seal={page.seal}").status == 200, "a form and no deed"
    assert str(target) not in page.get("/jobs").text and not target.exists()


def test_every_answer_forbids_what_a_page_does_not_need(page: PageServer) -> None:
    for reply in (page.get("/"), page.get("/page.js"), page.get("/", Cookie=None), page.get("/", Host="x")):
        policy = reply.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert reply.headers["X-Content-Type-Options"] == "nosniff" and reply.headers["Cache-Control"] == "no-store"
        assert not {name.lower() for name in reply.headers} & {"access-control-allow-origin", "server"}
    text = page.get("/").text
    assert not re.search(r"<script(?! src=\"/page.js\" defer></script>)|style=| on\w+=|https?:", text)


@pytest.mark.parametrize(
    "place",
    [
        "/r/0/..%2f..%2fetc%2fpasswd", "/r/0/disk/..%2f..%2f..", "/r/0/disk/%2e%2e", "/r/1/disk", "/r/-1/disk",
        "/r/%C2%B2/disk", "/r/99999999999999999999/disk", "/r/0/--help", "/r/0/disk%00", "/r/0/%ff%fe", "/../../etc",
        "/r/0/disk/latest", "/r/0", "/jobs/0", "/jobs/x/now", "/report.css", "/jobs/" + "9" * 5000,
    ],
)  # fmt: skip
def test_only_what_was_seen_is_found(page: PageServer, place: str) -> None:
    assert page.get(place).status == 404


def test_targets_and_paths_start_at_the_top(page: PageServer) -> None:
    place = snapshot_place(page)
    for to in ("", "out.img", "../x", "--help", "~/x", "/a\0b", "/" + "x" * 5000):
        for deed in ("plan", "restore"):
            assert page.post(f"{place}/{deed}", {"to": to}).status == 400, to
    for path in ("", "etc", "--help", "/a\0b"):
        assert page.post(f"{place}/files", {"path": path, "partition": ""}).status == 400, path


def test_requests_are_bounded(page: PageServer) -> None:
    large = "x=" + "y" * (1 << 20)
    assert page.ask("POST", "/look", large[:20_000]).status == 413
    assert page.ask("POST", "/look", "", Content_Length="99999999999999999999").status == 413
    for length in (None, "-1", "x", "1_0"):
        assert page.ask("POST", "/look", "", Content_Length=length).status == 411, length
    assert page.ask("POST", "/look", "", Transfer_Encoding="chunked").status == 411
    assert page.ask("POST", "/look", "{}", Content_Type="application/json").status == 415
    assert page.post("/look", {str(number): "" for number in range(100)}).status == 400
    assert page.get("/?" + "&".join(f"a{number}=" for number in range(100))).status == 400
    assert page.get("/" + "x" * 70_000).status == 414
    assert page.get("/", X=f"{'x' * 70_000}").status == 431
    many = "".join(f"X-{number}: y\r\n" for number in range(200))
    assert b" 431 " in page.raw(f"GET / HTTP/1.1\r\n{many}\r\n".encode()).partition(b"\r\n")[0]
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "HEAD"):
        assert page.ask(method, "/").status == 501, method
    assert page.raw(b"\x16\x03\x01\x02\x00\x01\xfc\x03\x03\r\n\r\n").startswith(b"Bad request")
    assert page.get("/").status == 200


def test_the_slow_block_nobody_and_get_no_more_time(page: PageServer) -> None:
    slow = [page.connect() for _ in range(40)]
    try:
        for connection in slow:
            connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        began = time.monotonic()
        assert page.get("/").status == 200
        assert time.monotonic() - began < BOUND_SECONDS
        while time.monotonic() - began < 30:
            try:
                slow[0].sendall(b"y")
                slow[0].settimeout(0.5)
                if slow[0].recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        assert time.monotonic() - began < 25, "a byte now and then buys no time"
    finally:
        for connection in slow:
            connection.close()


def test_too_many_are_sent_away(page: PageServer) -> None:
    found: list[socket.socket] = []
    try:
        found += [page.connect() for _ in range(80)]
        with pytest.raises((AssertionError, OSError, IndexError)):
            page.get("/")
    finally:
        for connection in found:
            connection.close()
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            assert page.get("/").status == 200
            return
        except (OSError, IndexError):
            time.sleep(0.1)
    raise AssertionError("they went away, and nobody else is served")


def test_the_end_of_the_server_is_the_end_of_its_jobs(saved: Lamella, tmp_path: Path) -> None:
    big = tmp_path / "big.img"
    with big.open("wb") as file:
        for _ in range(64):
            file.write(os.urandom(1 << 20))
    saved.ok("backup", big)
    target = tmp_path / "out.img"
    with serving(saved) as server:
        server.enter()
        place = re.search(r'href="(/r/0/big/[^"]+)"', server.get("/r/0/big").text)
        assert place is not None
        assert server.post(f"{place[1]}/restore", {"to": str(target)}).status == 303
        assert server.end() == 0
    assert not target.exists() or target.read_bytes() == big.read_bytes()
    saved.ok("restore", "big", "--to", target, *(["--overwrite"] if target.exists() else []))
    assert target.read_bytes() == big.read_bytes()


def test_a_package_without_the_page_says_so(empty: Lamella, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src" / "lamella", tmp_path / "slim" / "lamella", ignore=shutil.ignore_patterns("ui"))
    done = empty.run("ui", env={"PYTHONPATH": str(tmp_path / "slim")})
    assert done.code == 2 and "lamella report --html FILE" in done.err and len(done.err.splitlines()) == 1
    empty.ok("report", "--html", tmp_path / "report.html", env={"PYTHONPATH": str(tmp_path / "slim")})
    script = (ROOT / "src/lamella/cli/pages/page.js").read_text().splitlines()
    assert len(script) <= 150


HIDDEN = r'<input type="hidden" name="([^"]*)" value="([^"]*)">'
ODD = (b"two\nlines", b"\x1b[1mbold", b"\\x1b[1mbold", "caf\u00e9".encode(), b"a&quot;b", b"100%25")


def test_every_button_leads_to_the_directory_that_it_names(empty: Lamella, tmp_path: Path) -> None:
    """What a page shows is escaped; what its forms send back is the name itself."""
    for one in ODD:
        folder = tmp_path / "tree" / os.fsdecode(one)
        folder.mkdir(parents=True)
        (folder / f"{ODD.index(one)}.txt").touch()
    empty.ok("files", "backup", tmp_path / "tree")
    with serving(empty) as page:
        page.enter()
        place = page.get("/r/0/tree").text.partition('href="/r/0/tree/')[2].partition('"')[0]
        files = f"/r/0/tree/{place}/files"

        def listed(fields: dict[str, str]) -> str:
            answer = page.post(files, fields)
            while '<strong id="state">works' in page.get(answer.headers["Location"]).text:
                time.sleep(0.1)
            result = page.get(answer.headers["Location"]).text
            link = re.search(rf'href="({re.escape(files)}/[^"]*)"', result)
            return page.get(html.unescape(link[1])).text if link else result

        forms = [
            {html.unescape(key): html.unescape(value) for key, value in re.findall(HIDDEN, form) if key != "seal"}
            for form in listed({"path": "/", "partition": ""}).split("<form")[1:]
        ]
        shown = {file for form in forms if form for file in re.findall(r"\b\d\.txt", listed(form))}
        assert shown == {f"{number}.txt" for number in range(len(ODD))}
