"""Whole qubes through the real operations: what is saved, what comes back, and what is refused."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from lamella.base.errors import IntegrityError, NothingMatched, UsageError
from lamella.memory.host import Host
from lamella.operations.backup.story import BackupOptions, Request, plan_backup
from lamella.operations.shared.selection import select
from lamella.qubes.admin import Admin
from lamella.qubes.archive import QubeSnapshot, decode_settings
from lamella.qubes.dom0 import differences, lay_out
from lamella.qubes.inventory import Inventory
from lamella.qubes.restore_plan import Action, QubeRestore, RestoreWishes
from lamella.qubes.settings import DOCUMENT, Property, QubeSettings, read_settings
from lamella.qubes.settings_apply import IN_PROGRESS, Applier
from lamella.qubes.sources import SettingsSource, volume_identity
from lamella.repository.repository import Repository
from lamella.stores.memory import MemoryStore
from lamella_kit.fake_qubesd import FakeQubesd
from lamella_kit.qubes_layouts import Files, Refusal
from tests.fault.world import SECRET, restored
from tests.qubes.system import FEW_WORKERS, back_up, content, essence, planned, restore

ALL = ("tpl", "sys-net", "work", "vault", "own", "dvm", "disp1")
OVERWRITE = RestoreWishes(overwrite=True)


def test_every_qube_comes_back_as_it_was(store: MemoryStore, host: Host, admin: Admin, system: FakeQubesd) -> None:
    system.write("tpl", b"template", volume="root")
    system.start("work")
    system.write("work", b"alive")
    system.write("own", os.urandom(5000), volume="root", offset=70_000)
    before = {name: essence(system.qubes[name]) for name in ALL}
    bytes_before = {(n, v): content(system, n, v) for n in ALL for v in ("root", "private") if _has(system, n, v)}
    done = back_up(store, host, admin, *ALL)
    assert done.complete
    assert all(system.qubes[name].properties["backup_timestamp"] for name in ALL)
    for name in ALL:
        system.remove(name)
    del system.labels["mine"]

    results = restore(store, host, admin, ALL)
    assert {result.result for result in results.values()} == {"restored"}
    assert [note for result in results.values() for note in result.notes] == []
    after = {name: essence(system.qubes[name]) for name in ALL}
    assert after == before
    assert {(n, v): content(system, n, v) for n, v in bytes_before} == bytes_before
    assert not any(IN_PROGRESS in qube.tags for qube in system.qubes.values())
    system.start("work")


def _has(system: FakeQubesd, name: str, volume: str) -> bool:
    return volume in system.qubes[name].volumes and system.qubes[name].volumes[volume].save_on_stop


def test_a_running_qube_is_saved_as_it_is_now_and_as_it_was(
    store: MemoryStore, host: Host, admin: Admin, system: FakeQubesd, tmp_path: Path
) -> None:
    system.write("work", b"committed")
    system.start("work")
    system.write("work", b"live data")
    for live, wanted in ((True, b"live data"), (False, b"committed")):
        done = back_up(store, host, admin, "work", options=replace(FEW_WORKERS, live=live))
        row = next(row for row in done.volumes if row.volume == "work:private")
        assert row.consistency == (1 if live else 4) or row.consistency == 0  # the plain file driver may not know
        with Repository.open(store, SECRET, host) as repo:
            one = select(repo, [f"work:private@{done.snapshot}"])[0]
            assert restored(repo, one, tmp_path / "out.img")[:9] == wanted


def test_a_new_name_and_another_pool_keep_the_history(
    store: MemoryStore, host: Host, admin: Admin, system: FakeQubesd, tmp_path: Path
) -> None:
    system.pools["second"] = Files(tmp_path / "second")
    system.write("work", os.urandom(300_000))
    back_up(store, host, admin, "work")
    system.rename("work", "job")
    system.move("job", "private", "second")
    done = back_up(store, host, admin, "job")
    row = next(row for row in done.volumes if row.volume == "job:private")
    assert (row.mode, row.new_chunks) == ("compare", 0)
    with Repository.open(store, SECRET, host) as repo:
        assert sorted(repo.catalogue.shown_names().values()) == ["job:private", "job:settings"]


def test_a_new_qube_of_an_old_name_is_another_qube(
    store: MemoryStore, host: Host, admin: Admin, system: FakeQubesd
) -> None:
    back_up(store, host, admin, "work")
    old = system.qubes["work"].uuid
    system.remove("work")
    system.add("work", template="tpl")
    back_up(store, host, admin, "work")
    with pytest.raises(NothingMatched, match="several qubes"):
        planned(store, host, admin, ["work"], OVERWRITE)
    (row,) = planned(store, host, admin, [old], OVERWRITE)
    assert row.action == Action.OVERWRITE
    assert "another qube of the same name is overwritten" in row.notes


def test_marked_qubes_are_the_default_and_volumes_can_be_left_out(
    store: MemoryStore, host: Host, admin: Admin, system: FakeQubesd
) -> None:
    system.qubes["vault"].properties["include_in_backups"] = "False"
    system.qubes["own"].features["lamella.exclude-volumes"] = "root"
    done = back_up(store, host, admin, options=replace(FEW_WORKERS, template_roots=False))
    names = {row.volume for row in done.volumes}
    assert not any(name.startswith(("vault:", "dom0:")) for name in names)
    assert {"own:private", "tpl:private", "disp1:settings"} <= names
    assert not {"own:root", "tpl:root", "disp1:private"} & names


def test_each_qube_has_its_own_keys(store: MemoryStore, host: Host, admin: Admin) -> None:
    back_up(store, host, admin, "work", "vault")
    with Repository.open(store, SECRET, host) as repo:
        domains = {
            name: {snapshot.added.domain_id for volume in group for snapshot in volume.snapshots}
            for name, group in {
                name: [v for v in repo.catalogue.volumes.values() if v.name.startswith(name)]
                for name in ("work:", "vault:")
            }.items()
        }
    assert all(len(found) == 1 for found in domains.values())
    assert domains["work:"] != domains["vault:"]


def test_a_restored_qube_continues_its_history_and_its_clone_does_not(
    store: MemoryStore, host: Host, admin: Admin, system: FakeQubesd
) -> None:
    system.write("vault", os.urandom(300_000))
    back_up(store, host, admin, "vault")
    system.remove("vault")
    restore(store, host, admin, ["vault"])
    clone = system.add("copy", template="tpl")
    clone.features |= system.qubes["vault"].features
    done = back_up(store, host, admin, "vault", "copy")
    rows = {row.volume: row for row in done.volumes}
    assert (rows["vault:private"].mode, rows["vault:private"].new_chunks) == ("compare", 0)
    assert rows["copy:private"].mode == "full"
    system.remove("vault")
    restore(store, host, admin, ["vault", "copy"], RestoreWishes(rename_conflicting=True))
    assert "lamella.continues" in system.qubes["vault"].features
    assert "lamella.continues" not in system.qubes["copy1"].features


def test_what_is_copied_beside_its_original_has_a_history_of_its_own(
    store: MemoryStore, host: Host, admin: Admin, system: FakeQubesd
) -> None:
    back_up(store, host, admin, "vault")
    restore(store, host, admin, ["vault"], RestoreWishes(rename_conflicting=True))
    assert "lamella.continues" not in system.qubes["vault1"].features


# -- overwriting ------------------------------------------------------------------------------------------------------


def test_overwriting_keeps_the_old_state_as_a_revision(
    store: MemoryStore, host: Host, admin: Admin, system: FakeQubesd
) -> None:
    system.write("vault", b"saved")
    back_up(store, host, admin, "vault")
    system.write("vault", b"newer")
    system.qubes["vault"].features["later"] = "1"
    system.resize("vault", "private", 3 << 20)
    with pytest.raises(UsageError, match="exists"):
        planned(store, host, admin, ["vault"], RestoreWishes())
    result = restore(store, host, admin, ["vault"], OVERWRITE)["vault"]
    assert (result.result, result.action) == ("restored", "overwrite")
    assert content(system, "vault")[:5] == b"saved"
    assert system.qubes["vault"].volumes["private"].size == 1 << 20
    (revision,) = system.path("vault", "private").parent.glob("private.img.*")
    assert revision.read_bytes()[:5] == b"newer"
    assert "later" in system.qubes["vault"].features
    restore(store, host, admin, ["vault"], replace(OVERWRITE, exact=True))
    assert "later" not in system.qubes["vault"].features


def test_a_running_qube_is_never_touched(store: MemoryStore, host: Host, admin: Admin, system: FakeQubesd) -> None:
    back_up(store, host, admin, "vault")
    system.start("vault")
    with pytest.raises(UsageError, match="not halted"):
        planned(store, host, admin, ["vault"], OVERWRITE)


def test_a_qube_that_starts_after_the_plan_is_left_alone(
    store: MemoryStore, host: Host, admin: Admin, system: FakeQubesd
) -> None:
    back_up(store, host, admin, "vault")

    def start_it(method: str, dest: str) -> None:
        if method == "admin.vm.tag.Set" and dest == "vault":
            system.before_call = lambda *_: None
            system.start("vault")

    system.before_call = start_it
    result = restore(store, host, admin, ["vault"], OVERWRITE)["vault"]
    assert (result.result, result.bytes_written) == ("failed", 0)
    assert "started meanwhile" in result.error
    assert IN_PROGRESS not in system.qubes["vault"].tags


def test_damage_leaves_the_old_state_untouched(
    store: MemoryStore, host: Host, admin: Admin, system: FakeQubesd
) -> None:
    system.write("vault", os.urandom(200_000))
    back_up(store, host, admin, "vault")
    system.write("vault", b"newer")
    with Repository.open(store, SECRET, host) as repo:
        volume = next(v for v in repo.catalogue.volumes.values() if v.name == "vault:private")
        packs = [f"p/{pack.hex()[:2]}/{pack.hex()}" for pack in volume.snapshots[0].added.packs]
    objects = store.objects()
    for pack in packs:
        whole = bytearray(objects[pack])
        whole[len(whole) // 2] ^= 1
        objects[pack] = bytes(whole)
    result = restore(MemoryStore(objects), host, admin, ["vault"], OVERWRITE)["vault"]
    assert result.result == "failed"
    assert content(system, "vault")[:5] == b"newer"
    assert not list(system.path("vault", "private").parent.glob("*import*"))
    assert IN_PROGRESS not in system.qubes["vault"].tags
    system.start("vault")


def test_what_no_pool_can_hold_is_not_begun(store: MemoryStore, host: Host, admin: Admin, system: FakeQubesd) -> None:
    system.write("vault", os.urandom(200_000))
    back_up(store, host, admin, "vault")
    system.write("vault", b"newer")
    system.pool_size = 100_000
    result = restore(store, host, admin, ["vault"], OVERWRITE)["vault"]
    assert (result.result, result.bytes_written) == ("failed", 0)
    assert "needs" in result.error
    assert not any(call.startswith("internal.") for call in system.calls)
    system.start("vault")


def test_a_kill_within_an_import_is_mended_by_the_next_restore(
    store: MemoryStore, host: Host, admin: Admin, system: FakeQubesd
) -> None:
    system.write("vault", b"saved")
    back_up(store, host, admin, "vault")

    def kill(method: str, dest: str) -> None:
        if method == "internal.vm.volume.ImportEnd":
            raise Refusal("QubesException", "gone")

    system.write("vault", b"newer")
    system.before_call = kill
    assert restore(store, host, admin, ["vault"], OVERWRITE)["vault"].result == "failed"
    assert "private" in system.qubes["vault"].importing
    # As a killed process leaves it: what was open is still written down.
    (host.state_dir / "qubes-imports.json").write_text('[["vault", "private"]]')
    system.before_call = lambda *_: None
    assert content(system, "vault")[:5] == b"newer"
    assert restore(store, host, admin, ["vault"], OVERWRITE)["vault"].result == "restored"
    assert content(system, "vault")[:5] == b"saved"


# -- conflicts and missing references ---------------------------------------------------------------------------------


def test_under_a_new_name_references_follow(store: MemoryStore, host: Host, admin: Admin, system: FakeQubesd) -> None:
    back_up(store, host, admin, "sys-net", "work")
    results = restore(store, host, admin, ["sys-net", "work"], RestoreWishes(rename_conflicting=True))
    assert set(results) == {"sys-net1", "work1"}
    assert system.qubes["work1"].properties["netvm"] == "sys-net1"
    assert system.qubes["work"].properties["netvm"] == "sys-net"


def test_a_missing_net_qube_means_no_network(store: MemoryStore, host: Host, admin: Admin, system: FakeQubesd) -> None:
    back_up(store, host, admin, "work")
    for name in ("work", "sys-net", "disp1", "dvm"):
        system.remove(name)
    result = restore(store, host, admin, ["work"])["work"]
    assert system.qubes["work"].properties["netvm"] == ""
    assert any("it has no network now" in note for note in result.notes)
    assert any(note.startswith("default_dispvm") for note in result.notes)


def test_a_missing_template(store: MemoryStore, host: Host, admin: Admin, system: FakeQubesd) -> None:
    system.add("other", "TemplateVM")
    system.add("based", template="other")
    back_up(store, host, admin, "based")
    system.remove("based")
    system.remove("other")
    with pytest.raises(UsageError, match="template other"):
        planned(store, host, admin, ["based"], RestoreWishes())
    (row,) = planned(store, host, admin, ["based"], RestoreWishes(skip_broken=True))
    assert row.action == Action.SKIP
    restore(store, host, admin, ["based"], RestoreWishes(ignore_missing=True))
    assert system.qubes["based"].template == "tpl"


def test_values_that_qubesd_would_take_and_should_not(
    store: MemoryStore, host: Host, admin: Admin, system: FakeQubesd
) -> None:
    system.qubes["vault"].properties |= {"ip": "10.137.0.7", "memory": "9000", "kernel": "6.12"}
    back_up(store, host, admin, "vault")
    system.remove("vault")
    system.qubes["own"].properties["ip"] = "10.137.0.7"
    result = restore(store, host, admin, ["vault"])["vault"]
    assert "ip" not in system.qubes["vault"].properties
    assert "memory" not in system.qubes["vault"].properties
    assert len(result.notes) == 2


@pytest.mark.parametrize("device", ["dom0+00_1f.0\u00e9", "dom0+\x00", "dom0+\n", "dom0+" + "x" * 70_000, "d\u202eo"])
def test_a_device_that_no_call_can_name_is_noted(
    store: MemoryStore, host: Host, admin: Admin, system: FakeQubesd, device: str
) -> None:
    settings = replace(GOOD, devices={"Assigned.pci": (device,)})
    notes: list[str] = []
    row = QubeRestore(QubeSnapshot("work", settings.uuid, "x", settings, {}, ()), "work", Action.OVERWRITE)
    Applier(admin, Inventory(admin), row, {}, notes).plain(exact=False)
    assert [note for note in notes if note.startswith("device pci")]


def test_tags_that_the_system_gives_are_not_restored(
    store: MemoryStore, host: Host, admin: Admin, system: FakeQubesd
) -> None:
    system.qubes["vault"].tags |= {"created-by-gone", "guivm-sys-gui", "mine"}
    back_up(store, host, admin, "vault")
    system.remove("vault")
    assert restore(store, host, admin, ["vault"])["vault"].notes == []
    assert system.qubes["vault"].tags == {"created-by-dom0", "mine"}


def test_an_older_release_that_knows_less(store: MemoryStore, host: Host, admin: Admin, system: FakeQubesd) -> None:
    system.release = "4.2"
    back_up(store, host, admin, "vault")
    system.remove("vault")
    assert restore(store, host, admin, ["vault"])["vault"].result == "restored"


# -- dom0 -------------------------------------------------------------------------------------------------------------


def test_a_label_whose_colour_qubesd_does_not_tell_costs_nothing_else(
    store: MemoryStore, host: Host, admin: Admin, system: FakeQubesd
) -> None:
    def break_off(method: str, dest: str) -> None:
        if method == "admin.label.Get":
            raise Refusal("ProtocolError", "broken off")

    system.before_call = break_off
    assert back_up(store, host, admin, "work").complete
    before = essence(system.qubes["work"])
    system.remove("work")
    del system.labels["mine"]
    done = restore(store, host, admin, ["work"])["work"]
    assert done.result == "restored"
    assert "it got the label red instead of mine" in done.notes
    assert essence(system.qubes["work"]) == before | {"label": "red"}


def test_dom0_is_laid_out_beside(
    store: MemoryStore, host: Host, admin: Admin, system: FakeQubesd, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    (root / "etc/qubes/policy.d").mkdir(parents=True)
    (root / "etc/qubes/policy.d/30-user.policy").write_text("a\n")
    (root / "home/user").mkdir(parents=True)
    (root / "home/user/link").symlink_to("/nowhere")
    done = back_up(store, host, admin, "dom0", root=root)
    assert {row.volume for row in done.volumes} == {"dom0:settings", "dom0:globals", "dom0:config"}
    assert done.complete
    (root / "etc/qubes/policy.d/30-user.policy").write_text("b\n")
    (root / "home/user/link").unlink()
    with Repository.open(store, SECRET, host) as repo:
        archive = tmp_path / "archive.tar"
        archive.write_bytes(restored(repo, select(repo, ["dom0:config"])[0], tmp_path / "out.img"))
    lay_out(archive, tmp_path / "beside")
    assert differences(tmp_path / "beside", root) == [
        "different now: /etc/qubes/policy.d/30-user.policy",
        "missing now: /home/user/link",
    ]


# -- documents that nobody of ours wrote ------------------------------------------------------------------------------

GOOD = QubeSettings("work", "00000000-0000-0000-0000-000000000001", "AppVM", label="red")


@pytest.mark.parametrize(
    "bad",
    [
        replace(GOOD, name="../../etc"), replace(GOOD, name="none"), replace(GOOD, name="a" * 32),
        replace(GOOD, name="a-dm"), replace(GOOD, uuid="x"), replace(GOOD, klass="App VM"),
        replace(GOOD, label="red blue"), replace(GOOD, tags=("a b",)), replace(GOOD, features={"a/b": ""}),
        replace(GOOD, volumes={"../x": {}}), replace(GOOD, notes="n" * 256_001), replace(GOOD, features={"a": 1}),  # type: ignore[dict-item]
        replace(GOOD, properties={"memory": {"type": "int", "value": 5}}),  # type: ignore[dict-item]
        replace(GOOD, notes="\ud800"), replace(GOOD, features={"a": "\udfff"}), replace(GOOD, tags=("\ud800",)),
        replace(GOOD, properties={"memory": Property("int", "\ud800")}), replace(GOOD, firewall="\ud800"),
    ],
)  # fmt: skip
def test_settings_with_anything_odd_are_refused(bad: QubeSettings) -> None:
    import json
    from dataclasses import asdict

    document = json.dumps({"schema": "lamella-qube/1", **asdict(bad)}).encode()
    with pytest.raises(IntegrityError):
        decode_settings(document, "a test")


def test_settings_of_another_qube_are_refused(store: MemoryStore, host: Host, admin: Admin, system: FakeQubesd) -> None:
    """Whoever holds the keys could put one qube's settings where another's belong; names and keys are then right."""
    back_up(store, host, admin, "work", "vault")
    with Repository.open(store, SECRET, host) as repo:
        inventory = Inventory(admin)
        work, vault = inventory.qube("work"), inventory.qube("vault")
        document = {DOCUMENT: read_settings(admin, inventory, vault).encode()}
        source = SettingsSource(volume_identity(work.uuid, "settings"), "work:settings")
        request = Request("work:settings", source, f"qube {work.uuid}", document, follows=True)
        plan_backup(repo, [request], BackupOptions(workers=1)).execute()
    with pytest.raises(IntegrityError, match="another qube"):
        planned(store, host, admin, ["work"], OVERWRITE)


def test_settings_survive_being_written_down() -> None:
    assert decode_settings(GOOD.encode(), "a test") == GOOD
