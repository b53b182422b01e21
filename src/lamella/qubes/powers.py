"""Powers of a restored qube over others, and of others over it: shown in the plan, and given only with consent.

A saved qube's settings are data that whoever wrote the backup chose. A tag, a device or another qube in them means
power where a policy of this system names it: `@tag:lamella-worker` may reach a destination, a network qube sees all
traffic. Such a setting takes effect only if the user of this system wants it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from lamella.qubes.settings import QubeSettings

PLACES: Final = ("etc/qubes/policy.d", "run/qubes/policy.d", "etc/qubes-rpc/policy")
"""Where the policies of a system are, below its root (policy.d with `!include`, and the form of release 4.0)."""
_WORD = re.compile(r"[^\s,=]+")
_TAG = re.compile(r"[@$]tag:(.+)")
_OWN_TAGS: Final = ("created-by-", "disp-created-by-", "guivm-", "audiovm-", "backup-restore-")
_OWN_TAG_NAMES: Final = frozenset({"anon-vm", "anon-gateway"})
_HELD_BY_TAG: Final = frozenset({"guivm", "audiovm"})
"""Properties for which qubesd gives a tag PROPERTY-QUBE, by which policies name the pair."""


def is_own_tag(tag: str) -> bool:
    """Whether qubesd and its extensions give and take this tag by themselves."""
    return tag.startswith(_OWN_TAGS) or tag in _OWN_TAG_NAMES


@dataclass(frozen=True, slots=True)
class Power:
    """One setting: `kind` is tag, device or the name of a property; `named` says where a policy names it, or is empty.

    `value` is what the setting is on this system: a qube that is restored under another name has its new name here.
    """

    kind: str
    value: str
    named: str = ""

    def line(self) -> str:
        """For people."""
        return f"{self.kind} {self.value}" + (f", which {self.named} names" if self.named else "")


@dataclass(frozen=True, slots=True)
class Policies:
    """Every word in the policies of a system, with the file it stands in. A file that cannot be read names all."""

    words: Mapping[str, str] = field(default_factory=dict)
    unread: str = ""

    def naming(self, *words: str) -> str:
        """The file that names one of these words; empty if none does."""
        return next((self.words[word] for word in words if word in self.words), self.unread)


def read_policies(root: Path) -> Policies:
    """The policies below the root of a system; none where there are no such directories."""
    words: dict[str, str] = {}
    unread = ""
    for top in (root / place for place in PLACES):
        try:
            for path in sorted(_files(top)):
                for line in path.read_text("utf-8", "replace").splitlines():
                    for word in _WORD.findall(line.partition("#")[0]):
                        words.setdefault(_plain(word), str(path))
        except OSError as error:
            unread = unread or f"a policy that cannot be read ({error.filename})"
    return Policies(words, unread)


def _files(top: Path) -> Iterator[Path]:
    """Every file below; OSError for a directory that cannot be listed, which must not look empty."""
    for entry in top.iterdir() if top.is_dir() else ():
        if entry.is_dir():
            yield from _files(entry)
        else:
            yield entry


def _plain(word: str) -> str:
    """`tag:NAME` for a tag in any of its forms, and the qube's name in `@dispvm:NAME`."""
    tag = _TAG.search(word)
    return f"tag:{tag[1]}" if tag is not None else re.sub(r"^[@$]dispvm:", "", word)


def powers_of(settings: QubeSettings, policies: Policies, renamed: Mapping[str, str]) -> list[Power]:
    """The powers in a qube's saved settings, as they would be on this system."""
    found = [Power("tag", tag, policies.naming(f"tag:{tag}")) for tag in settings.tags if not is_own_tag(tag)]
    for name, row in sorted(settings.properties.items()):
        if row.type == "vm" and row.value and name != "template":
            qube = renamed.get(row.value, row.value)
            held = [f"tag:{name}-{qube}"] if name in _HELD_BY_TAG else []
            found.append(Power(name, qube, policies.naming(qube, *held)))
    for call, lines in sorted(settings.devices.items()):
        class_ = call.partition(".")[2]
        for device in (line.partition(" ")[0] for line in lines):
            # dom0 is a word of many policies, and means none of its devices.
            backend = device.partition("+")[0]
            named = policies.unread if backend == "dom0" else policies.naming(backend)
            found.append(Power(f"device {class_}", device, named))
    return found
