"""Addresses of NBD exports."""

from __future__ import annotations

import pytest

from lamella.base.errors import UsageError
from lamella.cli.sources import may_be_several
from lamella.sources.names import split_name
from lamella.sources.nbd.address import NbdAddress, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nbd+unix:///disk?socket=/run/a", NbdAddress("disk", "/run/a")),
        ("nbd+unix:///?socket=/run/a%20b", NbdAddress("", "/run/a b")),
        ("nbd+unix:///a%2Fb?socket=/s&bitmap=x&next=y", NbdAddress("a/b", "/s", bitmap="x", next="y")),
        ("nbd://host/disk", NbdAddress("disk", host="host", port=10809)),
        ("nbd://host:10810", NbdAddress("", host="host", port=10810)),
        ("nbd://[::1]:5/e?bitmap=x", NbdAddress("e", host="::1", port=5, bitmap="x")),
    ],
)
def test_what_an_address_means(text: str, expected: NbdAddress) -> None:
    assert parse(text) == expected
    again = parse(expected.text)
    assert (again.export, again.socket, again.host, again.port) == (
        expected.export, expected.socket, expected.host, expected.port,
    )  # fmt: skip
    assert split_name(text) == (None, text)
    assert split_name(f"vm={text}") == ("vm", text)
    assert not may_be_several(text)


@pytest.mark.parametrize(
    "text",
    [
        "nbd:", "nbd:disk", "nbd://", "nbd+unix:///disk", "nbd+unix:///disk?socket=relative", "nbd://host:99999/x",
        "nbd+unix://host/disk?socket=/s", "nbd+unix:///d?socket=/s&socket=/t", "nbd://host/d?socket=/s",
        "nbd://host/d?bitmap=", "nbd://host/d?bitmap=a&next=a", "nbd://u@host/d", "nbd://host/d#f", "nbd://[x/d",
        "nbd://host/d?bitmap=" + "x" * 5000, "nbd://host/d?other=1", "nbd://host/%00",
    ],
)  # fmt: skip
def test_what_is_no_address_is_said_in_one_line(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert "\n" not in caught.value.message and caught.value.hint
