"""Commands on a host whose memory is damaged: a warning with the file's name, the usual exit code, and no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.program import Lamella


def aside_of(path: Path) -> bytes | None:
    aside = path.with_name(f"{path.name}.damaged")
    return aside.read_bytes() if aside.exists() else None


@pytest.mark.parametrize("content", [b"", b'{"heads": 3}', b"\xff" * 40])
def test_commands_go_on_and_say_which_file(
    saved: Lamella, image: Path, tmp_path: Path, own_places: Path, content: bytes
) -> None:
    saved.ok("verify", "--level", "full")
    files = sorted(own_places.glob("state/repo/*/*.json"))
    assert {path.stem for path in files} >= {"confirmed", "looks", "pins", "places", "verified", "writer"}
    for path in files:
        path.write_bytes(content)
    said = ""
    keep = ["prune", "-n", "--keep-last", "9"]
    for words in (["list"], ["restore", "disk", "--to", tmp_path / "out.img"], ["check"], keep):
        done = saved.ok(*words)
        assert "Traceback" not in done.err
        said += done.err
    assert (tmp_path / "out.img").read_bytes() == image.read_bytes()
    for name in ("pins", "places", "looks", "verified", "writer"):
        assert said.count(f"{name}.json, in which") == 1, said
    (pins,) = own_places.glob("state/repo/*/pins.json")
    pins.write_bytes(content)
    assert any("pins.json" in text for text in saved.json("backup", image)["warnings"])
    assert saved.ok("backup", image).err.count("damaged") == 0
    saved.ok("verify", "--level", "full")  # what only a verification reads
    aside = {path.stem for path in files if aside_of(path) == content}
    assert aside == {path.stem for path in files}
