"""`lamella run` and `status` as their users fear them: silence about a failure, alarms every night, a step left out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.cli.program import COMMAND, Lamella, environment
from tests.features import require

DAY_MS = 86_400_000


@dataclass
class Desk:
    """A host with two images, a configuration and two repositories; messages are kept in a file."""

    folder: Path
    lamella: Lamella

    def images(self) -> Path:
        return self.folder / "images"

    def configure(self, profile: str, more: str = "", repositories: str = "") -> None:
        """Write the configuration: the body of [profiles.nightly], and whatever else belongs into the file."""
        key = self.folder / "key"
        (self.folder / "config.toml").write_text(
            f"""\
[repositories.main]
url = "{self.folder}/main"
keyfile = "{key}"
[repositories.usb]
url = "{self.folder}/usb"
keyfile = "{key}"
{repositories}
[prune]
keep_last = 2
[profiles.nightly]
sources = ["{self.images()}/*.img"]
{profile}
[profiles.nightly.notify]
command = "{sys.executable} {self.folder}/tell.py {self.folder}/told"
{more}
"""
        )

    def messages(self) -> list[dict[str, object]]:
        """What was told, oldest first; each call forgets it."""
        told = self.folder / "told"
        lines = told.read_text().splitlines() if told.exists() else []
        told.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    def events(self) -> list[tuple[object, object]]:
        return [(one["event"], one["about"]) for one in self.messages()]

    def steps(self, code: int = 0, *options: str) -> list[tuple[str, str, str]]:
        """Run the profile; each step with its repository and its result."""
        return [(row["step"], row["repository"], row["result"]) for row in self.run(code, *options)["steps"]]

    def run(self, code: int = 0, *options: str) -> dict[str, Any]:
        return self.lamella.json("run", "nightly", *options, code=code)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        (tmp_path / "images" / f"{name}.img").write_bytes(os.urandom(1 << 20))
    (tmp_path / "key").write_bytes(os.urandom(32))
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "tell.py").write_text(
        "import json, sys\nmessage = json.load(sys.stdin)\nopen(sys.argv[1], 'a').write(json.dumps(message) + '\\n')\n"
    )
    env = {
        "LAMELLA_CONFIG": str(tmp_path / "config.toml"),
        "LAMELLA_STATE_DIR": str(tmp_path / "state"),
        "LAMELLA_CACHE_DIR": str(tmp_path / "cache"),
    }
    made = Desk(tmp_path, Lamella(env))
    made.configure('repositories = ["main", "usb"]\nprune = true\nverify = "10MiB"')
    for name in ("main", "usb"):
        made.lamella.ok("init", "-q", "-r", name)
    return made


def test_all_steps_in_order_each_with_its_result(desk: Desk) -> None:
    for _ in range(3):
        steps = desk.steps()
    assert steps == [
        ("backup", "main", "done"),
        ("backup", "usb", "done"),
        ("prune", "main", "done"),
        ("verify", "main", "done"),
        ("prune", "usb", "done"),
        ("verify", "usb", "done"),
    ]
    for name in ("main", "usb"):
        assert len(desk.lamella.json("list", "-r", name)["snapshots"]) == 2  # keep_last
    assert desk.messages() == []  # nothing is wrong, nobody is disturbed
    status = desk.lamella.json("status")
    assert {row["state"] for row in status["volumes"]} == {"ok"} and len(status["volumes"]) == 4
    assert all(row["verified"]["level"] == "sample" for row in status["volumes"])


def test_a_dry_run_writes_nothing(desk: Desk) -> None:
    shown = desk.lamella.ok("run", "nightly", "-n").out
    assert "lamella backup" in shown and "lamella prune" in shown and "VOLUME..." in shown
    assert desk.lamella.json("list", "-r", "main")["snapshots"] == []
    assert not (desk.folder / "state" / "profiles.json").exists()


def test_one_message_when_it_begins_and_one_when_it_is_over(desk: Desk) -> None:
    desk.run()
    shutil.move(desk.images(), desk.folder / "away")
    for _ in range(3):
        steps = desk.steps(3)
    assert steps[:2] == [("backup", "main", "failed"), ("backup", "usb", "failed")]
    assert {result for _, _, result in steps[2:]} == {"skipped"}
    assert desk.events() == [("failure", ["backup main", "backup usb"])]
    assert desk.lamella.json("status", code=3)["profiles"][0]["state"] == "bad"
    shutil.move(desk.folder / "away", desk.images())
    desk.run()
    desk.run()
    assert desk.events() == [("over", ["backup main", "backup usb"])]
    assert desk.lamella.json("status")["profiles"][0]["state"] == "ok"


def test_one_image_that_vanishes_from_the_list_fails_alone(desk: Desk) -> None:
    desk.configure('repositories = ["main"]\nexclude = ["b.*"]\nverify = false')
    text = (desk.folder / "config.toml").read_text()
    both = f'sources = ["{desk.images()}/*.img", "{desk.images()}/gone/*.raw"]'
    (desk.folder / "config.toml").write_text(text.replace(f'sources = ["{desk.images()}/*.img"]', both))
    assert desk.steps(3) == [("backup", "main", "incomplete")]
    (message,) = desk.messages()
    assert "gone" in str(message["text"])
    rows = desk.lamella.json("list", "-r", "main")["snapshots"]
    assert [row["volumes"] for row in rows] == [["a"]]


def test_an_absent_destination_is_no_failure_until_it_is_stale(desk: Desk) -> None:
    desk.run()
    shutil.move(desk.folder / "usb", desk.folder / "pocket")
    steps = desk.steps()
    assert ("backup", "main", "done") in steps and ("backup", "usb", "absent") in steps
    assert desk.lamella.ok("status", "--notify", "nightly").out == ""
    assert desk.messages() == []
    grow_old(desk, "usb", 4)
    for _ in range(3):
        assert desk.lamella.run("status", "--notify", "nightly").code == 3
    (message,) = desk.messages()
    assert (message["event"], message["about"]) == ("stale", ["stale usb"]) and "4.0 days" in str(message["text"])
    shutil.move(desk.folder / "pocket", desk.folder / "usb")
    desk.run()
    assert desk.events() == [("over", ["stale usb"])]


def test_all_destinations_absent_is_75(desk: Desk) -> None:
    for name in ("main", "usb"):
        shutil.move(desk.folder / name, desk.folder / f"{name}.away")
    assert desk.run(75)["result"] == "absent"
    assert desk.messages() == []


def grow_old(desk: Desk, repository: str, days: float) -> None:
    """As if the last good backup had been so long ago; negative: as if the clock had been set back since."""
    path = desk.folder / "state" / "profiles.json"
    content = json.loads(path.read_text())
    record = content["profiles"]["nightly"]
    record["good"][repository] = int(time.time() * 1000 - days * DAY_MS)
    path.write_text(json.dumps(content))


def test_a_profile_that_never_worked_grows_stale(desk: Desk) -> None:
    desk.lamella.ok("status", "--notify", "nightly")  # the timer of the watch
    path = desk.folder / "state" / "profiles.json"
    content = json.loads(path.read_text())
    content["profiles"]["nightly"]["first_ms"] -= 4 * DAY_MS
    path.write_text(json.dumps(content))
    assert desk.lamella.run("status", "--notify", "nightly").code == 3
    assert desk.events() == [("stale", ["stale main", "stale usb"])]


def test_a_clock_that_was_set_back_is_told(desk: Desk) -> None:
    desk.run()
    grow_old(desk, "main", -400)
    assert desk.lamella.run("status", "--notify", "nightly").code == 3
    (message,) = desk.messages()
    assert "set back" in str(message["text"])


def test_a_configuration_that_broke_is_told_by_the_way_it_had(desk: Desk) -> None:
    desk.run()
    config = desk.folder / "config.toml"
    good = config.read_text()
    config.write_text(good.replace("keep_last = 2", "keep_last = 2\nkeep_day = 3"))
    for command in (["run", "nightly"], ["run", "nightly"], ["status", "--notify", "nightly"]):
        assert desk.lamella.run(*command).code == 2
    assert desk.events() == [("failure", ["configuration"])]
    config.write_text(good)
    desk.run()
    assert desk.events() == [("over", ["configuration"])]


def test_a_message_that_was_not_delivered_is_sent_again(desk: Desk) -> None:
    desk.run()
    shutil.move(desk.images(), desk.folder / "away")
    shutil.move(desk.folder / "tell.py", desk.folder / "broken")
    done = desk.lamella.run("run", "nightly")
    assert done.code == 3 and "could not be delivered" in done.err
    shutil.move(desk.folder / "broken", desk.folder / "tell.py")
    desk.run(3)
    desk.run(3)
    assert desk.events() == [("failure", ["backup main", "backup usb"])]


@pytest.fixture
def monitor() -> Iterator[tuple[str, list[str]]]:
    """A server that hears pings: its address, and the paths that were asked for."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.path)
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(200)
            self.end_headers()

        do_GET = do_POST

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/ping/x", seen
    server.shutdown()
    thread.join()
    server.server_close()


def test_hooks_and_the_monitor_hear_of_every_run(desk: Desk, monitor: tuple[str, list[str]]) -> None:
    address, seen = monitor
    events = ("before", "after", "success", "failure")
    hooks = "\n".join(f'{one} = "{sys.executable} {desk.folder}/tell.py {desk.folder}/{one}"' for one in events)
    desk.configure('repositories = ["main"]\nverify = false', f'ping = "{address}"\n[profiles.nightly.hooks]\n{hooks}')
    desk.run()
    assert seen == ["/ping/x/start", "/ping/x"]
    assert [(desk.folder / one).exists() for one in events] == [True, True, True, False]
    shutil.move(desk.images(), desk.folder / "away")
    desk.run(3)
    assert seen[2:] == ["/ping/x/start", "/ping/x/fail"]
    (failure,) = (json.loads(line) for line in (desk.folder / "failure").read_text().splitlines())
    assert failure["details"]["steps"][0]["result"] == "failed"


def test_a_hook_before_that_fails_stops_the_run_and_the_one_after_still_runs(desk: Desk) -> None:
    after = f'after = "{sys.executable} {desk.folder}/tell.py {desk.folder}/after"'
    desk.configure('repositories = ["main"]', f'[profiles.nightly.hooks]\nbefore = "false"\n{after}')
    assert desk.steps(3) == [("before", "", "failed")]
    assert (desk.folder / "after").exists()
    assert desk.events() == [("failure", ["before"])]
    assert desk.lamella.json("list", "-r", "main")["snapshots"] == []


def test_conditions_postpone_and_now_overrides_them(desk: Desk) -> None:
    hour = time.localtime().tm_hour
    window = f"{(hour + 2) % 24:02}:00-{(hour + 3) % 24:02}:00"
    desk.configure('repositories = ["main"]\nverify = false', f'[profiles.nightly.conditions]\nwindow = "{window}"')
    assert desk.run(75)["result"] == "postponed"
    assert desk.lamella.json("list", "-r", "main")["snapshots"] == []
    assert desk.steps(0, "--now") == [("backup", "main", "done")]


def test_two_runs_of_a_profile_do_not_overlap(desk: Desk) -> None:
    slow = f"before = \"{sys.executable} -c 'import time; time.sleep(4)'\""
    desk.configure('repositories = ["main"]\nverify = false', f"[profiles.nightly.hooks]\n{slow}")
    command = [*COMMAND, "run", "nightly"]
    first = subprocess.Popen(command, env=environment(desk.lamella.env), stdout=subprocess.DEVNULL)
    lock = desk.folder / "state" / "profiles" / "nightly.lock"
    until = time.monotonic() + 20
    while not lock.exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    time.sleep(0.3)
    done = desk.lamella.run("run", "nightly")
    assert done.code == 11 and "running already" in done.err
    assert desk.lamella.run("run", "nightly", "--lock-wait", "50").code == 0
    assert first.wait(30) == 0


def test_an_interrupted_run_ends_with_130_and_the_hook_after_runs(desk: Desk) -> None:
    slow = f"before = \"{sys.executable} -c 'import time; time.sleep(1)'\""
    after = f'after = "{sys.executable} {desk.folder}/tell.py {desk.folder}/after"'
    with (desk.images() / "a.img").open("wb") as file:
        file.truncate(4 << 30)
        for number in range(64):
            file.seek(number * (64 << 20))
            file.write(os.urandom(1 << 20))
    desk.configure('repositories = ["main"]\nverify = false', f"[profiles.nightly.hooks]\n{slow}\n{after}")
    process = subprocess.Popen([*COMMAND, "--limit-rate", "1M", "run", "nightly"], env=environment(desk.lamella.env))
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert (desk.folder / "after").exists()


def test_a_copy_is_a_step(desk: Desk) -> None:
    desk.configure('repositories = ["main"]\ncopy_to = ["usb"]\nverify = false')
    assert desk.steps() == [("backup", "main", "done"), ("copy", "usb", "done")]
    assert len(desk.lamella.json("list", "-r", "usb")["snapshots"]) == 1


def test_the_domain_of_the_profile_is_for_new_volumes(desk: Desk) -> None:
    desk.configure('repositories = ["main"]\nverify = false\nexclude = ["b.*"]')
    desk.run()
    desk.configure('repositories = ["main"]\nverify = false\ndomain = "vms"')
    desk.run()
    rows = desk.lamella.json("list", "-r", "main")["volumes"]
    assert {row["volume"]: row["domain"] for row in rows} == {"a": "", "b": "vms"}


def test_rules_of_the_profile_instead_of_those_of_the_configuration(desk: Desk) -> None:
    desk.configure('repositories = ["main"]\nverify = false\nprune = { keep_last = 1, keep_tags = ["x"] }')
    for _ in range(3):
        desk.run()
    assert len(desk.lamella.json("list", "-r", "main")["snapshots"]) == 1


def test_damage_turns_the_status_red(desk: Desk) -> None:
    desk.configure('repositories = ["main"]\nverify = "full"')
    desk.run()
    pack = max((desk.folder / "main" / "p").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    content = bytearray(pack.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = os.urandom(64)
    pack.write_bytes(content)
    assert ("verify", "main", "failed") in desk.steps(3)
    rows = {row["volume"]: row["state"] for row in desk.lamella.json("status", "-r", "main", code=3)["volumes"]}
    assert "bad" in rows.values()
    ((event, about),) = desk.events()
    assert event == "failure" and about == ["verify main"]


def test_prometheus_and_the_table(desk: Desk) -> None:
    desk.run()
    out = desk.folder / "lamella.prom"
    shown = desk.lamella.ok("status", "--prometheus", out).out
    assert shown.count("ok ") >= 4
    text = out.read_text()
    assert 'lamella_volume_state{volume="a",repository="main"} 0' in text
    assert text.count("# TYPE") == 8 and out.stat().st_mode & 0o777 == 0o644
    assert 'lamella_repository_stored_bytes{repository="main"} ' in text
    require("promtool", shutil.which("promtool") is not None, "promtool is not installed")
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_status_tells_space_growth_and_the_kind_of_moment(desk: Desk) -> None:
    desk.run()
    said = desk.lamella.json("status")
    (row,) = [row for row in said["repositories"] if row["repository"] == "main"]
    assert row["stored_bytes"] > row["grown_bytes"] > 0 and row["state"] == "ok"
    assert {row["consistency"] for row in said["volumes"]} <= {"live", "unknown"}
    shown = desk.lamella.ok("status").out
    assert "of it from the last 7 days" in shown and "REPOSITORY" in shown
    assert "REPOSITORY" not in desk.lamella.ok("status", "-r", "main").out


def test_a_weaker_check_hides_no_deeper_one(desk: Desk) -> None:
    desk.run()
    desk.lamella.ok("verify", "-r", "main", "--level", "full", "a")
    desk.lamella.ok("verify", "-r", "main", "--level", "structure", "a")
    rows = {row["volume"]: row["verified"]["level"] for row in desk.lamella.json("status", "-r", "main")["volumes"]}
    assert rows["a"] == "full"
    assert "full" in desk.lamella.ok("list", "-r", "main").out


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ("verify = 20", "text"),
        ('verify = "20"', "bytes"),
        ("prune = { keep_day = 2 }", "keep_day"),
        ('stale_after = "soon"', "soon"),
        ('copy_too = ["x"]', "copy_too"),
        ("[profiles.nightly.conditions]\nwindow = '1-2'", "times of day"),
        ("[profiles.nightly.hooks]\nbefor = 'x'", "befor"),
        ("[profiles.'a b']\nsources = ['/x']", "letters"),
        ("[profiles.other]\nprune = true", "sources is missing"),
        ("[profiles.other]\nsources = ['relative/*.img']", "absolute"),
    ],
)
def test_mistakes_in_a_profile_are_named(desk: Desk, body: str, word: str) -> None:
    desk.configure(f'repositories = ["main"]\n{body}' if not body.startswith("[profiles.") else "", "")
    if body.startswith("["):
        with (desk.folder / "config.toml").open("a") as file:
            file.write(body + "\n")
    done = desk.lamella.run("config", "validate")
    assert done.code == 2 and word in done.out, (done.out, done.err)
    assert desk.lamella.run("run", "nightly").code == 2


def test_a_directory_and_a_pattern_on_the_command_line(desk: Desk) -> None:
    (desk.images() / ".hidden").write_bytes(b"x")
    (desk.images() / "deeper").mkdir()
    made = desk.lamella.json("backup", "-r", "main", f"named={desk.images()}/a.img", desk.images())
    assert {row["volume"] for row in made["volumes"]} == {"named", "b"}
    made = desk.lamella.json(
        "backup", "-r", "usb", f"{desk.images()}/*.img", f"{desk.images()}/[ab].img", "--exclude", "b*"
    )
    assert {row["volume"] for row in made["volumes"]} == {"a"}
    done = desk.lamella.run("backup", "-r", "usb", f"{desk.images()}/*.raw")
    assert done.code == 4 and "there is no file" in done.err
    assert desk.lamella.run("backup", "-r", "usb", f"x={desk.images()}").code == 2
