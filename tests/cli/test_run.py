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

from tests.cli.boot_disk import KERNEL, programs
from tests.cli.program import COMMAND, ROOT, Lamella, environment
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
    # The budget of a night is more than all that is stored.
    assert all(row["verified"]["level"] == "full" for row in status["volumes"])


@pytest.mark.slow
def test_drills_are_a_step_and_a_failed_one_is_told(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    programs()
    monkeypatch.setattr("tests.cli.program.SECONDS", 200)
    (desk.folder / "state").mkdir(mode=0o700, exist_ok=True)
    (desk.folder / "state/guest-without-kvm").touch()
    image = desk.images() / "data.img"
    image.write_bytes(bytes(32 << 20))
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    drill = f'[profiles.nightly.drill]\nvolumes = ["data"]\nevery = "30d"\nkernel = "{KERNEL}"'
    desk.configure('repositories = ["main"]\nverify = false', drill)
    assert "lamella drill -r main --every 30d" in desk.lamella.ok("run", "nightly", "-n").out
    steps = [("backup", "main", "done"), ("drill", "main", "done")]
    assert desk.steps() == steps and desk.messages() == []
    (row,) = [one for one in desk.lamella.json("status", code=3)["volumes"] if one["volume"] == "data"]
    assert row["drilled"]["verdict"] == "mounted"
    # Spoiled, it is not noticed before it is due, and then it is.
    image.write_bytes(os.urandom(1 << 20) + image.read_bytes()[1 << 20 :])
    assert desk.steps() == steps and desk.messages() == []
    desk.configure('repositories = ["main"]\nverify = false', drill.replace("30d", "0d"))
    assert desk.steps(3) == [("backup", "main", "done"), ("drill", "main", "failed")]
    (told,) = desk.messages()
    assert "drill" in str(told) and "data" in str(told), told
    (row,) = [one for one in desk.lamella.json("status", code=3)["volumes"] if one["volume"] == "data"]
    assert row["drilled"]["result"] == "failed" and row["state"] == "warn"
    for wrong in ('every = "soon"', 'budget = "5"', "volumes = 3", "often = 1"):
        desk.configure('repositories = ["main"]', f"[profiles.nightly.drill]\n{wrong}")
        assert desk.lamella.run("config", "validate").code == 2, wrong


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


def test_an_unreachable_destination_is_told_when_it_is_stale(desk: Desk) -> None:
    """Not at each try: a laptop is away from its server most of the time. The hook for that fires, too."""
    far = f'[repositories.far]\nurl = "ssh://nobody@127.0.0.1:1/x"\nkeyfile = "{desk.folder}/key"'
    hook = f'[profiles.nightly.hooks]\nstale = "{sys.executable} {desk.folder}/tell.py {desk.folder}/hook"'
    desk.configure('repositories = ["far"]\nprune = true', hook, repositories=far)
    assert desk.steps(75) == [("backup", "far", "absent"), ("prune", "far", "absent"), ("verify", "far", "absent")]
    assert desk.lamella.ok("status", "--notify", "nightly").out == "" and desk.messages() == []
    path = desk.folder / "state" / "profiles.json"
    content = json.loads(path.read_text())
    content["profiles"]["nightly"]["first_ms"] -= 4 * DAY_MS
    path.write_text(json.dumps(content))
    for _ in range(2):
        assert desk.lamella.run("status", "--notify", "nightly").code == 3
    assert desk.events() == [("stale", ["stale far"])] and (desk.folder / "hook").read_text().count("\n") == 1


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


@pytest.mark.parametrize(
    ("notify", "path", "said"),
    [
        ("[profiles.nightly.notify]", None, "nobody is told of trouble; see notify"),
        ("", None, "nobody is told of trouble; see notify"),
        ('[profiles.nightly.notify]\nmail = "root"', "", "nobody is told of trouble; no mail reaches root"),
        ("[profiles.nightly.notify]\ndesktop = true", "", "nobody is told of trouble; nothing is shown on the desktop"),
        ('[profiles.nightly.notify]\nmail = "root"\nping = "http://127.0.0.1:9/"', "", ""),
        ('[profiles.nightly.hooks]\nfailure = "true"', None, ""),
        ("[profiles.nightly.notify]\nnobody = true", None, ""),
    ],
)
def test_the_status_says_that_nobody_would_be_told(desk: Desk, notify: str, path: str | None, said: str) -> None:
    """Nothing is wrong yet: when something is, a profile that tells nobody is too late to mend."""
    desk.run()
    config = desk.folder / "config.toml"
    config.write_text(config.read_text().partition("[profiles.nightly.notify]")[0] + notify)
    env = {} if path is None else {"PATH": path}
    done = desk.lamella.run("--json", "status", env=env)
    (row,) = done.json["profiles"]
    if Path("/usr/sbin/sendmail").exists() and "mail" in said:
        said = ""
    assert (row["state"], done.code) == (("warn", 3) if said else ("ok", 0))
    assert said in "".join(row["reasons"]) and len(row["reasons"]) == bool(said)


def test_the_status_says_that_no_message_was_delivered(desk: Desk) -> None:
    shutil.move(desk.images(), desk.folder / "away")
    desk.run(3)
    (row,) = desk.lamella.json("status", code=3)["profiles"]
    assert not any("nobody" in why for why in row["reasons"])
    desk.messages()
    shutil.move(desk.folder / "away", desk.images())
    desk.run()
    shutil.move(desk.folder / "tell.py", desk.folder / "broken")
    shutil.move(desk.images(), desk.folder / "away")
    desk.run(3)
    (row,) = desk.lamella.json("status", code=3)["profiles"]
    assert "nobody was told of what failed: no message was delivered" in row["reasons"]


def test_a_repository_that_nobody_configured_is_no_directory_of_that_name(desk: Desk, tmp_path: Path) -> None:
    """A backup that runs by itself would make or miss a directory wherever it happens to start."""
    desk.configure('repositories = ["mian"]')
    for command in (["run", "nightly"], ["status"], ["config", "validate"]):
        done = desk.lamella.run(*command)
        said = done.out if command[0] == "config" else done.err
        assert done.code == 2 and said.count("\n") <= 2, done.err
        assert "profiles.nightly.repositories names 'mian', which is not configured; did you mean main?" in said
    assert desk.events() == []  # it was never seen whole, so nobody is known


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
    assert desk.lamella.ok("status", "--notify", "nightly").out == ""  # who stopped it knows


def test_a_run_that_was_killed_is_told_once(desk: Desk) -> None:
    """By the kernel for want of memory, or by a power cut: the run itself can tell nobody."""
    slow = f"[profiles.nightly.hooks]\nbefore = \"{sys.executable} -c 'import time; time.sleep(9)'\""
    desk.configure('repositories = ["main"]\nverify = false', slow)
    process = subprocess.Popen([*COMMAND, "run", "nightly"], env=environment(desk.lamella.env))
    record = desk.folder / "state" / "profiles.json"
    until = time.monotonic() + 60
    while not record.exists() or not json.loads(record.read_text())["profiles"]["nightly"].get("began_ms"):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.05)
    assert desk.lamella.run("status", "--notify", "nightly").code == 0 and process.poll() is None  # it goes on
    process.kill()
    process.wait()
    assert desk.messages() == []
    for _ in range(2):
        assert "was broken off" in desk.lamella.run("status", "--notify", "nightly").out
    (message,) = desk.messages()
    assert (message["event"], message["about"]) == ("failure", ["run"]) and "broken off" in str(message["text"])
    (row,) = desk.lamella.json("status", code=3)["profiles"]
    assert row["state"] == "bad" and "broken off" in row["reasons"][0]
    desk.configure('repositories = ["main"]\nverify = false')
    desk.run()
    assert desk.events() == [("over", ["run"])]
    assert desk.lamella.json("status", code=3)["profiles"][0]["reasons"] == []  # what is left is an empty usb


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


def test_the_compression_of_the_profile_counts_more_than_that_of_the_configuration(desk: Desk) -> None:
    (desk.folder / "docs").mkdir()
    tree = f'[profiles.nightly.files]\ndirectories = ["{desk.folder}/docs"]\n'
    for word, configured in (("off", "auto"), ("portable", "off")):
        content = f"{word} can be compressed. ".encode() * 50_000
        for path in (desk.images() / "a.img", desk.folder / "docs" / "text"):
            path.write_bytes(content)
        desk.configure(
            f'repositories = ["main"]\nverify = false\nexclude = ["b.*"]\ncompression = "{word}"',
            f'{tree}[backup]\ncompression = "{configured}"',
        )
        saved = [row["document"]["volumes"][0]["stored_bytes"] for row in desk.run()["steps"]]
        assert len(saved) == 2, saved
        assert all(size >= len(content) if word == "off" else size < len(content) / 5 for size in saved), saved


def test_rules_of_the_profile_instead_of_those_of_the_configuration(desk: Desk) -> None:
    desk.configure('repositories = ["main"]\nverify = false\nprune = { keep_last = 1, keep_tags = ["x"] }')
    for _ in range(3):
        desk.run()
    assert len(desk.lamella.json("list", "-r", "main")["snapshots"]) == 1


@pytest.mark.parametrize("names", ['"main"', '"main", "usb"'])
def test_a_profile_that_saved_nothing_removes_nothing(desk: Desk, names: str) -> None:
    """Its rules are for its own volumes: a dump that fails must not cost another profile's snapshots."""
    desk.configure(f"repositories = [{names}]\nprune = {{ keep_last = 1 }}")
    text = (desk.folder / "config.toml").read_text()
    for _ in range(2):
        desk.lamella.ok("backup", "-q", "-r", "main", f"other={desk.images()}/a.img")
    (desk.folder / "config.toml").write_text(text.replace(f'"{desk.images()}/*.img"', '"db=!false"'))
    steps = desk.steps(3)
    assert steps[0] == ("backup", "main", "incomplete")
    assert {step[2] for step in steps if step[0] != "backup"} == {"skipped"}
    assert len(desk.lamella.json("list", "-r", "main")["snapshots"]) == 2


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
    assert "of it from finished backups of the last 7 days" in shown and "REPOSITORY" in shown
    assert "REPOSITORY" not in desk.lamella.ok("status", "-r", "main").out


def test_the_status_says_when_the_next_run_is(desk: Desk) -> None:
    """With a real timer: tests/system/test_systemd.py. Here what systemd says, or does not say."""
    desk.run()
    (desk.folder / "bin").mkdir()
    asked = desk.folder / "bin/systemctl"
    env = {"PATH": f"{desk.folder}/bin:{os.environ['PATH']}"}
    good = "2030-03-17T17:46:40.000Z"
    # systemctl shows times in its own zone: it has to be told which.
    for said, expected in (
        ("Sun 2030-03-17 17:46:40 $TZ", good),
        ("", ""),
        ("n/a", ""),
        ("Sun 2030-02-31 17:46:40 UTC", ""),
    ):
        asked.write_text(f'#!/bin/sh\ncase "$*" in *lamella-run-nightly.timer*) echo "{said}";; esac\n')
        asked.chmod(0o755)
        done = desk.lamella.run("--json", "status", env=env)
        assert done.json["profiles"][0]["next"] == expected
        assert (", next 2030-03-17" in desk.lamella.run("status", env=env).out) == bool(expected)
    asked.write_text("#!/bin/sh\nexit 1\n")
    assert desk.lamella.run("--json", "status", env=env).json["profiles"][0]["next"] == ""


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


def test_the_status_says_what_verify_says_of_volumes_that_were_not_saved(desk: Desk) -> None:
    """Old snapshots of a volume are good, and yet its last backup failed: no green light beside a red one."""
    a, b = (desk.images() / f"{name}.img" for name in "ab")
    lamella = Lamella(desk.lamella.env, ["-r", "main"])

    def judged() -> tuple[dict[str, str], str, int]:
        verified = lamella.run("verify", "--level", "structure").code
        status = lamella.run("--json", "status")
        (place,) = status.json["repositories"]
        states = [row["state"] for row in [place, *status.json["volumes"]]]
        assert (set(states) == {"ok"}) == (verified == 0), (status, verified)
        return {row["volume"]: row["state"] for row in status.json["volumes"]}, str(place["reasons"]), verified

    lamella.ok("backup", a, b)
    assert judged() == ({"a": "ok", "b": "ok"}, "[]", 0)
    content = b.read_bytes()
    b.unlink()
    assert lamella.run("backup", a, b).code == 3
    states, _, code = judged()
    assert (states, code) == ({"a": "ok", "b": "bad"}, 3)
    said = lamella.run("status", env={"COLUMNS": "80"}).out
    assert "BAD volume b: " in said and "did not" in said
    b.write_bytes(content)
    lamella.ok("backup", b)
    assert judged() == ({"a": "ok", "b": "ok"}, "[]", 0)
    # A volume of which there is no snapshot at all has no row of its own.
    assert lamella.run("backup", a, f"new={desk.folder}/missing.img").code == 3
    states, reasons, code = judged()
    assert (states, code) == ({"a": "ok", "b": "ok"}, 3) and "new was never saved" in reasons
    lamella.ok("backup", a)  # a later run leaves the name out: it was a mistake
    assert judged() == ({"a": "ok", "b": "ok"}, "[]", 0)


def test_a_repository_with_two_names_is_one_row(desk: Desk) -> None:
    more = f'[repositories.again]\nurl = "{desk.folder}/../{desk.folder.name}/main"\nkeyfile = "{desk.folder}/key"'
    desk.configure('repositories = ["again"]\nverify = false\nstale_after = "1h"', repositories=more)
    desk.run()
    (desk.folder / "link").symlink_to(desk.folder / "main")
    link = f'[repositories.link]\nurl = "file:{desk.folder}/link"\nkeyfile = "{desk.folder}/key"'
    desk.configure('repositories = ["again"]\nverify = false\nstale_after = "1h"', repositories=f"{more}\n{link}")
    said = desk.lamella.run("--json", "status").json
    assert [(row["repository"], row["also"]) for row in said["repositories"]] == [
        ("again", ["main", "link"]),
        ("usb", []),
    ]
    assert [(row["volume"], row["repository"]) for row in said["volumes"]] == [("a", "again"), ("b", "again")]


@pytest.fixture
def service() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A service that apprise knows, its JSON over HTTP: the address, and what came."""
    came: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"json://user:hush@127.0.0.1:{server.server_port}/told", came
    server.shutdown()
    thread.join()
    server.server_close()


def test_apprise_tells_once_and_shows_no_secret(desk: Desk, service: tuple[str, list[dict[str, Any]]]) -> None:
    address, came = service
    desk.configure('repositories = ["main"]\nverify = false')
    config = desk.folder / "config.toml"
    plain = config.read_text().partition("[profiles.nightly.notify]")[0]
    config.write_text(f'{plain}[profiles.nightly.notify]\napprise = ["{address}", "json://u:hush@127.0.0.1:9/x"]\n')
    shutil.move(desk.images(), desk.folder / "away")
    done = desk.lamella.run("run", "nightly")
    if subprocess.run([COMMAND[0], "-c", "import apprise"], capture_output=True, check=False).returncode:
        assert "LAMELLA_TEST_PYTHON" in os.environ and "apprise is not installed" in done.err  # it has no extras
        assert "apprise is not installed" in desk.lamella.run("status").out
        return
    assert done.code == 3 and done.err.count("apprise did not deliver to json://") == 1 and "hush" not in done.err
    desk.run(3)
    shutil.move(desk.folder / "away", desk.images())
    desk.run()
    titles = [one["title"] for one in came]
    assert len(titles) == 2 and "FAILED" in titles[0] and "well again" in titles[1], titles
    assert "images" in came[0]["message"]
    config.write_text(f'{plain}[profiles.nightly.notify]\napprise = ["nosuchservice://x"]\n')
    shutil.move(desk.images(), desk.folder / "away")
    assert (
        "apprise does not understand an address that begins with nosuchservice://"
        in desk.lamella.run("run", "nightly").err
    )
    half = desk.folder / "half" / "apprise"
    half.mkdir(parents=True)
    (half / "__init__.py").write_text("raise ImportError('half of it')\n")
    done = desk.lamella.run("run", "nightly", env={"PYTHONPATH": f"{ROOT / 'src'}:{half.parent}"})
    assert done.code == 3 and "apprise cannot be loaded: half of it" in done.err, done
