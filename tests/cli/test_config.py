"""The configuration: what it may say, what is refused, and which value wins."""

from __future__ import annotations

import argparse
import shutil
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from lamella.base.errors import UsageError
from lamella.cli.commands import backup
from lamella.cli.configuration import BackupSettings, load
from tests.cli.program import Lamella
from tests.features import require


def problems(tmp_path: Path, text: str) -> list[str]:
    """What is wrong with one file that holds `text`, as `LINE: what`."""
    path = tmp_path / "lamella.toml"
    path.write_text(text)
    return [problem.removeprefix(f"{path}:") for problem in load(path).problems]


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
        ("[backup]\nrequire_consistent = 1", "true or false"),
        ("[backup]\nrequire_consistant = true", "did you mean require_consistent?"),
        ('[backup]\nchek_compression = "all"', "did you mean check_compression?"),
        ('[backup]\ncheck_compression = "some"', "all or sample"),
        ('[backup]\nchunk_size = "100K"', "power of two"),
        ("[backup]\nchunk_size = 131072", "must be a text"),
        ('[backup]\nreread = "much"', "not a size"),
        ('[backup]\nexclude = "*.iso"', "list of texts"),
        ('[profiles.a]\nsources = ["/a"]\nrequire_consistent = "yes"', "true or false"),
        ('[profiles.a]\nsources = ["a=-"]', "absolute path"),
        ('[profiles.a]\nsources = ["a=x | y"]', "absolute path"),
        ('default_repository = "nowhere"', "not configured"),
        ('[repositories.nas]\nurl = "/n"\n[backup]\nrepositories = ["nsa"]', "did you mean nas?"),
        ('[profiles.a]\nsources = ["/a"]\ncopy_to = ["/b", "usb"]', "profiles.a.copy_to names 'usb', which is not"),
        ("default_repository = ", "not valid TOML"),
        ("a = " + "[" * 3000, "not valid TOML"),
    ],
)
def test_what_is_wrong_is_said(text: str, said: str, tmp_path: Path) -> None:
    (found,) = problems(tmp_path, text)
    assert said in found


_PROFILE = "[profiles.p]\nsources = ['/a']\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[bakcup]\nworkers = 2", "1: unknown key bakcup; did you mean backup?"),
        ("[backup]\n# one\n  levl = 3", "3: unknown key backup.levl"),
        ("\n\nbackup.compresion = 3", "3: unknown key backup.compresion; did you mean compression?"),
        ("[backup]\ncompression = 'atuo'", "2: backup.compression: unknown compression 'atuo': use auto, 1 to 19, off"),
        ("[backup]\ncheck_compression = 'al'", "2: backup.check_compression: must be all or sample; did you mean all?"),
        ("repositories = { a = { url = '/a', keyfil = '/k' } }", "1: unknown key repositories.a.keyfil; did you mean"),
        ('[repositories."a b"]\nurl = "/a"\n\n"url\\u0020" = 1', "4: unknown key repositories.a b.url ; did you"),
        ("[repositories.a]\n\nkeyfile = '/k'", "1: repositories.a: url is missing"),
        ("[repositories]\na.url = 5", "2: repositories.a.url: must be a text"),
        ("[[backup]]\nworkers = 1", "1: backup: must be a table"),
        ("[prune]\nzone = 'UTC'\nkeep_dayly = 3", "3: unknown key prune.keep_dayly; did you mean keep_daily?"),
        ("[prune.volumes.'w.img']\nkeep_daily = 'x'", "2: prune.volumes.w.img.keep_daily: not a number of snapshots"),
        ("[profiles.p]\nsources = [\n '/a',\n]\nverfy = '1G'", "5: unknown key profiles.p.verfy; did you mean verify?"),
        (f"{_PROFILE}verify = 'ful'", "3: profiles.p.verify: must be a size such as 10GiB, structure, sample"),
        (f"{_PROFILE}verify = true", "3: profiles.p.verify: must be a text"),
        (f"{_PROFILE}compression = 'of'", "3: profiles.p.compression: unknown compression 'of'"),
        (f"{_PROFILE}compression = 20", "3: profiles.p.compression: unknown compression '20'"),
        (f"{_PROFILE}domain = 'a/b'", "3: profiles.p.domain: "),
        (f"{_PROFILE}prune = 3", "3: profiles.p.prune: must be true, false, or a table of rules"),
        (f"{_PROFILE}prune = {{ keep_day = 3 }}", "3: unknown key profiles.p.prune.keep_day; did you mean keep_daily"),
        (f"{_PROFILE}[profiles.p.prune]\nkeep_last = 'x'", "4: profiles.p.prune.keep_last: not a number"),
        (f"{_PROFILE}notify.mial = 'root'", "3: unknown key profiles.p.notify.mial; did you mean mail?"),
        (f"{_PROFILE}schedule.memory_max = '8M'", "3: profiles.p.schedule.memory_max: must be a size of 64M or more"),
        (f"{_PROFILE}hooks = 5", "3: profiles.p.hooks: must be a table"),
        (f"{_PROFILE}copy_to = ['usb']", "3: profiles.p.copy_to names 'usb', which is not configured"),
        ("# none\n[profiles.p]\nverify = false", "2: profiles.p: sources is missing"),
        ("[profiles]\n'a b' = 1", "2: profiles.a b: a profile's name has letters"),
        ("[media.m]\nstale_after = '1d'\nrepositories = ['x']", "3: media.m: repositories names 'x', which is not"),
        ("[lvm]\nfull = \n\n", "2: not valid TOML: Invalid value (at line 2"),
        ("[lvm]\nnote = '''\nfull = 1\n'''\nfull = 1", "2: unknown key lvm.note"),
    ],
)
def test_a_mistake_is_said_with_its_line(text: str, said: str, tmp_path: Path) -> None:
    found = problems(tmp_path, text)
    assert found and found[0].startswith(said), found


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[backup]\ncompression = 'atuo'", "auto"),
        (f"{_PROFILE}compression = 'portabel'", "portable"),
        (f"{_PROFILE}verify = 'structur'", "structure"),
        ("[repositories.usb]\nurl = '/a'\nid = '" + "0" * 32 + "'\n[media.m]\nrepositories = ['ubs']", "usb"),
    ],
)
def test_for_a_wrong_value_the_nearest_word_is_offered(text: str, word: str, tmp_path: Path) -> None:
    (found,) = problems(tmp_path, text)
    assert found.endswith(f"; did you mean {word}?")


def test_a_key_that_is_set_twice_is_said_with_both_lines(tmp_path: Path) -> None:
    (tmp_path / "1.toml").write_text("[backup]\n\nworkers = 2\n")
    (tmp_path / "2.toml").write_text("# more\nbackup = { workers = 3 }\n")
    (found,) = load(tmp_path).problems
    assert found == f"{tmp_path}/2.toml:2: backup.workers: is set already, in {tmp_path}/1.toml:3"


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
    assert done.code == 2 and "no repository is named; configured are one, two" in done.err


# -- options of backup that are worth writing down once --------------------------------------------------------------

# Option -> the key of another name, or why there is none.
OTHERWISE = {
    "hook_timeout": "hook_seconds",
    "adopt": "for one run only",
    "changes_base": "for one run only",
    "changes_from": "for one run only",
    "document": "for one run only",
    "dry_run": "for one run only",
    "kernel": "the running one, but on rare hosts",
    "point_every": "hidden",
    "prune": "in profiles",
    "size": "for one stream only",
    "source_driver": "for one source only",
    "time": "for one stream only",
}


def test_every_option_of_a_backup_has_a_key_or_a_reason() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    backup.add_arguments(parser)
    options = {one.dest for one in parser._actions if one.option_strings}
    keys = {one.name for one in fields(BackupSettings)}
    assert {name for name in options if OTHERWISE.get(name, name) not in keys} == OTHERWISE.keys() - {"hook_timeout"}


def test_the_keys_of_a_backup_are_shown(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[backup]\nchunk_size = "64K"\nexclude = ["*.iso", "a*"]\nrequire_consistent = true\n')
    rows = {row["key"]: row["value"] for row in told_by(config).json("config", "show")["values"]}
    assert (rows["backup.chunk_size"], rows["backup.exclude"]) == ("64K", "*.iso, a*")
    assert (rows["backup.require_consistent"], rows["backup.reread"]) == (True, 0)


def test_the_keys_of_a_profile_are_shown(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(
        '[profiles.nightly]\nsources = ["/vms", "db=!dump"]\nprune = {keep_daily = 14}\nstale_after = "36h"\n'
        "compression = 7\n"
        '[profiles.nightly.notify]\nmail = "root"\n[profiles.plain]\nsources = ["/vms"]\nverify = false\n'
    )
    rows = {row["key"]: row for row in told_by(config).json("config", "show")["values"]}
    found = {key.removeprefix("profiles."): row["value"] for key, row in rows.items() if key.startswith("profiles.")}
    assert (found["nightly.sources"], found["nightly.prune.keep_daily"]) == ("/vms, db=!dump", 14)
    assert (found["nightly.stale_after"], found["nightly.notify.mail"]) == ("36h", "root")
    assert found["nightly.compression"] == "7" and "plain.compression" not in found
    assert (found["plain.prune"], found["plain.verify"], found["plain.stale_after"]) == (False, False, "3d")
    assert rows["profiles.nightly.sources"]["origin"] == str(config)
    assert rows["profiles.nightly.verify"] == {"key": "profiles.nightly.verify", "value": "1GiB", "origin": None}


def test_the_rules_of_a_profile_come_from_its_file(tmp_path: Path) -> None:
    config = tmp_path / "one.toml"
    config.write_text("[profiles.vms]\nsources = ['/srv/vm.img']\nprune = { keep_daily = 3 }\n")
    shown = told_by(config).ok("config", "show").out
    assert f"profiles.vms.prune.keep_daily = 3  # {config}" in shown and 'stale_after = "3d"  # default' in shown


def test_what_is_shown_is_written_as_toml_writes_values(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[backup]\nrequire_consistent = true\n[profiles.p]\nsources = ["/vms"]\nprune = true\n')
    lines = told_by(config).ok("config", "show").out.splitlines()
    values = {row["key"]: row["value"] for row in told_by(config).json("config", "show")["values"]}
    for line in lines:
        if not line.startswith("#"):
            key, _, written = line.partition(" = ")
            assert tomllib.loads(f"value = {written}")["value"] == values[key]


def told_by(config: Path) -> Lamella:
    return Lamella({"LAMELLA_CONFIG": str(config)})


def test_the_keys_of_a_backup_count_and_options_count_more(empty: Lamella, tmp_path: Path, keyfile: Path) -> None:
    config, vms = tmp_path / "c.toml", tmp_path / "vms"
    vms.mkdir()
    for name in ("a.img", "b.iso", "c.tmp"):
        (vms / name).write_bytes(name.encode() * 40_000)
    head = f'default_repository = "main"\n[repositories.main]\nurl = "{tmp_path}/repository"\nkeyfile = "{keyfile}"\n'
    keys = 'require_consistent = true\nchunk_size = "64K"\nexclude = ["*.iso"]\nreread = "1G"\n'
    profiles = "".join(
        f"[profiles.{name}]\nsources = ['dump=!echo content']\nverify = false\n{more}\n"
        for name, more in (("strict", ""), ("loose", "require_consistent = false"))
    )
    config.write_text(f'{head}[backup]\nrepositories = ["main"]\ncheck_compression = "all"\n{keys}{profiles}')
    lamella = told_by(config)
    rows = lamella.json("backup", vms, "--exclude", "*.tmp", "--no-require-consistent")["volumes"]
    assert [row["volume"] for row in rows] == ["a"]
    assert lamella.json("info", "a")["chunk_size"] == 64 << 10
    # The size of chunks was chosen at the first backup: another one in the configuration is for new volumes only.
    config.write_text(config.read_text().replace('"64K"', '"1M"'))
    lamella.ok("backup", "--no-require-consistent", vms / "a.img", vms / "b.iso")
    assert [lamella.json("info", name)["chunk_size"] >> 10 for name in ("a", "b")] == [64, 1024]
    refused = lamella.run("backup", "dump=!echo content")
    assert refused.code == 3 and "a consistent state is required" in refused.err, refused
    assert lamella.run("run", "strict").code == 3
    lamella.ok("run", "loose")
    assert lamella.json("info", "dump")["size"] == 8


def test_a_time_that_cron_cannot_keep_is_said(tmp_path: Path) -> None:
    config = tmp_path / "one.toml"
    for when, told in (("Mon 03:00", True), ("weekly", False)):
        config.write_text(f"[profiles.vms]\nsources = ['/srv/vm.img']\nschedule = {{ when = '{when}' }}\n")
        said = told_by(config).ok("schedule", "install", "--cron", "--print", "vms").err
        assert ("will run daily, not 'Mon 03:00'" in said) == told


def test_a_time_that_systemd_refuses_is_no_valid_configuration(tmp_path: Path) -> None:
    require("systemd", shutil.which("systemd-analyze") is not None, "systemd-analyze is not installed")
    config = tmp_path / "one.toml"
    config.write_text("[profiles.vms]\nsources = ['/srv/vm.img']\nschedule = { when = 'every night' }\n")
    done = told_by(config).run("config", "validate")
    assert done.code == 2 and f"{config}:3: profiles.vms.schedule.when: 'every night' is no time" in done.out
