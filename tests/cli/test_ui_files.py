"""The files of a snapshot in `lamella ui`: a guest reads them, when somebody asks for it."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.page_server import serving
from tests.cli.program import Lamella
from tests.cli.test_files import KERNEL, kernel_cache, state

pytestmark = pytest.mark.slow
__all__ = ["kernel_cache", "state"]  # fixtures
NAME = "<b>&amp; it's.txt"


def test_a_directory_is_read_when_it_is_asked_for(empty: Lamella, tmp_path: Path) -> None:
    (tmp_path / "tree/home/ada").mkdir(parents=True)
    (tmp_path / "tree/home" / NAME).write_text("hello")
    image = tmp_path / "web.img"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-d", tmp_path / "tree", image], check=True)
    empty.ok("backup", image)
    with serving(empty, "--kernel", str(KERNEL)) as page:
        page.enter()
        place = page.get("/r/0/web").text.partition('href="/r/0/web/')[2].partition('"')[0]
        files = f"/r/0/web/{place}/files"
        assert "Read this directory" in page.get(f"{files}/-/%2Fhome").text, "a look starts no guest"
        job = page.post(files, {"path": "/home", "partition": ""})
        deadline = time.monotonic() + 280
        while '<strong id="state">works' in (text := page.get(job.headers["Location"]).text):
            assert time.monotonic() < deadline, text
            time.sleep(0.5)
        assert f'href="{files}/-/%2Fhome"' in text, text
        found = page.get(f"{files}/-/%2Fhome").text
        assert "&lt;b&gt;&amp;amp; it&#x27;s.txt" in found and "<b>" not in found and ">5 B<" in found
        assert 'name="exact-path" value="%2Fhome%2Fada"' in found and ">ada</button>" in found
        again = page.post(files, {"path": "/home", "partition": ""})
        assert again.headers["Location"] == f"{files}/-/%2Fhome", "it is known by now"
