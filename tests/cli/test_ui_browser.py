"""`lamella ui` in a real Chromium: the ways that a user goes, and the pages of other sites that try to go them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.cli.browser import Browser
from tests.cli.page_server import PageServer, serving
from tests.cli.program import Lamella

PASSPHRASE = "correct horse"
MARKUP = "<img src> & <b>&lt;"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    """A server that was told a passphrase, and a volume whose name is markup."""
    base = tmp_path_factory.mktemp("browser")
    (base / "disk.img").write_bytes(os.urandom(3 << 20))
    (base / "other.img").write_bytes(os.urandom(4096))
    (base / "config.toml").write_text(
        f'[repositories.main]\nurl = "{base}/repository"\n[profiles.nightly]\nsources = ["{base}/disk.img"]\n'
        'repositories = ["main"]\nverify = false\n'
    )
    env = {f"LAMELLA_{name}_DIR": str(base / name.lower()) for name in ("STATE", "CACHE")}
    env |= {"LAMELLA_CONFIG": str(base / "config.toml"), "LAMELLA_PASSPHRASE": PASSPHRASE, "LAMELLA_REPO": "main"}
    lamella = Lamella(env)
    lamella.ok("init", "-q")
    lamella.ok("backup", base / "disk.img", f"{MARKUP}={base / 'other.img'}")
    with serving(lamella) as server:
        server.folder = base
        yield server


@pytest.fixture(scope="module")
def browser(page: PageServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """In the session; evil.example is a name that its owner has turned to this address."""
    rules = "MAP evil.example 127.0.0.1"
    with Browser(tmp_path_factory.mktemp("chromium"), f"--host-resolver-rules={rules}") as found:
        found.go(page.url)
        yield found


def to_plan(browser: Browser, target: Path) -> None:
    """From the status to what a restore would do."""
    browser.press("Volumes")
    browser.press("disk")
    browser.say("document.querySelector('td.name a').innerText = 'the newest'")
    browser.press("the newest")
    assert "chunk size" in browser.text()
    browser.press("Restore it")
    browser.type("to", str(target))
    browser.press("Show what would be done")
    assert f"will create {target}" in browser.text() and not target.exists()


@pytest.mark.parametrize("scripts", [True, False], ids=["with scripts", "without scripts"])
def test_from_the_status_to_the_restored_file(
    page: PageServer, browser: Browser, tmp_path: Path, *, scripts: bool
) -> None:
    target = tmp_path / "out.img"
    browser.scripts(run=scripts)
    browser.go(f"http://{page.host}/")
    assert browser.say("location.search") == "" and "to look at" in browser.text()
    assert browser.say("document.cookie") == "", "no script sees the session"
    to_plan(browser, target)
    if scripts:
        browser.type("passphrase", "mistaken 4711")
        browser.press("Restore")
        wait_for_job(browser, "failed", scripts=scripts)
        assert not target.exists() and "mistaken" not in browser.say("document.documentElement.outerHTML")
        browser.go(f"http://{page.host}/")
        to_plan(browser, target)
    browser.type("passphrase", PASSPHRASE)
    browser.press("Restore")
    wait_for_job(browser, "done", scripts=scripts)
    assert target.read_bytes() == (page.folder / "disk.img").read_bytes()
    assert "restored disk@" in browser.text()
    browser.press("Jobs")
    assert "done" in browser.text() and "failed" in browser.text(), "of the first way"
    browser.scripts(run=True)


def wait_for_job(browser: Browser, state: str, *, scripts: bool) -> None:
    """A page with scripts follows by itself; without them it is loaded again."""
    shown = "document.getElementById('state').innerText"
    while not scripts and browser.say(shown) == "works":
        browser.go(browser.say("location.href"))
    browser.until(f"{shown} == {state!r}")


def test_a_profile_runs_now(page: PageServer, browser: Browser) -> None:
    browser.go(f"http://{page.host}/profiles")
    browser.press("Run now")
    wait_for_job(browser, "done", scripts=True)
    assert "every step was done" in browser.text()


def test_a_name_that_is_markup_is_text(page: PageServer, browser: Browser) -> None:
    for place in ("", "volumes"):
        browser.go(f"http://{page.host}/{place}")
        assert MARKUP in browser.text() and not browser.say("!!document.querySelector('img')")
    browser.press(MARKUP)
    assert MARKUP in browser.text() and PASSPHRASE not in browser.say("document.documentElement.outerHTML")


def test_a_name_turned_to_this_address_sees_nothing(page: PageServer, browser: Browser) -> None:
    port = page.host.rpartition(":")[2]
    browser.go(f"http://evil.example:{port}/")
    assert "by no other" in browser.text() and "disk" not in browser.text()
    browser.go(f"http://evil.example:{port}/?{page.url.partition('?')[2]}")
    assert "by no other" in browser.text()
    assert browser.say("fetch('/volumes').then(answer => answer.status)") == 421


@contextmanager
def other_site(text: str) -> Iterator[int]:
    """A site at another port of this machine, to which the browser sends this machine's cookies."""

    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("site", ["127.0.0.1", "evil.example"])
def test_a_page_of_another_site_starts_and_reads_nothing(page: PageServer, browser: Browser, site: str) -> None:
    here = f"http://{page.host}"
    form = (
        f'<form id="f" method="post" action="{here}/profiles/nightly/run"><input name="seal" value="x"></form>'
        f'<iframe src="{here}/"></iframe><p>other</p>'
    )
    browser.go(f"{here}/jobs")
    before = browser.text()
    with other_site(form) as port:
        browser.go(f"http://{site}:{port}/")
        read = browser.say(f"fetch('{here}/', {{credentials: 'include'}}).then(() => 'read', () => 'refused')")
        sent = (
            f"fetch('{here}/profiles/nightly/run', {{method: 'POST', mode: 'no-cors', credentials: 'include',"
            " headers: {'Content-Type': 'application/x-www-form-urlencoded'}, body: 'seal=x'}).then(() => 1, () => 2)"
        )
        browser.say(sent)
        assert read == "refused" and browser.say("document.querySelector('iframe').contentDocument") is None
        browser.say("document.getElementById('f').submit()")
        browser.until(f"location.href.startsWith('{here}')")
        assert "another site" in browser.text()
    browser.go(f"{here}/jobs")
    assert browser.text() == before
