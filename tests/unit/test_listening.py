"""Where an NBD server listens: who can connect, and what is refused."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from lamella.base.errors import UsageError
from lamella.operations.access.listening import at_address, at_path, handed_over


@pytest.mark.parametrize("text", ["0.0.0.0:0", "[::]:0", "192.0.2.1:10809", "[2001:db8::1]:1"])
def test_an_address_that_others_can_reach_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught, at_address(text):
        pass
    assert "--allow-network" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["", "127.0.0.1", "127.0.0.1:", "127.0.0.1:70000", "127.0.0.1:-1", "host:1", ":1", "1"]
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(UsageError), at_address(text):
        pass


def test_a_network_address_with_consent_and_the_names_of_this_machine() -> None:
    with at_address("0.0.0.0:0", from_anywhere=True) as (listener, uri):
        assert uri == f"nbd://0.0.0.0:{listener.getsockname()[1]}"
    with at_address("localhost:0") as (listener, uri):
        assert uri == f"nbd://127.0.0.1:{listener.getsockname()[1]}"


def test_a_socket_file_is_its_owners_alone_and_goes_at_the_end(tmp_path: Path) -> None:
    place = tmp_path / "a b?.sock"
    with at_path(place) as (_, uri):
        assert place.stat().st_mode & 0o777 == 0o600
        assert uri == f"nbd+unix:///?socket={tmp_path}/a%20b%3F.sock"
    assert not place.exists()


def test_the_end_removes_no_socket_of_another(tmp_path: Path) -> None:
    place = tmp_path / "s"
    with at_path(place):
        place.rename(tmp_path / "moved")
        place.write_text("mine")
    assert place.read_text() == "mine"


def test_a_dangling_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "s").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError), at_path(tmp_path / "s"):
        pass
    assert (tmp_path / "s").is_symlink()


def test_what_was_handed_over_must_be_a_socket(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file, pytest.raises(UsageError), handed_over(file.fileno()):
        pass
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as given:
        given.bind(("127.0.0.1", 0))
        port = given.getsockname()[1]
        with handed_over(given.detach()) as (_, uri):
            assert uri == f"nbd://127.0.0.1:{port}"
