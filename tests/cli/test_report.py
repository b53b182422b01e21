"""`lamella report` as its users fear it: a page that says less than `status`, a secret in it, a file lost."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.cli.program import Lamella

SECRET = "correct horse battery staple"


def page_of(lamella: Lamella, folder: Path) -> str:
    lamella.ok("report", "--html", folder / "report.html")
    return (folder / "report.html").read_text("utf-8")


def test_the_report_says_what_status_says_and_what_was_stored(saved: Lamella, image: Path, tmp_path: Path) -> None:
    first = saved.json("list")["snapshots"][0]["snapshot"]
    with image.open("r+b") as file:
        file.write(os.urandom(1 << 20))
    done = saved.json("backup", str(image))
    found, status = saved.json("report"), saved.json("status", code=3)
    (row,) = found["volumes"]
    history = row.pop("history")
    assert row.pop("failed") == [] and all(one["good"] for one in history)
    row["age_seconds"] = status["volumes"][0]["age_seconds"]
    assert {name: found[name] for name in ("state", "volumes", "repositories", "profiles")} == {
        name: status[name] for name in ("state", "volumes", "repositories", "profiles")
    }
    assert [one["snapshot"] for one in history] == [first, done["snapshot"]]
    assert history[1]["stored_bytes"] == done["stored_bytes"] > 1 << 20
    page = page_of(saved, tmp_path)
    assert "never verified on this host" in page and "1 to look at" in page and "disk" in page
    assert (tmp_path / "report.html").stat().st_mode & 0o777 == 0o600
    saved.ok("verify")
    assert "Everything is in order" in page_of(saved, tmp_path)
    assert "disk" in saved.ok("report").out and "30 DAYS" in saved.ok("report").out
    assert saved.ok("report", "--html", "-").out.startswith("<!DOCTYPE html>")


def test_what_was_not_saved_is_marked(empty: Lamella, image: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.img"
    other.write_bytes(os.urandom(1 << 20))
    empty.ok("backup", image, other)
    other.unlink()
    assert empty.run("backup", image, other).code == 3
    found = {row["volume"]: row for row in empty.json("report")["volumes"]}
    assert len(found["other"]["failed"]) == 1 and "other" in found["other"]["failed"][0]["reason"]
    assert found["disk"]["failed"] == [] and len(found["disk"]["history"]) == 2
    page = page_of(empty, tmp_path)
    assert 'class="failed"' in page and 'class="wrong"' in page and "something failed</title>" in page


def test_a_repository_that_is_away_is_a_reason_and_no_failure(saved: Lamella, tmp_path: Path) -> None:
    saved.ok("verify")
    gone = tmp_path / "gone"
    place = saved.env["LAMELLA_REPO"]
    done = saved.run("report", "-r", place, "-r", str(gone), "--html", str(tmp_path / "report.html"))
    assert done.code == 0
    page = (tmp_path / "report.html").read_text()
    (_, row) = saved.json("status", "-r", place, "-r", str(gone), code=3)["repositories"]
    assert row["reasons"] and "1 to look at" in page and f"<p>{row['reasons'][0]}</p>" in page and "disk" in page


def test_only_a_report_is_replaced(saved: Lamella, image: Path, tmp_path: Path) -> None:
    before = image.read_bytes()
    for path, what in ((image, "no report"), (tmp_path, "cannot write"), (image / "x", "cannot write")):
        done = saved.run("report", "--html", str(path))
        assert done.code == 2 and what in done.err and len(done.err.splitlines()) == 1, done
    done = saved.run("report", "--html", str(tmp_path / "no" / "such"))
    assert done.code == 1 and len(done.err.splitlines()) == 1
    assert image.read_bytes() == before
    assert page_of(saved, tmp_path) and page_of(saved, tmp_path)


def test_no_secret_is_in_it(image: Path, tmp_path: Path) -> None:
    lamella = Lamella({"LAMELLA_REPO": str(tmp_path / "repository"), "LAMELLA_PASSPHRASE": SECRET})
    sheet = tmp_path / "sheet"
    lamella.ok("init", "-q", "--recovery-sheet", sheet)
    lamella.ok("backup", image)
    found = lamella.ok("--json", "report", "--html", tmp_path / "report.html").out
    found += (tmp_path / "report.html").read_text()
    (key,) = re.findall(r"(?:[A-Z2-7]{5}-\s*){13}[A-Z2-7]{5}", sheet.read_text())
    assert '"disk"' in found and ">disk<" in found
    assert SECRET not in found and not [group for group in key.split("-") if group.strip() in found]
