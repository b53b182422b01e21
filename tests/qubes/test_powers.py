"""Power is restored by consent: what policies of this system name is shown, and set only if the user says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lamella.qubes.powers import PLACES, Policies, Power, powers_of, read_policies
from lamella.qubes.settings import Property, QubeSettings
from lamella_kit.fake_qubesd import FakeQubesd
from tests.cli.program import Lamella, Terminal
from tests.qubes.test_command import dom0  # noqa: F401 (a fixture)

POLICY = Path(__file__).resolve().parents[2] / "src/lamella/qubes/storage_qube/30-lamella.policy"
GUI = "admin.vm.List  *  @tag:guivm-sys-gui  @tag:guivm-sys-gui  allow target=@adminvm\n"


def write_policy(tmp_path: Path, text: str, name: str = "etc/qubes/policy.d/40-test.policy") -> None:
    path = tmp_path / "dom0root" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def lost(dom0: Lamella, system: FakeQubesd) -> Lamella:  # noqa: F811
    """The command; `work` is saved with a tag that our own policy names, and gone."""
    system.qubes["work"].tags.add("lamella-worker")
    dom0.ok("qubes", "backup", "work")
    system.remove("work")
    return dom0


def test_the_tag_that_our_own_policy_names_needs_consent(lost: Lamella, system: FakeQubesd, tmp_path: Path) -> None:
    write_policy(tmp_path, POLICY.read_text())
    plan = lost.ok("qubes", "restore", "work", "-n").out
    assert "tag keep\n" in plan
    assert "tag lamella-worker, which" in plan
    assert "only with --grant-powers" in plan
    assert "device pci dom0+00_1f.2" in plan
    assert "netvm sys-net\n" in plan
    done = lost.ok("qubes", "restore", "work", "-y")
    assert "tag lamella-worker: not given" in done.err
    assert system.qubes["work"].tags & {"lamella-worker", "keep"} == {"keep"}
    assert system.qubes["work"].properties["netvm"] == "sys-net"
    assert system.qubes["work"].devices["pci"]
    lost.ok("qubes", "restore", "work", "--overwrite", "--grant-powers")
    assert "lamella-worker" in system.qubes["work"].tags


NAMED = {
    "a tag": ("x  *  @tag:keep  @anyvm  allow\n", {"tag keep"}),
    "a tag in the old form": ("$tag:keep $anyvm allow\n", {"tag keep"}),
    "disposables of a tag": ("x * @anyvm @dispvm:@tag:keep allow\n", {"tag keep"}),
    "a network qube": ("x * @anyvm @default allow target=sys-net\n", {"netvm sys-net"}),
    "a template for disposables": ("x * @anyvm @dispvm:dvm allow\n", {"default_dispvm dvm"}),
    "nothing but a comment": ("# @tag:keep sys-net dvm\n", set()),
    "a longer tag": ("x * @tag:keep-not @anyvm deny\n", set()),
}


@pytest.mark.parametrize("case", NAMED)
@pytest.mark.parametrize("place", [*(f"{top}/10-a.policy" for top in PLACES), "etc/qubes/policy.d/include/admin-local"])
def test_what_a_policy_names_waits(lost: Lamella, system: FakeQubesd, tmp_path: Path, case: str, place: str) -> None:
    text, waiting = NAMED[case]
    write_policy(tmp_path, text, place)
    (row,) = lost.json("qubes", "restore", "work", "-n")["qubes"]
    assert {f"{one['kind']} {one['value']}" for one in row["powers"] if not one["given"]} == waiting
    assert all(one["named_in"].endswith(place) for one in row["powers"] if not one["given"])
    (done,) = lost.json("qubes", "restore", "work")["qubes"]
    work = system.qubes["work"]
    assert {note.partition(":")[0] for note in done["notes"] if "--grant-powers" in note} == waiting
    assert ("keep" in work.tags) == ("tag keep" not in waiting)
    assert work.properties["netvm"] == ("" if "netvm sys-net" in waiting else "sys-net")
    assert (work.properties.get("default_dispvm") == "dvm") == ("default_dispvm dvm" not in waiting)


@pytest.mark.parametrize("answer", ["y", "n"])
def test_a_person_is_asked(lost: Lamella, system: FakeQubesd, tmp_path: Path, answer: str) -> None:
    write_policy(tmp_path, POLICY.read_text())
    with Terminal([*lost.options, "qubes", "restore", "work"], lost.env) as terminal:
        terminal.expect("Set them, too? [y/N]")
        terminal.type(answer)
        assert terminal.end() == 0, terminal.seen
    assert ("lamella-worker" in system.qubes["work"].tags) == (answer == "y")


def test_a_qube_that_a_policy_names_is_told_of(lost: Lamella, tmp_path: Path) -> None:
    write_policy(tmp_path, "x * work @anyvm allow\n")
    (row,) = lost.json("qubes", "restore", "work", "-n")["qubes"]
    assert any("names a qube work" in note for note in row["notes"])


def test_policies_that_cannot_be_read_name_everything(tmp_path: Path) -> None:
    (tmp_path / PLACES[0] / "10-a.policy").mkdir(parents=True)
    (tmp_path / PLACES[0] / "20-b.policy").symlink_to("nowhere")
    found = read_policies(tmp_path)
    assert "20-b.policy" in found.naming("anything")
    shutil.rmtree(tmp_path / PLACES[0])
    assert read_policies(tmp_path) == Policies()


def test_gui_and_audio_qubes_are_named_by_tags(tmp_path: Path) -> None:
    write_policy(tmp_path, GUI)
    policies = read_policies(tmp_path / "dom0root")
    settings = QubeSettings(
        "a", "", "AppVM", properties={"guivm": Property("vm", "gui"), "label": Property("label", "x")}
    )
    (power,) = powers_of(settings, policies, {"gui": "sys-gui"})
    assert (power.kind, power.value) == ("guivm", "sys-gui")
    assert power.named
    assert powers_of(settings, policies, {}) == [Power("guivm", "gui")]
