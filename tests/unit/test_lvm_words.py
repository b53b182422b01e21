"""What is read from LVM and device-mapper: names, reports, the state of pools, versions of tools."""

from __future__ import annotations

import pytest

from lamella.base.errors import CheckpointLost, SourceAtRisk, SourceError
from lamella.sources.base import PoolLimits
from lamella.sources.lvm import commands, pools, thin_tools
from lamella.sources.lvm import thin as lvm_thin
from lamella.sources.lvm.commands import LogicalVolume
from lamella.sources.lvm.thin import ThinToken

STATUS = "0 819200 thin-pool 6 113/1024 19/6400 - rw discard_passdown queue_if_no_space - 256 "


def volume(**other: object) -> LogicalVolume:
    fields: dict[str, object] = {
        "vg": "vg", "vg_uuid": "V", "vg_free": 3 << 20, "extent": 4 << 20, "name": "pool", "uuid": "P", "size": 1,
        "attributes": "twi", "kind": "thin-pool", "pool": "", "pool_uuid": "", "thin_id": -1, "transaction": 6,
        "data_percent": 0.0, "discards": "passdown", "tags": frozenset(), "suspended": False, "made_ms": 0,
    }  # fmt: skip
    return LogicalVolume(**{**fields, **other})  # type: ignore[arg-type]


# -- names -----------------------------------------------------------------------------------------------------------


def test_names_of_devices_double_their_dashes() -> None:
    assert commands.device_name("qubes_dom0", "vm-a-b+lam00c0ffeex1") == "qubes_dom0-vm--a--b+lam00c0ffeex1"
    assert str(commands.node_of("a-b", "c")) == "/dev/mapper/a--b-c"


@pytest.mark.parametrize("text", ["vg/lv", "/dev/vg/lv"])
def test_a_logical_volume_by_name(text: str) -> None:
    assert commands.parsed(text) == ("vg", "lv")


def test_identities_are_told_apart() -> None:
    identity = lvm_thin.identity_of("abc-def", "vm-work-private")
    assert lvm_thin.named_by(identity) == ("abc-def", "vm-work-private")
    for other in (b"file:0123:/x", b"lvm:", b"lvm:abc", b"lvm::x", b"\xff"):
        assert lvm_thin.named_by(other) is None


def test_a_snapshot_is_ours_by_name_and_tags() -> None:
    tags = frozenset({"lamella", "lamella:owner=00c0ffee", "lamella:source=0123456789abcdef"})
    good = volume(name="vm-x+lam00c0ffeex12", kind="thin", tags=tags)
    assert (lvm_thin.owner_in(good), lvm_thin.source_in(good)) == ("00c0ffee", "0123456789abcdef")
    for other in (
        volume(name="vm-x+lam00c0ffeex12", kind="thin"),
        volume(name="vm-x+lam00c0ffeex12", kind="thin", tags=frozenset({"lamella:owner=00c0ff00"})),
        volume(name="vm-x+lam00c0ffeex12", kind="linear", tags=tags),
        volume(name="vm-x.snap", kind="thin", tags=tags),
        volume(name="vm-x+lam00c0ffeex0", kind="thin", tags=tags),
    ):
        assert lvm_thin.owner_in(other) == ""


def test_a_token_is_written_and_read_alike() -> None:
    row = volume(kind="thin", name="x+lam00c0ffeex1", thin_id=5, tags=frozenset({"lamella:external=LVM-abc"}))
    token = ThinToken.of(row)
    assert token.external == "LVM-abc"
    assert ThinToken.parse(token.text) == token
    for text in ("", "{}", token.text[:-1], token.text.replace('"thin":5', '"thin":"5"'), token.text + " " * 2000):
        with pytest.raises(CheckpointLost):
            ThinToken.parse(text)


# -- the report ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"report":[]}', '{"report":[{"lv":[{}]}]}', '{"report":[{"lv":7}]}'])
def test_a_report_that_makes_no_sense(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(commands, "run", lambda *_, **__: text.encode())
    with pytest.raises(SourceError, match="cannot be read"):
        commands.report("vg")


# -- pools -----------------------------------------------------------------------------------------------------------


def test_a_status_is_read() -> None:
    status = pools.parse_status(STATUS, "vg/pool")
    assert (status.transaction, status.held, status.mode, status.needs_check) == (6, None, "rw", False)
    assert (status.metadata_used, status.metadata_total, status.data_used, status.data_total) == (113, 1024, 19, 6400)
    assert pools.parse_status(STATUS.replace("6400 - rw", "6400 77 rw"), "vg/pool").held == 77
    assert pools.parse_status(STATUS.replace("- 256", "needs_check 256"), "vg/pool").needs_check
    pools.refuse_at_risk(volume(), status, PoolLimits())


@pytest.mark.parametrize("line", ["", "x", "0 1 thin-pool", "0 1 thin-pool 1 2 3 - rw x", "0 1 thin 1 1/2 1/2 - rw x"])
def test_a_status_that_makes_no_sense(line: str) -> None:
    with pytest.raises(SourceError, match="cannot be read"):
        pools.parse_status(line, "vg/pool")


@pytest.mark.parametrize(
    ("line", "says", "helps"),
    [
        (STATUS.replace("113/", "768/"), r"metadata of thin pool vg/pool is 75.0 % full", "--poolmetadatasize"),
        (STATUS.replace("19/", "5760/"), r"data of thin pool vg/pool is 90.0 % full", "lvextend --size"),
        (STATUS.replace("- 256", "needs_check 256"), "needs to be checked", "--repair"),
        (STATUS.replace(" rw ", " ro "), "read-only", "lvmthin"),
        (STATUS.replace(" rw ", " out_of_data_space "), "out of data space", "lvextend"),
        ("0 819200 thin-pool Fail", "has failed", "lvmthin"),
        ("0 819200 thin-pool Error", "has failed", "lvmthin"),
    ],
)
def test_a_pool_at_risk_is_refused_with_what_helps(line: str, says: str, helps: str) -> None:
    with pytest.raises(SourceAtRisk, match=says) as caught:
        pools.refuse_at_risk(volume(), pools.parse_status(line, "vg/pool"), PoolLimits())
    assert helps in caught.value.hint
    assert caught.value.exit_code == 22


def test_the_limits_can_be_chosen() -> None:
    status = pools.parse_status(STATUS.replace("19/", "5760/"), "vg/pool")
    pools.refuse_at_risk(volume(), status, PoolLimits(data_percent=95))
    with pytest.raises(SourceAtRisk, match="limit 10 %"):
        pools.refuse_at_risk(volume(), status, PoolLimits(metadata_percent=10))


# -- versions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "version", "fault"),
    [
        ("0.9.0\n", (0, 9, 0), ""),
        ("0.10.1", (0, 10, 1), ""),
        ("0.7.4", (0, 7, 4), ""),
        ("0.7.3", (0, 7, 3), "too old"),
        ("thin_delta 1.0.0", (1, 0, 0), "known to be wrong"),
        ("1.0.5", (1, 0, 5), "known to be wrong"),
        ("1.0.6", (1, 0, 6), ""),
        ("1.0.10", (1, 0, 10), ""),
        ("1.1.0", (1, 1, 0), ""),
        ("1.0.0-rc2", (1, 0, 0), "known to be wrong"),
        ("no idea", (), "does not state"),
        ("9" * 100 + ".1", (), "does not state"),
    ],
)
def test_versions_are_numbers(said: str, version: tuple[int, ...], fault: str) -> None:
    assert thin_tools.version_of(said) == version
    found = thin_tools.fault_of(version)
    assert fault in found
    assert bool(fault) == bool(found)
