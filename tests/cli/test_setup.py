"""`lamella setup` as a new user fears it: a question that leads nowhere, a half that is broken for ever, something
precious replaced, a backup that was believed and never proved.

The schedule that it installs is tested under a systemd of its own: tests/system/test_systemd.py.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.program import COMMAND, Lamella, Terminal, environment

WORD = "a passphrase of some length"


@dataclass
class Newcomer:
    """Somebody with two images in a usual place, and no idea yet."""

    home: Path
    lamella: Lamella

    @property
    def images(self) -> Path:
        return self.home / "vms"

    @property
    def repository(self) -> Path:
        return self.home / "disk" / "lamella"

    @property
    def config(self) -> Path:
        return self.home / "etc" / "main.toml"

    @property
    def key(self) -> Path:
        return self.home / "etc" / "main.key"

    @property
    def sheet(self) -> Path:
        return self.home / "lamella-main-sheet.txt"

    @property
    def words(self) -> list[str | Path]:
        """Everything by options, without a schedule: a real one would be this machine's."""
        return ["setup", "-y", "-r", self.repository, "--when", "never", "--tell", "nobody", self.images]

    def files(self) -> dict[str, bytes]:
        """Everything that is there, but for what this host remembers."""
        paths = (path for path in self.home.rglob("*") if path.is_file() and "state" not in path.parts)
        return {str(path): path.read_bytes() for path in paths if "cache" not in path.parts}

    def restored(self) -> None:
        """Every image can be had back with nothing but the recovery sheet."""
        key = self.home / "typed"
        key.write_text(re.findall(r"(?:[A-Z2-7]{5}-\s*){13}[A-Z2-7]{5}", self.sheet.read_text())[0])
        (self.home / "back").mkdir()
        other = Lamella({f"LAMELLA_{what}_DIR": str(self.home / f"new-{what}") for what in ("STATE", "CACHE")})
        other.ok("restore", "-r", self.repository, "--recovery-key-file", key, "--all", "--to", f"{self.home}/back/")
        for path in self.images.iterdir():
            assert (self.home / "back" / path.name).read_bytes() == path.read_bytes()


@pytest.fixture
def newcomer(tmp_path: Path) -> Newcomer:
    home = tmp_path / "home"
    (home / "vms").mkdir(parents=True)
    for name in ("web", "db"):
        (home / "vms" / f"{name}.img").write_bytes(os.urandom(1 << 20))
    env = {f"LAMELLA_{what}_DIR": str(home / what.lower()) for what in ("STATE", "CACHE")}
    # A setup that schedules although nobody asked for it fails here, instead of changing this machine.
    (tmp_path / "bin").mkdir()
    for name in ("crontab", "systemctl"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\necho not on this machine >&2\nexit 1\n")
        (tmp_path / "bin" / name).chmod(0o755)
    env["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    return Newcomer(home, Lamella({**env, "HOME": str(home), "LAMELLA_CONFIG": str(home / "etc")}))


def test_questions_lead_to_a_saved_and_proved_machine(newcomer: Newcomer) -> None:
    with Terminal(["setup"], newcomer.lamella.env) as terminal:
        terminal.expect(f"{newcomer.images}/*.img (2 images, 2.0 MiB)")
        terminal.expect("What is to be saved?")
        terminal.type("99999")
        terminal.expect("there is no number 99999")
        terminal.expect("What is to be saved?")
        terminal.type("/nowhere/at.all")
        terminal.expect("there is no /nowhere/at.all to save")
        terminal.expect("What is to be saved?")
        terminal.type(f"{newcomer.images}")
        terminal.expect("Where do the backups go?")
        terminal.type(str(newcomer.repository))
        terminal.expect("When does it run?")
        terminal.type("never")
        terminal.expect("How many snapshots are kept?")
        terminal.type("plenty")
        terminal.expect("days,weeks,months")
        terminal.expect("[14,8,12]: ")
        terminal.type("7, 4, 6")
        terminal.expect("Who hears of trouble?")
        terminal.type("ann@example.org")
        terminal.expect(f"[{newcomer.sheet}]: ")
        terminal.type("")
        terminal.expect("one dead disk takes both")  # while there is time to think again
        terminal.expect("Continue? [Y/n] ")
        assert not newcomer.key.exists() and not newcomer.repository.exists()
        terminal.type("")
        assert terminal.end() == 0
        assert "set up, saved and proved in" in terminal.seen
    made = tomllib.loads(newcomer.config.read_text())
    assert made["profiles"]["main"]["prune"] == {"keep_last": 3, "keep_daily": 7, "keep_weekly": 4, "keep_monthly": 6}
    assert made["profiles"]["main"]["notify"] == {"mail": "ann@example.org"}
    assert "nothing wrong" in newcomer.lamella.ok("config", "validate").out
    assert {path.stat().st_mode & 0o777 for path in (newcomer.key, newcomer.sheet, newcomer.config)} == {0o600}
    # Of the profile it says whether mail can be sent from this machine.
    rows = newcomer.lamella.run("--json", "status").json["volumes"]
    assert {row["volume"]: row["state"] for row in rows} == {"web": "ok", "db": "ok"}
    newcomer.restored()


def test_no_is_no_and_so_is_ctrl_c(newcomer: Newcomer) -> None:
    before = newcomer.files()
    words: list[str | Path] = [
        "setup",
        "-r",
        newcomer.repository,
        "--when",
        "never",
        "--keep",
        "all",
        "--tell",
        "nobody",
    ]
    for keys in ("n\n", "\x03", "\x04"):
        with Terminal([*words, "--recovery-sheet", newcomer.sheet, newcomer.images], newcomer.lamella.env) as terminal:
            terminal.expect("Continue? [Y/n] ")
            terminal.press(keys)
            assert terminal.end() == 130
            assert "nothing was done" in terminal.seen
        assert newcomer.files() == before


def test_a_dry_run_shows_the_files_and_writes_nothing(newcomer: Newcomer) -> None:
    before = newcomer.files()
    shown = newcomer.lamella.json(*newcomer.words, "-n", "--domain", "vms")
    assert newcomer.files() == before
    assert ["lamella", "run", "main"] in shown["commands"]
    # Nobody chose that nobody is told: it is offered where no mail can be sent, and status warns of it.
    words = [word for word in newcomer.words if word not in ("--tell", "nobody")]
    for shown_files, chosen in ((shown, True), (newcomer.lamella.json(*words, "-n"), False)):
        assert ("nobody = true" in "".join(shown_files["files"].values())) == chosen
    newcomer.lamella.ok(*newcomer.words, "--domain", "vms")
    assert shown["files"] == {str(newcomer.config): newcomer.config.read_text()}
    assert {row["domain"] for row in newcomer.lamella.json("list")["volumes"]} == {"vms"}


@pytest.mark.parametrize(
    ("mark", "number"),
    [
        ("key file: ", signal.SIGKILL),
        ("configuration: ", signal.SIGINT),
        ("lamella init", signal.SIGKILL),
        ("repository: ", signal.SIGKILL),
        ("lamella run", signal.SIGINT),
        ("[backup main] done", signal.SIGKILL),
        ("lamella restore", signal.SIGTERM),
    ],
)
def test_a_setup_that_was_broken_off_goes_on(newcomer: Newcomer, mark: str, number: signal.Signals) -> None:
    words = [*COMMAND, *map(str, newcomer.words)]
    with subprocess.Popen(
        words,
        env=environment({**newcomer.lamella.env, "PYTHONUNBUFFERED": "1"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if mark in line:
                process.send_signal(number)
                break
        process.stdout.read()
        assert process.wait(60) in (130, -number)
    left = {path: content for path, content in newcomer.files().items() if "/disk/" not in path}
    # Whatever is there can be read by every other command.
    assert newcomer.lamella.run("config", "validate").code == 0
    again: list[str | Path] = ["setup", "-y"] if newcomer.config.exists() else newcomer.words
    done = newcomer.lamella.run(*again)
    if done.code == 2:  # the sheet of a repository that was never made is nobody's to overwrite
        assert f"{newcomer.sheet} exists already" in done.err and "there is no repository at" in done.err
        newcomer.sheet.rename(newcomer.home / "worthless")
        left.pop(str(newcomer.sheet))
        done = newcomer.lamella.run(*again)
    assert done.code == 0, (done.err, done.out)
    after = newcomer.files()
    assert {path: after.get(path) for path in left} == left
    newcomer.restored()


def test_what_is_there_is_never_replaced(newcomer: Newcomer) -> None:
    done = newcomer.lamella.ok(*newcomer.words)
    # Who wants nobody to be told hears of that once, and no later command comes back to it.
    assert done.err.count("nobody is told") == 1 and "warning: nobody" not in done.err
    assert newcomer.lamella.json("status")["profiles"][0]["reasons"] == []
    before = {path: content for path, content in newcomer.files().items() if "/disk/" not in path}
    done = newcomer.lamella.ok("setup", "-y")
    assert done.out.count("(is there already)") == 4
    refused = newcomer.lamella.run(*newcomer.words)
    assert refused.code == 2 and "main is set up already" in refused.err and "--name" in refused.err
    after = newcomer.files()
    assert {path: after.get(path) for path in before} == before


def errors(said: str) -> list[str]:
    """The lines without warnings: those of disks depend on the machine."""
    return [line for line in said.splitlines() if not line.startswith("lamella: warning: ")]


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("lamella-main-sheet.txt", "precious"),
        ("etc/main.toml", "[profiles.main]\nsources = ['/x']\n"),
        ("etc/main.toml", "[repositories.main]\nurl = '/x'\n"),
        ("etc/main.toml", "[backup]\nworkers = 2\n"),
        ("etc/other.toml", "[backup]\nworkerz = 2\n"),
    ],
)
def test_a_file_in_the_way_is_named_and_nothing_is_done(newcomer: Newcomer, place: str, text: str) -> None:
    (newcomer.home / "etc").mkdir()
    (newcomer.home / place).write_text(text)
    before = newcomer.files()
    done = newcomer.lamella.run(*newcomer.words)
    assert done.code == 2 and len(errors(done.err)) <= 2
    assert Path(place).name in done.err or "main is configured already" in done.err
    assert newcomer.files() == before


def test_another_configuration_goes_along(newcomer: Newcomer) -> None:
    (newcomer.home / "etc").mkdir()
    (newcomer.home / "etc/other.toml").write_text("default_repository = '/elsewhere'\n[backup]\nworkers = 1\n")
    newcomer.lamella.ok(*newcomer.words)
    assert "default_repository" not in newcomer.config.read_text()


def test_a_repository_that_exists_is_used_with_its_owners_secret(newcomer: Newcomer) -> None:
    newcomer.repository.parent.mkdir()
    newcomer.lamella.ok("init", "-r", newcomer.repository, "--kdf-cost", "17", env={"LAMELLA_PASSPHRASE": WORD})
    refused = newcomer.lamella.run(*newcomer.words, env={"LAMELLA_PASSPHRASE": "wrong"})
    assert refused.code == 12 and not newcomer.config.exists()
    with Terminal(newcomer.words, newcomer.lamella.env) as terminal:
        terminal.expect("Passphrase of the repository: ")
        terminal.type(WORD)
        assert terminal.end() == 0
    types = sorted(row["type"] for row in newcomer.lamella.json("key", "list")["slots"])
    assert types == ["key file", "passphrase", "recovery key"]
    newcomer.restored()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["setup"], 2, "add -y"),
        (["setup", "-y"], 2, "-r REPO"),
        (["setup", "-y", "-r", "R", "--name", "../x"], 2, "no profile can be called"),
        (["setup", "-y", "-r", "R", "--when", "whenever"], 2, "is no time for systemd"),
        (["setup", "-y", "-r", "R", "--keep", "1,2"], 2, "days,weeks,months"),
        (["setup", "-y", "-r", "R", "--tell", "a b"], 2, "not a mail address"),
        (["setup", "-y", "-r", "R", "--when", "never", "--domain", "", "IMAGES"], 2, "domain: must be a text"),
        (["setup", "-y", "-r", "R", "/nowhere.img"], 2, "there is no /nowhere.img"),
        (["setup", "-y", "-r", "R", "/nowhere/*.img"], 4, "is the file system mounted"),
        (["setup", "-y", "-r", "ssh://nobody@127.0.0.1:1/x", "--when", "never", "IMAGES"], 1, "127.0.0.1"),
        (["setup", "-y", "-r", "odd://x", "--when", "never", "IMAGES"], 2, "no destination of the kind"),
        (["setup", "-y", "-r", "/proc/x/y", "--when", "never", "IMAGES"], 1, "/proc/x"),
        (
            ["setup", "-y", "-r", "R", "--when", "never", "--recovery-sheet", "/no/where", "IMAGES"],
            2,
            "no directory /no",
        ),
    ],
)
def test_a_wrong_answer_is_one_line_and_leaves_nothing(
    newcomer: Newcomer, words: list[str], code: int, said: str
) -> None:
    places = {"R": str(newcomer.repository), "IMAGES": str(newcomer.images)}
    before = newcomer.files()
    done = newcomer.lamella.run(*(places.get(word, word) for word in words))
    assert done.code == code, done.err
    (line,) = [line for line in errors(done.err) if said in line]
    assert line.startswith("lamella: ")
    assert newcomer.files() == before


def test_a_place_that_takes_no_repository_is_not_kept_as_the_answer(newcomer: Newcomer) -> None:
    """The same command with another place must work: `main is set up already` would be a lie."""
    newcomer.repository.parent.mkdir(parents=True)
    newcomer.repository.write_text("a file is in the way")
    done = newcomer.lamella.run(*newcomer.words)
    assert done.code != 0 and "not a directory" in done.err
    assert not newcomer.config.exists()
    newcomer.lamella.ok(*("setup", "-y", "-r", newcomer.home / "other", *newcomer.words[4:]))
    assert newcomer.repository.read_text() == "a file is in the way"


def test_a_directory_that_is_missing_is_said(newcomer: Newcomer) -> None:
    """It may be where a disk should be mounted: then all would go to the disk of the system."""
    plan = ("setup", "-n", *newcomer.words[4:])
    for scheme in ("", "file:"):
        said = newcomer.lamella.ok(*plan, "-r", f"{scheme}{newcomer.home}/media/usb/lamella").err
        assert f"there is no directory {newcomer.home}/media/usb, it will be made: is the disk mounted" in said
        assert "one dead disk takes both" in said
    assert "there is no directory" not in newcomer.lamella.ok(*plan, "-r", newcomer.home / "lamella").err


def test_mail_that_nobody_can_send_is_said_at_once(newcomer: Newcomer) -> None:
    words = ["nobody@example.org" if word == "nobody" else word for word in newcomer.words]
    said = newcomer.lamella.ok(*words).err
    has_sendmail = any(Path(place).exists() for place in ("/usr/sbin/sendmail", "/usr/lib/sendmail"))
    assert ("no mail reaches nobody@example.org: there is no sendmail" in said) != has_sendmail


def test_dom0_is_offered_its_qubes_and_nothing_else(newcomer: Newcomer, tmp_path: Path) -> None:
    """With qubesd answering: tests/qubes/test_profiles.py."""
    (tmp_path / "qubesd.sock").touch()
    env = {"LAMELLA_QUBESD_SOCKET": str(tmp_path / "qubesd.sock")}
    done = newcomer.lamella.run("setup", "-y", "-n", "-r", newcomer.repository, env=env)
    assert "the qubes that are marked for backups" in done.err and "images" not in done.err
    assert "[profiles.main.qubes]" in done.out and "sources =" not in done.out
    named = newcomer.lamella.run(*newcomer.words, "qubes:work", "-n", env=env)  # what is named is what is meant
    assert 'names = ["work"]' in named.out and "sources =" in named.out


def test_a_schedule_that_cannot_be_had_fails_and_the_rest_is_done(newcomer: Newcomer) -> None:
    """Neither systemctl nor crontab works; nobody may believe that the backup runs by itself."""
    words = ["daily" if word == "never" else word for word in newcomer.words]
    done = newcomer.lamella.run("--json", *words)
    assert done.code == 3, done.err
    results = {row["step"]: row["result"] for row in done.json["steps"]}
    assert results["schedule"] == "failed" and results["restore"] == results["compare"] == "done"
    assert "schedule failed" in done.err
    again = newcomer.lamella.run("setup", "-y")  # the answer is remembered
    assert again.code == 3 and "schedule failed" in again.err


def test_a_backup_that_saves_nothing_is_no_success(newcomer: Newcomer) -> None:
    """The backup saves nothing: there is no proof, and setup does not say that there is."""
    newcomer.lamella.ok(*newcomer.words)
    for path in newcomer.images.iterdir():
        path.unlink()
    done = newcomer.lamella.run("setup", "-y")
    assert done.code == 3
    assert "setup FAILED at: run" in done.out and "proved" not in done.out


def test_without_room_for_a_copy_the_bytes_are_compared_all_the_same(newcomer: Newcomer) -> None:
    """A volume far larger than any disk here, nearly all of it a hole."""
    for path in newcomer.images.iterdir():
        os.truncate(path, 1 << 42)
    words = newcomer.lamella.json(*newcomer.words)
    assert {row["step"]: row["result"] for row in words["steps"]}["restore"] == "done"


def test_damage_that_the_proof_meets_is_no_success(newcomer: Newcomer) -> None:
    newcomer.lamella.ok(*newcomer.words)
    packs = [path for path in (newcomer.repository / "p").rglob("*") if path.is_file()]
    for pack in packs:
        content = bytearray(pack.read_bytes())
        content[len(content) // 2 : len(content) // 2 + 64] = os.urandom(64)
        pack.write_bytes(content)
    done = newcomer.lamella.run("setup", "-y")
    assert done.code == 3
    assert "setup FAILED at: run" in done.out and "proved" not in done.out
