"""`lamella fleet` as its users fear it: one bad host stops or colours the others, a host that is gone looks green,
a host can delete what it should only add to, and the catalogue knows what no repository says."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lamella.cli.fleet.catalogue import FleetCatalogue
from lamella.cli.fleet.health import host_rows
from lamella.cli.fleet.hosts import FleetHost, read_host
from lamella.cli.fleet.policies import s3_policy
from tests.cli.page_server import serving
from tests.cli.program import COMMAND, SECONDS, Lamella, environment

DAY_MS = 86_400_000
HOSTS = ("one", "two", "three")


class Fleet:
    """A central machine and three hosts, each with a machine's own state, and one volume saved."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.central = Lamella(
            {
                "LAMELLA_CONFIG": str(top / "etc"),
                "LAMELLA_STATE_DIR": str(top / "s"),
                "LAMELLA_CACHE_DIR": str(top / "c"),
            }
        )
        (top / "repos").mkdir()
        for name in HOSTS:
            keyfile = top / f"{name}.key"
            sheet = top / f"{name}.sheet"
            words = ("fleet", "add", name, "--below", top / "repos", "--host-keyfile", keyfile)
            self.central.ok(*words, "--recovery-sheet", sheet)
            self.backup(name)

    def host(self, name: str) -> Lamella:
        """The host itself: it has its own key and nothing of the central machine."""
        env = {
            "LAMELLA_REPO": str(self.repo(name)),
            "LAMELLA_STATE_DIR": str(self.top / f"{name}.state"),
            "LAMELLA_CACHE_DIR": str(self.top / f"{name}.cache"),
        }
        return Lamella(env, ["--keyfile", str(self.top / f"{name}.key")])

    def repo(self, name: str) -> Path:
        return self.top / "repos" / name

    def file(self, name: str) -> Path:
        return self.top / "etc" / "fleet" / f"{name}.toml"

    def backup(self, name: str, volume: str = "disk") -> str:
        image = self.top / f"{name}.img"
        with image.open("ab") as file:
            file.write(os.urandom(1 << 18))
        snapshot = self.host(name).json("backup", "--adopt", f"{volume}={image}")["snapshot"]
        assert isinstance(snapshot, str)
        return snapshot

    def status(self, *, code: int = 3) -> dict[str, dict[str, Any]]:
        return {row["host"]: row for row in self.central.json("fleet", "status", code=code)["hosts"]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once, and copied: what a test does to it is no other's."""
    top = tmp_path_factory.mktemp("fleet") / "a"
    top.mkdir()
    Fleet(top).central.ok("fleet", "verify", "--level", "full")
    return top


@pytest.fixture
def fleet(made: Path, tmp_path: Path) -> Fleet:
    found = Fleet.__new__(Fleet)
    found.top = tmp_path / "f"
    shutil.copytree(made, found.top)
    names = {"CONFIG": "etc", "STATE_DIR": "s", "CACHE_DIR": "c"}
    found.central = Lamella({f"LAMELLA_{word}": str(found.top / place) for word, place in names.items()})
    for name in HOSTS:  # the copy lies elsewhere, and so do the keys
        text = found.file(name).read_text().replace(str(made), str(found.top))
        found.file(name).write_text(text)
    return found


# -- one host's trouble is its own ------------------------------------------------------------------------------------


def test_a_fleet_is_green_only_after_it_was_looked_at_and_verified(fleet: Fleet) -> None:
    found = fleet.status(code=0)
    assert {row["state"] for row in found.values()} == {"ok"}
    assert all(row["volumes"] == row["snapshots"] == 1 and row["stored_bytes"] > 1 << 18 for row in found.values())
    assert all(row["stored_bytes"] >= row["grown_bytes"] > 1 << 18 and row["verified"] for row in found.values())
    for path in (fleet.top / "s").glob("repo/*/verified.json"):
        path.unlink()
    shutil.rmtree(fleet.top / "c")
    assert {row["state"] for row in fleet.status().values()} == {"bad"}, "never looked at"
    fleet.central.ok("fleet", "refresh")
    assert {tuple(row["reasons"]) for row in fleet.status().values()} == {("disk: never verified here",)}


def test_damaged_lying_and_silent_hosts_stop_and_colour_nobody(fleet: Fleet) -> None:
    for path in fleet.repo("one").glob("w/*/*"):  # the history of one is damaged
        path.chmod(0o600)
        path.write_bytes(path.read_bytes()[:-9] + b"damaged!!")
    shutil.rmtree(fleet.top / "c")  # nothing is remembered for it either
    fleet.file("silent").write_text(f'url = "ssh://nowhere/r"\nssh_command = "{silent_ssh(fleet.top)}"\n')
    fleet.file("broken").write_text("url = ")
    fleet.file("unknown").write_text('url = "/x"\nkeyfil = "/y"\n')
    done = fleet.central.run("fleet", "refresh", "one", "two", "three", "broken", "unknown")
    assert done.code == 3, done
    lines = {line.partition(":")[0]: line for line in done.out.splitlines()}
    assert lines["two"] == "two: looked at" and lines["three"] == "three: looked at"
    assert "FAILED (2): its file is not valid TOML" in lines["broken"] and "unknown key keyfil" in lines["unknown"]
    assert fleet.central.run("fleet", "refresh", "silent", "--seconds", "0").code == 2
    assert fleet.central.run("fleet", "refresh", "silent", "--seconds", "3").code == 3
    fleet.central.ok("fleet", "verify", "two", "three")  # what was verified at another place counts for nothing here
    found = fleet.status()
    assert [name for name, row in found.items() if row["state"] == "ok"] == ["three", "two"]
    assert "cannot be looked at, never seen: it did not end in time" in found["silent"]["reasons"][0]
    assert found["one"]["state"] == "bad" and found["one"]["reasons"]
    # The same of what is done: each host has its line, and the others are served.
    done = fleet.central.run("fleet", "prune", "one", "two", "three", "broken", "--keep-last", "1", "-y")
    assert done.code == 3 and "two: 0 snapshots removed" in done.out and "three: 0 snapshots removed" in done.out
    assert "broken: FAILED" in done.out and "one: FAILED" in done.out
    assert any("prune failed" in reason for reason in fleet.status()["one"]["reasons"])


def test_a_host_that_vanished_is_told_with_the_age_of_what_is_known(fleet: Fleet) -> None:
    fleet.repo("two").rename(fleet.top / "elsewhere")
    assert fleet.central.run("fleet", "refresh").code == 3
    row = fleet.status()["two"]
    assert row["state"] == "bad" and "cannot be looked at, last seen" in row["reasons"][0]
    assert " now ago" not in row["reasons"][0]
    assert row["volumes"] == 1 and row["looked"], "what was known stays"
    page = fleet.top / "page.html"
    assert fleet.central.run("fleet", "status", "--html", page).code == 3
    assert "1 bad" in page.read_text() and page.stat().st_mode & 0o777 == 0o600
    # A file that is gone is no host that is in order.
    fleet.file("three").unlink()
    row = fleet.status()["three"]
    assert row["state"] == "bad" and "no file names it any more" in row["reasons"][0]
    fleet.central.ok("fleet", "refresh", "--forget", "three")
    assert set(fleet.status()) == {"one", "two"}
    assert fleet.central.run("fleet", "refresh", "--forget", "one").code == 4


def test_an_old_look_makes_hosts_stale(fleet: Fleet) -> None:
    fleet.file("one").write_text(fleet.file("one").read_text() + 'stale_after = "12h"\n')
    hosts = [read_host(fleet.file(name)) for name in HOSTS]
    with FleetCatalogue.open(fleet.top / "c" / "fleet" / "catalogue.sqlite") as catalogue:
        now = catalogue.host("one").seen_ms

        def states(later: int) -> list[str]:
            return [row["state"] for row in host_rows(hosts, catalogue, now + later)]

        assert states(0) == ["ok", "ok", "ok"]
        assert states(DAY_MS // 2 + 60_000) == ["bad", "ok", "ok"]
        assert states(3 * DAY_MS) == ["bad", "bad", "bad"]
        # A line that is down is a warning at first, and no longer than a host may be stale.
        catalogue.failed("two", now, 1, "store-unavailable", "no route")
        assert states(0) == ["ok", "warn", "ok"] and states(3 * DAY_MS)[1] == "bad"
        catalogue.failed("two", now, 10, "no-repository", "nothing is there")
        assert states(0) == ["ok", "bad", "ok"]


def silent_ssh(top: Path) -> Path:
    """An ssh that says nothing, until nobody is there to hear it; which of them began stands in `begun`.

    The shell keeps its output open: an end of the output would be an answer.
    """
    path = top / "silent-ssh"
    path.write_text(f"#!/bin/sh\necho $$ >> {top}/begun\ncat > /dev/null\n")
    path.chmod(0o755)
    return path


def document(*history: tuple[str, bool], **more: object) -> dict[str, Any]:
    """What a look at a host with one volume says."""
    rows = [
        {"snapshot": f"s{time}", "time": time, "good": good, "stored_bytes": 5, "consistency": "live", "tags": []}
        for time, good in history
    ]
    volume = {"name": "disk", "consistency": "live", "size": 9, "snapshots": len(rows), "trouble": "", "level": "full"}
    volume |= {"verdict": "ok", "verified_ms": 1_795_000_000_000, "drill": "", "drilled_ms": 0}
    volume |= {"history": rows, "failed": [], **more}
    return {"keys": True, "never": {}, "problems": [], "packs": 1, "stored_bytes": 100, "volumes": [volume]}


@pytest.fixture
def catalogue(tmp_path: Path) -> Iterator[FleetCatalogue]:
    with FleetCatalogue.open(tmp_path / "fleet" / "catalogue.sqlite") as found:
        yield found


NOW = 1_795_737_600_000  # 2026-11-27


def reasons(catalogue: FleetCatalogue, quota: int | None = None) -> list[str]:
    host = FleetHost("h", Path("/h.toml"), read_host(Path("/nowhere.toml")).settings, quota)
    (row,) = host_rows([host], catalogue, NOW)
    assert (row["state"] == "ok") == (not row["reasons"])
    return [str(one) for one in row["reasons"]]


def test_a_snapshot_from_the_future_makes_no_host_fresh(catalogue: FleetCatalogue) -> None:
    catalogue.take_in("h", NOW, document(("2026-11-26T12:00:00Z", True)))
    assert reasons(catalogue) == []
    catalogue.take_in("h", NOW, document(("2026-11-20T12:00:00Z", True), ("2090-01-01T00:00:00Z", True)))
    assert reasons(catalogue) == ["the newest good snapshot is 6 d old"]
    catalogue.take_in("h", NOW, document(("2026-11-20T12:00:00Z", True), ("2026-11-26T12:00:00Z", False)))
    assert reasons(catalogue) == ["the newest good snapshot is 6 d old"], "one that is not whole counts no more"


def test_every_reason_is_given(catalogue: FleetCatalogue) -> None:
    fresh = ("2026-11-26T12:00:00Z", True)
    catalogue.take_in("h", NOW, document(fresh, verdict="damaged"))
    assert "damage was found" in reasons(catalogue)[0]
    catalogue.take_in("h", NOW, document(fresh, verified_ms=NOW - 40 * DAY_MS, drill="failed", trouble="lost"))
    assert reasons(catalogue) == ["disk: lost", "disk: not verified for 30 days", "disk: the drill failed"]
    catalogue.take_in("h", NOW, document(fresh) | {"never": {"x": "gone"}, "problems": ["a fork; accept it"]})
    assert reasons(catalogue) == ["a fork; accept it", "x was never saved: gone"]
    catalogue.take_in("h", NOW, document(fresh) | {"volumes": []})
    assert reasons(catalogue) == ["it has no snapshot yet"]
    catalogue.take_in("h", NOW, document(fresh))
    assert reasons(catalogue, 100) == ["the quota of 100 B is full: 100 B"]
    assert "95 % of the quota" in reasons(catalogue, 105)[0] and not reasons(catalogue, 200)
    two = document(fresh)["volumes"] + document(("2026-11-01T12:00:00Z", True))["volumes"]
    two[1]["name"] = "old"
    catalogue.take_in("h", NOW, document() | {"volumes": two})
    assert reasons(catalogue) == ["old: no good snapshot for 2 d"]


@pytest.mark.parametrize(
    "rubbish",
    [
        {"keys": True},
        {"keys": False},
        document(("no time", True)),
        document(("2026-11-26T12:00:00Z", True)) | {"volumes": 5},
        document(("2026-11-26T12:00:00Z", True)) | {"volumes": [[]]},
        document(("2026-11-26T12:00:00Z", True), size="much"),
        document(("2026-11-26T12:00:00Z", True)) | {"stored_bytes": "x"},
        document(("2026-11-26T12:00:00Z", True)) | {"never": 5},
    ],
)
def test_an_answer_that_is_none_leaves_what_was_known(catalogue: FleetCatalogue, rubbish: dict[str, Any]) -> None:
    from lamella.base.errors import LamellaError

    catalogue.take_in("h", NOW, document(("2026-11-26T12:00:00Z", True)))
    with pytest.raises(LamellaError, match="cannot be understood"):
        catalogue.take_in("h", NOW, rubbish)
    assert reasons(catalogue) == []


# -- the catalogue is disposable --------------------------------------------------------------------------------------


def test_a_lost_or_damaged_catalogue_comes_back_out_of_the_repositories(fleet: Fleet) -> None:
    fleet.backup("two", "other")
    fleet.central.ok("fleet", "refresh", "two")
    before = fleet.central.json("fleet", "search", "--host", "two")["snapshots"]
    assert len(before) == 2
    path = fleet.top / "c" / "fleet" / "catalogue.sqlite"
    for content in (b"", b"no database at all" * 100, path.read_bytes()[:4096] + b"\xff" * 9000, None):
        for beside in path.parent.iterdir():
            beside.unlink()
        if content is not None:
            path.write_bytes(content)
        fleet.central.run("fleet", "refresh", "two")  # one that finds damage in the middle removes the file
        fleet.central.ok("fleet", "refresh", "two")
        assert fleet.central.json("fleet", "search", "--host", "two")["snapshots"] == before


def test_search_finds_by_host_volume_and_date(fleet: Fleet) -> None:
    fleet.backup("two", "other")
    fleet.central.ok("fleet", "refresh", "two")

    def found(*words: str, code: int = 0) -> list[tuple[str, str]]:
        rows = fleet.central.json("fleet", "search", *words, code=code).get("snapshots", ())
        return sorted((row["host"], row["volume"]) for row in rows)

    assert found("--since", "today", "--until", "today") == found() and len(found()) == 4
    assert found("oth*") == [("two", "other")] == found("other", "--host", "t*")
    assert found("--host", "two") == [("two", "disk"), ("two", "other")]
    assert found("--until", "2026-01-01", code=4) == found("[xyz]*", code=4) == []
    assert fleet.central.run("fleet", "search", "--since", "someday").code == 2
    assert fleet.central.run("fleet", "search", "--since", "today", "--until", "2020-01-01").code == 2
    done = fleet.central.json("fleet", "search", "--most", "1")
    assert done["more"] and done["snapshots"][0]["host"] == "two", "the newest"
    one = done["snapshots"][0]
    target = fleet.top / "back.img"
    fleet.central.ok("restore", "-r", "fleet:two", f"other@{one['snapshot']}", "--to", target)
    assert target.read_bytes() == (fleet.top / "two.img").read_bytes()


def test_names_of_liars_are_shown_and_nothing_else(fleet: Fleet) -> None:
    name = '<script>alert("x")</script>\x1b[2J'
    assert fleet.host("one").run("backup", f"{name}={fleet.top}/one.img").code == 2, "no honest host makes such a name"
    fleet.backup("one", "<b>&amp;")
    fleet.central.ok("fleet", "refresh", "one")
    page = fleet.top / "page.html"
    fleet.central.run("fleet", "status", "--html", page)
    assert "<b>" not in page.read_text() and "&lt;b&gt;&amp;amp;" in page.read_text()
    with FleetCatalogue.open(fleet.top / "c" / "fleet" / "catalogue.sqlite") as catalogue:
        evil = document(("2026-11-26T12:00:00Z", True), name=name, trouble=name)
        catalogue.take_in("three", int(time.time() * 1000), evil)
    fleet.central.run("fleet", "status", "--html", page)
    assert "<script" not in page.read_text() and "\x1b" not in page.read_text()
    for words in (("status",), ("list", "three"), ("search",)):
        assert "\x1b" not in fleet.central.run("fleet", *words).out


# -- keys -------------------------------------------------------------------------------------------------------------


def test_without_a_key_only_amounts_show_and_nothing_looks_greener(fleet: Fleet) -> None:
    text = fleet.file("one").read_text()
    fleet.file("one").write_text("".join(line for line in text.splitlines(True) if not line.startswith("keyfile")))
    fleet.central.ok("fleet", "refresh", "one")
    path = fleet.top / "c" / "fleet" / "catalogue.sqlite"
    with FleetCatalogue.open(path) as catalogue:
        first = catalogue.host("one").facts
    row = fleet.status()["one"]
    assert not row["keys"] and row["volumes"] == 0 and row["stored_bytes"] > 1 << 18
    assert row["state"] == "warn" and "nothing was added since the first look" in row["reasons"][0]
    fleet.central.ok("fleet", "refresh", "one")
    with FleetCatalogue.open(path) as catalogue:
        assert catalogue.host("one").facts == first, "nothing was added: nothing is newer"
    fleet.backup("one")
    fleet.central.ok("fleet", "refresh", "one")
    with FleetCatalogue.open(path) as catalogue:
        later = catalogue.host("one").facts
        assert later["advanced_ms"] > first["advanced_ms"] and later["chains"] != first["chains"]
        host = read_host(fleet.file("one"))
        assert host_rows([host], catalogue, later["advanced_ms"])[0]["state"] == "ok"
        (old,) = host_rows([host], catalogue, later["advanced_ms"] + 3 * DAY_MS)[:1]
    assert old["state"] == "bad" and old["reasons"] == ["nothing was added for 3 d"]
    assert b"disk" not in json.dumps(later).encode()
    done = fleet.central.run("fleet", "verify", "--level", "structure")
    assert done.code == 0 and "one: not done: this machine has no key of it" in done.out
    assert fleet.central.run("fleet", "verify", "one").code == 3, "who names it expects that it is done"


def test_the_key_of_the_host_cannot_delete(fleet: Fleet) -> None:
    fleet.backup("one")
    host = fleet.host("one")
    done = host.run("delete", "disk", "--all-snapshots", "-y")
    assert done.code != 0 and len(host.json("list")["snapshots"]) == 2
    roles = [(row["type"], row["role"]) for row in host.json("key", "list")["slots"] if row["current"]]
    assert roles == [("key file", "writer")]
    fleet.central.ok("fleet", "verify", "one", "--level", "full")
    fleet.central.ok("fleet", "prune", "one", "--keep-tag", "none", "-y")
    assert len(host.json("list")["snapshots"]) == 1
    assert fleet.status(code=0)["one"]["snapshots"] == 1, "the catalogue knows it at once"
    assert fleet.central.run("fleet", "prune", "-y").code == 2, "without a rule nothing is pruned"


def test_the_line_for_ssh_lets_the_host_add_and_nothing_else(fleet: Fleet) -> None:
    """sshd runs the command of the line, whatever the client asks for: so does this one."""
    fake = fleet.top / "ssh"
    fake.write_text(f'#!/bin/sh\nexec sh -c "$(cat {fleet.top}/line)"\n')
    fake.chmod(0o755)
    lamella = shlex.join(COMMAND)
    (fleet.top / "line").write_text(f"{lamella} serve {fleet.top}/repos/four")
    url = f"ssh://backup@nas{fleet.top}/repos"
    words = ("fleet", "add", "four", "--below", url, "--host-keyfile", fleet.top / "four.key", "--quota", "2M")
    made = fleet.central.json(*words, "--recovery-sheet", fleet.top / "four.sheet", "--ssh-command", str(fake))
    line = made["authorized_keys"]
    assert (
        line == f'restrict,command="lamella serve --append-only --quota 2M {fleet.top}/repos/four" KEY-OF-THE-HOST four'
    )
    (fleet.top / "line").write_text(line.split('"')[1].replace("lamella", lamella, 1))
    host = Lamella(
        {"LAMELLA_REPO": f"{url}/four", "LAMELLA_STATE_DIR": str(fleet.top / "four.state"),
         "LAMELLA_CACHE_DIR": str(fleet.top / "four.cache")},
        ["--ssh-command", str(fake)],
    )  # fmt: skip
    image = fleet.top / "four.img"
    image.write_bytes(os.urandom(1 << 19))
    key = ["--keyfile", str(fleet.top / "four.key")]
    host.ok("backup", f"disk={image}", *key)
    admin = ["--keyfile", str(fleet.top / "etc" / "fleet" / "four.key")]
    objects = sorted((fleet.top / "repos" / "four").rglob("*"))
    done = host.run("delete", "disk", "--all-snapshots", "-y", *admin)
    assert done.code != 0, "not even with an admin's secret, through this line"
    assert set(objects) <= set((fleet.top / "repos" / "four").rglob("*"))
    image.write_bytes(os.urandom(1 << 22))
    assert host.run("backup", f"disk={image}", *key).code == 1, "the quota"


def test_the_policy_for_s3_names_one_prefix(fleet: Fleet) -> None:
    policy = json.loads(s3_policy("s3://my-backups/hosts/web"))
    listing, adding, denied = policy["Statement"]
    assert listing["Condition"] == {"StringLike": {"s3:prefix": "hosts/web/*"}}
    assert adding["Resource"] == "arn:aws:s3:::my-backups/hosts/web/*" and "s3:DeleteObject" not in adding["Action"]
    assert denied["Resource"] == "arn:aws:s3:::my-backups/hosts/web/keys/*" and denied["Effect"] == "Deny"
    done = fleet.central.run("fleet", "add", "whole", "-r", "s3://my-backups", "--no-key")
    assert done.code == 2 and "not all of it" in done.err


# -- adding -----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_added_leaves_nothing(fleet: Fleet) -> None:
    repos, key, known = fleet.top / "repos", fleet.top / "new.key", fleet.top / "known"
    shutil.copytree(fleet.repo("one"), known)
    (fleet.top / "link").symlink_to(fleet.repo("one"))
    before = sorted(fleet.top.rglob("*"))
    for code, words in (
        (2, ["one", "--below", repos, "--host-keyfile", key]),  # there already
        (2, ["new"]),  # nowhere
        (2, ["..new", "--below", repos, "--host-keyfile", key]),
        (2, ["new", "--below", repos]),  # nobody takes the host's key
        (2, ["new", "--below", repos, "--host-keyfile", fleet.top / "one.key"]),
        (2, ["new", "-r", known]),  # nothing opens it
        (12, ["new", "-r", known, "--keyfile", fleet.top / "two.key"]),
        (2, ["new", "-r", known, "--keyfile", fleet.top / "one.key", "--no-key"]),  # a key, or none
        (2, ["new", "-r", fleet.repo("one"), "--keyfile", fleet.top / "one.key"]),  # as another host
        (2, ["new", "-r", f"file:{fleet.top / 'link'}", "--no-key"]),
        (10, ["new", "-r", fleet.top / "no" / "such", "--no-key"]),
        (10, ["new", "--below", fleet.top / "no" / "such", "--host-keyfile", key]),
        (2, ["new", "--below", repos, "--host-keyfile", key, "--quota", "much"]),
    ):
        done = fleet.central.run("fleet", "add", *words)
        assert done.code == code and len(done.err.splitlines()) == 1, (words, done)
    fleet.central.ok("fleet", "add", "new", "--below", repos, "--host-keyfile", key, "-n")
    assert sorted(fleet.top.rglob("*")) == before
    fleet.central.ok("fleet", "add", "new", "-r", known, "--keyfile", fleet.top / "one.key")
    fleet.central.ok("fleet", "refresh", "new")


def test_mirrors_are_made_host_by_host(fleet: Fleet) -> None:
    for name in ("one", "two"):
        fleet.file(name).write_text(fleet.file(name).read_text() + f'mirror = "{fleet.top}/m-{name}"\n')
    (fleet.top / "m-two").mkdir()
    (fleet.top / "m-two" / "lamella").write_bytes(b"something else")
    done = fleet.central.run("fleet", "mirror")
    assert done.code == 3 and "two: FAILED" in done.out and "three: not done: its file names no mirror" in done.out
    assert len(fleet.host("one").json("list", "-r", str(fleet.top / "m-one"))["snapshots"]) == 1
    assert (fleet.top / "m-two" / "lamella").read_bytes() == b"something else"


# -- ends -------------------------------------------------------------------------------------------------------------


def test_ctrl_c_ends_what_was_begun_and_says_so(fleet: Fleet) -> None:
    waits = silent_ssh(fleet.top)
    for number in range(6):
        text = f'url = "ssh://nowhere/{number}"\nssh_command = "{waits}"\n'
        fleet.file(f"silent{number}").write_text(text)
    words = [*COMMAND, "fleet", "refresh", "--at-once", "2", *(f"silent{number}" for number in range(6))]
    process = subprocess.Popen(words, env=environment(fleet.central.env), stderr=subprocess.PIPE, text=True)
    begun = fleet.top / "begun"
    while not begun.exists() or len(begun.read_text().split()) < 2:
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=2 * SECONDS)
    assert process.returncode == 130 and "interrupted" in said and "Traceback" not in said
    assert len(begun.read_text().split()) == 2, "no further host was begun"
    left = [pid for pid in begun.read_text().split() if _runs(pid)]
    until = time.monotonic() + 2 * SECONDS
    while left and time.monotonic() < until:
        time.sleep(0.1)
        left = [pid for pid in left if _runs(pid)]
    assert left == []


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_page_in_the_browser_shows_the_fleet_and_opens_nothing(fleet: Fleet) -> None:
    fleet.repo("two").rename(fleet.top / "elsewhere")
    fleet.central.run("fleet", "refresh", "two")
    with serving(fleet.central) as page:  # a machine without a repository of its own
        page.enter()
        assert 'href="/fleet"' in page.get("/").text
        shown = page.get("/fleet")
        assert shown.status == 200 and "1 bad" in shown.text and "cannot be looked at, last seen" in shown.text
        assert all(name in shown.text for name in HOSTS)


def test_a_host_that_was_added_by_relative_paths_is_looked_at_from_anywhere(tmp_path: Path) -> None:
    """A timer runs elsewhere than the person who added the host."""
    repo, secret = tmp_path / "repo", tmp_path / "secret"
    secret.write_text("a good passphrase")
    secret.chmod(0o600)
    env = {"LAMELLA_PASSPHRASE_FILE": os.path.relpath(secret)}
    lamella = Lamella({"LAMELLA_CONFIG": str(tmp_path / "etc")})
    lamella.ok("init", "-r", repo, "--kdf-cost", "17", env=env)
    words = ("fleet", "add", "one", "-r", os.path.relpath(repo), "--mirror", os.path.relpath(tmp_path / "second"))
    lamella.ok(*words, env=env)
    found = read_host(tmp_path / "etc/fleet/one.toml")
    assert found.problem == "" and Path(found.mirror or "").resolve() == (tmp_path / "second").resolve()
    assert Path(found.settings.passphrase_file or "").samefile(secret)
    lamella.ok("fleet", "refresh")
    lamella.ok("fleet", "mirror")
    assert (tmp_path / "second/lamella").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('url = "/a"\n\nquto = "5G"', "line 3 of its file: unknown key quto; did you mean quota?"),
        ('# one\nurl = "/a"\nquota = "much"', "line 3 of its file: quota "),
        ('url = "/a"\nquota = "5G', "its file is not valid TOML: "),
        ("quota = '5G'", "its file has no url"),
    ],
)
def test_a_mistake_in_a_hosts_file_is_told_with_its_line(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "one.toml"
    path.write_text(content)
    assert read_host(path).problem.startswith(said), read_host(path).problem
