"""--if-available and --limit-rate: what is not there is no failure, and what is slow is meant to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.program import Lamella


@pytest.mark.parametrize("command", ["backup", "verify", "list", "restore"])
def test_a_missing_directory_is_75_with_one_line_and_no_question(lamella: Lamella, image: Path, command: str) -> None:
    words: list[str | Path] = {
        "backup": [image],
        "verify": [],
        "list": [],
        "restore": ["disk", "--to", image.parent / "out"],
    }[command]  # type: ignore[assignment]
    without_key = Lamella(lamella.env)
    done = without_key.run(command, "--if-available", *words)
    assert done.code == 75, done.err
    assert len(done.err.splitlines()) == 1
    assert "is not available" in done.err
    assert without_key.run(command, *words).code == 10


def test_an_empty_mount_point_is_75_and_a_place_with_other_things_is_not(
    lamella: Lamella, place: Path, image: Path
) -> None:
    place.mkdir()
    assert lamella.run("--if-available", "backup", image).code == 75
    (place / "holiday.jpg").write_bytes(b"")
    (place / "p").mkdir()
    (place / "p" / "x").write_bytes(b"")
    assert lamella.run("--if-available", "backup", image).code == 10


def test_what_is_there_is_used(saved: Lamella, image: Path) -> None:
    assert saved.run("--if-available", "backup", image).code == 0
    assert saved.run("--if-available", "verify").code == 0


def test_other_failures_keep_their_codes(saved: Lamella, tmp_path: Path, image: Path) -> None:
    other = tmp_path / "other-key"
    other.write_bytes(b"another key file, 32 bytes long.")
    wrong = Lamella(saved.env, ["--keyfile", str(other)])
    assert wrong.run("--if-available", "backup", image).code == 12


def test_as_a_document(lamella: Lamella, image: Path) -> None:
    error = lamella.json("--if-available", "backup", image, code=75)["error"]
    assert (error["exit"], error["kind"]) == (75, "absent")


@pytest.mark.parametrize("rate", ["0", "1", "fast", "-5M", "5X"])
def test_a_rate_that_makes_no_sense_is_refused(saved: Lamella, rate: str) -> None:
    assert saved.run(f"--limit-rate={rate}", "list").code == 2


def test_a_configured_rate_is_shown_checked_and_used(saved: Lamella, image: Path, tmp_path: Path, place: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'[repositories.usb]\nurl = "{place}"\nlimit_rate = "800M"\n')
    named = {"LAMELLA_CONFIG": str(config)}
    assert "repositories.usb.limit_rate = 838860800" in saved.ok("config", "show", env=named).out
    saved.ok("-r", "usb", "backup", image, env=named)
    config.write_text(f'[repositories.usb]\nurl = "{place}"\nlimit_rate = "800M@00:00-23:59,900M"\n')
    saved.ok("verify", "-r", "usb", env=named)
    assert 'limit_rate = "800M@00:00-23:59,900M"' in saved.ok("config", "show", env=named).out
    config.write_text(f'[repositories.usb]\nurl = "{place}"\nlimit_rate = "12 bananas"\n')
    done = saved.run("config", "validate", env=named)
    assert done.code == 2
    assert "limit_rate" in done.out
