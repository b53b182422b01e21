"""The configuration: what it may say, what is refused, and which value wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamella.base.errors import UsageError
from lamella.cli.configuration import load
from tests.cli.program import Lamella


def problems(tmp_path: Path, text: str) -> list[str]:
    """What is wrong with one file that holds `text`, without the file's name."""
    path = tmp_path / "lamella.toml"
    path.write_text(text)
    return [problem.removeprefix(f"{path}: ") for problem in load(path).problems]


def test_everything_that_can_be_set(tmp_path: Path) -> None:
    path = tmp_path / "lamella.toml"
    path.write_text(
        'default_repository = "usb"\n'
        "[backup]\ncompression = 7\nworkers = 2\n"
        "[lvm]\ndata_percent = 95\n"
        '[repositories.usb]\nurl = "/mnt/usb"\nkeyfile = "/etc/key"\n'
        '[repositories.nas]\nurl = "file:/mnt/nas"\npassphrase_command = "secret-tool lookup a b"\n'
    )
    found = load(path)
    found.require_valid()
    assert found.default_repository == "usb"
    assert (found.backup.compression, found.backup.workers) == ("7", 2)
    assert (found.lvm.data_percent, found.lvm.metadata_percent) == (95.0, 75.0)
    assert found.repositories["usb"].keyfile == "/etc/key"
    assert found.repositories["nas"].url == "file:/mnt/nas"
    assert set(found.origins.values()) == {path}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour = 1", "unknown key colour"),
        ("[backup]\nlevel = 3", "unknown key backup.level"),
        ('[repositories.a]\nurl = "/a"\npassphrase = "x"', "unknown key repositories.a.passphrase"),
        ('[repositories.a]\nkeyfile = "/k"', "repositories.a: url is missing"),
        ('[repositories."a/b"]\nurl = "/a"', "no slash"),
        ('[repositories.a]\nurl = "relative"', "absolute"),
        ('[repositories.a]\nurl = "/a"\nkeyfile = "k"', "absolute"),
        ('[repositories.a]\nurl = "/a"\nkeyfile = "/k"\npassphrase_file = "/p"', "more than one secret"),
        ("[repositories.a]\nurl = 5", "must be a text"),
        ("repositories = 5", "must be a table"),
        ("backup = 5", "must be a table"),
        ("lvm = 5", "must be a table"),
        ("[lvm]\nfull = 5", "unknown key lvm.full"),
        ("[lvm]\ndata_percent = 101", "percent"),
        ("[lvm]\nmetadata_percent = true", "percent"),
        ("[backup]\nworkers = true", "number from 1 to 64"),
        ("[backup]\nworkers = 65", "number from 1 to 64"),
        ('[backup]\ncompression = "best"', "best"),
        ('default_repository = "nowhere"', "not configured"),
        ("default_repository = ", "not valid TOML"),
    ],
)
def test_what_is_wrong_is_said(text: str, said: str, tmp_path: Path) -> None:
    (found,) = problems(tmp_path, text)
    assert said in found


def test_all_problems_are_reported(tmp_path: Path) -> None:
    assert len(problems(tmp_path, "a = 1\nb = 2\n[backup]\nc = 3")) == 3


def test_files_of_a_directory_are_one_configuration(tmp_path: Path) -> None:
    (tmp_path / "1.toml").write_text('[repositories.a]\nurl = "/a"\n')
    (tmp_path / "2.toml").write_text('[repositories.b]\nurl = "/b"\n')
    (tmp_path / "3.txt").write_text("not read")
    assert set(load(tmp_path).repositories) == {"a", "b"}
    (tmp_path / "4.toml").write_text('[repositories.a]\nurl = "/other"\n')
    found = load(tmp_path)
    with pytest.raises(UsageError, match=r"4\.toml.*1\.toml"):
        found.require_valid()


def test_missing_configuration_is_empty(tmp_path: Path) -> None:
    found = load(tmp_path / "none")
    assert (found.files, found.problems, dict(found.repositories)) == ((), (), {})


@pytest.fixture
def configured(place: Path, keyfile: Path, tmp_path: Path) -> Lamella:
    """The command with a configuration that names the repository and its key file."""
    config = tmp_path / "lamella.toml"
    config.write_text(f'default_repository = "main"\n[repositories.main]\nurl = "{place}"\nkeyfile = "{keyfile}"\n')
    return Lamella({"LAMELLA_CONFIG": str(config)})


def test_repository_by_name(configured: Lamella, place: Path, image: Path, tmp_path: Path) -> None:
    assert configured.json("init")["repository"] == str(place)
    configured.ok("backup", image)
    configured.ok("list", "-r", "main")
    configured.ok("list", env={"LAMELLA_REPO": "main"})
    assert configured.run("list", "-r", place).code == 2  # not by its name: the configured key file does not count
    wrong = tmp_path / "wrong"
    wrong.write_bytes(bytes(32))
    assert configured.run("list", "--keyfile", wrong).code == 12


def test_show_names_the_origin(configured: Lamella, tmp_path: Path) -> None:
    values = {row["key"]: row for row in configured.json("config", "show")["values"]}
    assert values["default_repository"]["origin"] == str(tmp_path / "lamella.toml")
    assert values["backup.compression"] == {"key": "backup.compression", "value": "auto", "origin": None}
    assert 'default_repository = "main"' in configured.ok("config", "show").out


def test_wrong_configuration_stops_every_command(configured: Lamella, tmp_path: Path) -> None:
    assert configured.json("config", "validate")["problems"] == []
    with (tmp_path / "lamella.toml").open("a") as file:
        file.write('colour = "red"\n')
    for arguments in (["list"], ["config", "show"], ["doctor"], ["backup", "x"]):
        done = configured.run(*arguments)
        assert done.code == 2
        assert "unknown key repositories.main.colour" in done.err
        assert str(tmp_path / "lamella.toml") in done.err
    shown = configured.run("config", "validate")
    assert (shown.code, shown.err) == (2, "")
    assert "unknown key" in shown.out


def test_doctor(configured: Lamella, tmp_path: Path) -> None:
    checks = {row["name"]: row["ok"] for row in configured.json("doctor", code=1)["checks"]}
    assert checks["python"]
    assert not checks["repository"]
    configured.ok("init")
    found = configured.json("doctor")
    assert found["ok"]
    assert {"secret", "history", "immutable names"} <= {row["name"] for row in found["checks"]}
    assert "TROUBLE" not in configured.ok("doctor").out


def test_doctor_of_this_machine_alone(tmp_path: Path) -> None:
    done = Lamella().run("doctor")
    assert done.code == 0
    assert "left out" in done.err
    (tmp_path / "file").write_text("")
    assert Lamella({"LAMELLA_STATE_DIR": str(tmp_path / "file" / "x")}).run("doctor").code == 1


def test_a_configuration_to_begin_with(tmp_path: Path) -> None:
    """Its comments, made effective, are a valid configuration."""
    place = tmp_path / "etc" / "lamella"
    lamella = Lamella({"LAMELLA_CONFIG": str(place)})
    lamella.ok("config", "init", "-n")
    assert not place.exists()
    lamella.ok("config", "init")
    lamella.ok("config", "validate")
    path = Path(lamella.ok("config", "path").out.strip())
    assert path == place / "lamella.toml" and path.stat().st_mode & 0o777 == 0o600
    written = path.read_text()
    assert lamella.run("config", "init").code == 2 and path.read_text() == written
    lines = written.splitlines()[3:]
    path.write_text("\n".join(line.removeprefix("# ") for line in lines))
    shown = lamella.ok("config", "validate").out
    assert "nothing wrong" in shown
    assert "backup" in lamella.ok("run", "nightly", "-n").out


def test_a_new_repository_is_named_in_the_configuration(tmp_path: Path, image: Path) -> None:
    key = tmp_path / 'a "key"'
    key.write_bytes(b"k" * 32)
    key.chmod(0o600)
    lamella = Lamella({"LAMELLA_CONFIG": str(tmp_path / "etc"), "SUDO_USER": "somebody"})
    done = lamella.run("list")
    assert done.code == 2 and "sudo -E" in done.err
    init: list[str | Path] = ["init", "-r", tmp_path / "r", "--keyfile", key, "--save-as"]
    assert lamella.run(*init, "a/b").code == 2 and not (tmp_path / "r").exists()
    lamella.ok(*init, "main", "-n")
    assert not (tmp_path / "etc").exists()
    lamella.ok(*init, "main")
    lamella.ok("backup", image)  # the default, with its key
    assert lamella.run("init", "-r", tmp_path / "r2", "--keyfile", key, "--save-as", "main").code == 2
    assert not (tmp_path / "r2").exists()
    lamella.ok("init", "-r", tmp_path / "r2", "--keyfile", key, "--save-as", "other")
    assert [row["key"] for row in lamella.json("config", "show")["values"]][:1] == ["default_repository"]
    assert len(lamella.json("list")["snapshots"]) == 1 and lamella.json("list", "-r", "other")["snapshots"] == []


def test_configured_repositories_are_shown_where_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[repositories.one]\nurl = "/a"\n[repositories.two]\nurl = "/b"\n')
    done = Lamella({"LAMELLA_CONFIG": str(tmp_path / "c.toml")}).run("list")
    assert done.code == 2 and "no repository is named of one, two" in done.err
