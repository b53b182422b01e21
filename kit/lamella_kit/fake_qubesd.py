"""A small qubesd: the real wire protocol on real sockets, and pools in the layouts of the real ones (qubes_layouts.py).

It keeps to what the real one was seen to do, refusals included: references that do not hold, starts of qubes that are
being restored, imports into running ones. What a test does to a qube (start, write, stop) goes through methods here.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lamella_kit.qubes_layouts import FakeVolume, Files, Layout, Refusal

DEFAULTS: dict[str, tuple[str, str]] = {
    "autostart": ("bool", "False"), "backup_timestamp": ("int", ""), "debug": ("bool", "False"),
    "default_dispvm": ("vm", ""), "include_in_backups": ("bool", "True"), "ip": ("str", ""), "kernel": ("str", "6.6"),
    "label": ("label", "red"), "mac": ("str", ""), "maxmem": ("int", "4000"), "memory": ("int", "400"),
    "netvm": ("vm", ""), "provides_network": ("bool", "False"), "qrexec_timeout": ("int", "60"),
    "template_for_dispvms": ("bool", "False"), "vcpus": ("int", "2"), "management_dispvm": ("vm", ""),
}  # fmt: skip
READ_ONLY = {"name", "uuid", "klass", "is_preload", "qid", "xid", "icon", "updateable", "start_time"}
VOLUMES = {
    "TemplateVM": {"root": True, "private": True, "volatile": False},
    "StandaloneVM": {"root": True, "private": True, "volatile": False},
    "AppVM": {"root": False, "private": True, "volatile": False},
    "DispVM": {"root": False, "private": False, "volatile": False},
}
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]{0,30}")


@dataclass
class FakeQube:
    name: str
    klass: str
    label: str
    template: str = ""
    uuid: str = field(default_factory=lambda: str(uuid.uuid4()))
    state: str = "Halted"
    properties: dict[str, str] = field(default_factory=dict)
    tags: set[str] = field(default_factory=set)
    features: dict[str, str] = field(default_factory=dict)
    firewall: str = "action=accept\n"
    notes: str = ""
    devices: dict[str, dict[str, str]] = field(default_factory=dict)
    volumes: dict[str, FakeVolume] = field(default_factory=dict)
    importing: set[str] = field(default_factory=set)
    preloaded: bool = False
    """A disposable that is kept ready (from 4.3 on): who unpauses it has used it."""


class FakeQubesd:
    """One system. `directory` holds the sockets; a pool that is given as a directory holds files."""

    def __init__(self, directory: Path, pools: Mapping[str, Path | Layout], *, volume_size: int = 4 << 20) -> None:
        self.directory = directory
        self.pools: dict[str, Layout] = {
            name: Files(pool) if isinstance(pool, Path) else pool for name, pool in pools.items()
        }
        self.default_pool = next(iter(pools))
        self.volume_size = volume_size
        self.qubes = {"dom0": FakeQube("dom0", "AdminVM", "black", uuid=str(uuid.UUID(int=0)))}
        self.labels = {"red": "0xcc0000", "green": "0x73d216", "black": "0x000000", "blue": "0x3465a4"}
        self.globals: dict[str, tuple[str, str]] = {
            "default_netvm": ("vm", "sys-net"),
            "clockvm": ("vm", ""),
            "default_dispvm": ("vm", "dvm"),
        }
        self.calls: list[str] = []
        self.before_call: Callable[[str, str], None] = lambda method, dest: None
        """A test's way of doing something between two calls."""
        self.release = "4.3"
        self.pool_size = 1 << 40
        self._lock = threading.RLock()
        self._servers: list[socket.socket] = []

    # -- what tests do ------------------------------------------------------------------------------------------------

    def add(self, name: str, klass: str = "AppVM", *, template: str = "", label: str = "red", **props: str) -> FakeQube:
        qube = self._create(klass, name, label, template)
        qube.properties.update(props)
        return qube

    def path(self, name: str, volume: str, suffix: str = "") -> Path:
        found = self.qubes[name].volumes[volume]
        return self.pools[found.pool].path(found.vid, suffix)

    def live(self, name: str, volume: str) -> Path:
        found = self.qubes[name].volumes[volume]
        return self.pools[found.pool].live(found.vid)

    def write(self, name: str, content: bytes, *, volume: str = "private", offset: int = 0) -> None:
        """What the qube writes: to its live volume, durable at once."""
        with self.live(name, volume).open("r+b") as file:
            os.pwrite(file.fileno(), content, offset)
            os.fsync(file.fileno())

    def start(self, name: str) -> None:
        qube = self.qubes[name]
        if "backup-restore-in-progress" in qube.tags:
            raise Refusal("QubesVMError", "Qube is being restored")
        for volume in qube.volumes.values():
            self.pools[volume.pool].start(volume)
        qube.state = "Running"

    def stop(self, name: str) -> None:
        qube = self.qubes[name]
        for volume in qube.volumes.values():
            self.pools[volume.pool].stop(volume)
        qube.state = "Halted"

    def remove(self, name: str) -> None:
        for volume in self.qubes.pop(name).volumes.values():
            self.pools[volume.pool].remove(volume)

    def rename(self, name: str, new: str) -> None:
        """The same qube under another name; its files move along."""
        qube = self.qubes.pop(name)
        qube.name = new
        self.qubes[new] = qube
        for volume in qube.volumes.values():
            self._relocate(volume, volume.pool, new)
        for other in self.qubes.values():
            other.properties = {key: new if value == name else value for key, value in other.properties.items()}
            other.template = new if other.template == name else other.template

    def move(self, name: str, volume: str, pool: str) -> None:
        self._relocate(self.qubes[name].volumes[volume], pool, name)

    def resize(self, name: str, volume: str, size: int) -> None:
        found = self.qubes[name].volumes[volume]
        found.size = size
        self.pools[found.pool].resize(found, size)

    def _relocate(self, volume: FakeVolume, pool: str, name: str) -> None:
        old, before = self.pools[volume.pool], volume.vid
        vid = self.pools[pool].vid(_kind(self.qubes[name].klass), name, volume.name)
        if (pool, vid) == (volume.pool, before):
            return
        volume.pool, volume.vid = pool, vid
        self.pools[pool].take(volume, old, before)

    # -- the wire -----------------------------------------------------------------------------------------------------

    def __enter__(self) -> FakeQubesd:
        self.directory.mkdir(parents=True, exist_ok=True)
        for name in ("qubesd.sock", "qubesd.internal.sock"):
            server = socket.socket(socket.AF_UNIX)
            server.bind(str(self.directory / name))
            server.listen(16)
            self._servers.append(server)
            threading.Thread(target=self._serve, args=(server,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown(socket.SHUT_RDWR)
            server.close()

    @property
    def place(self) -> Path:
        return self.directory / "qubesd.sock"

    @property
    def internal_place(self) -> Path:
        return self.directory / "qubesd.internal.sock"

    def _serve(self, server: socket.socket) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        request = bytearray()
        while piece := connection.recv(65536):
            request += piece
            if len(request) > 65536:
                return
        try:
            head, payload = bytes(request).split(b"\0", 1)
            call, source, kind, dest = head.decode("ascii").split(" ", 3)
            assert (source, kind) == ("dom0", "name")
        except (ValueError, AssertionError):
            return
        method, _, arg = call.partition("+")
        try:
            with self._lock:
                self.calls.append(f"{call} {dest}")
                self.before_call(method, dest)
                answer = b"0\0" + self._execute(method, arg, dest, payload).encode("utf-8")
        except Refusal as refusal:
            if self.release == "4.2" and refusal.type == "ProtocolError":
                return  # this release says nothing to what it does not know
            answer = b"2\0" + refusal.type.encode() + b"\0\0" + str(refusal).encode("utf-8") + b"\0"
        try:
            connection.sendall(answer)
        except OSError:
            return

    def _execute(self, method: str, arg: str, dest: str, payload: bytes) -> str:
        qube = self.qubes.get(dest)
        if qube is None:
            raise Refusal("QubesVMNotFoundError", f"No such domain: {dest!r}")
        words = method.split(".")
        if words[:3] == ["admin", "vm", "Create"]:
            return self._vm_create(words[3], arg, payload.decode("ascii"))
        if words[:3] == ["admin", "vm", "device"]:
            return self._device(qube, words[3], words[4], arg, payload.decode("ascii"))
        handler: Callable[[FakeQube, str, bytes], str] | None = getattr(self, "_" + method.replace(".", "_"), None)
        if handler is None:
            raise Refusal("ProtocolError", "no such method")
        return handler(qube, arg, payload)

    # -- qubes --------------------------------------------------------------------------------------------------------

    def _admin_vm_List(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        rows = sorted(self.qubes.values(), key=lambda one: one.name)
        shown = {one.name: f" uuid={one.uuid}" if self.release == "4.3" else "" for one in rows}
        return "".join(f"{one.name} class={one.klass} state={_shown(one)}{shown[one.name]}\n" for one in rows)

    def _admin_vm_CurrentState(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        return f"mem=0 mem_static_max=0 cputime=0 power_state={_shown(qube)}"

    def _vm_create(self, klass: str, template: str, payload: str) -> str:
        options = dict(word.split("=", 1) for word in payload.split(" "))
        self._create(klass, options["name"], options["label"], template).tags.add("created-by-dom0")
        return ""

    def _create(self, klass: str, name: str, label: str, template: str) -> FakeQube:
        if klass not in VOLUMES or not _NAME.fullmatch(name) or name in ("none", "default") or name.endswith("-dm"):
            raise Refusal("QubesValueError", f"Invalid name or class: {name}")
        if name in self.qubes:
            raise Refusal("QubesVMAlreadyExistsError", f"Qube already exists: {name}")
        if label not in self.labels:
            raise Refusal("QubesLabelNotFoundError", "no such label")
        if klass in ("AppVM", "DispVM"):
            template = template or "tpl"
            if template not in self.qubes:
                raise Refusal("QubesVMNotFoundError", f"No such domain: {template!r}")
            if klass == "DispVM" and self._value(self.qubes[template], "template_for_dispvms") != "True":
                raise Refusal("QubesValueError", "template for DispVM needs to have template_for_dispvms set")
        qube = FakeQube(name, klass, label, template)
        pool = self.pools[self.default_pool]
        for volume, saved in VOLUMES[klass].items():
            vid = pool.vid(_kind(klass), name, volume)
            made = FakeVolume(volume, self.default_pool, vid, self.volume_size, saved)
            qube.volumes[volume] = made
            pool.create(made)
        self.qubes[name] = qube
        return qube

    def _admin_vm_Start(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        self.start(qube.name)
        return ""

    def _admin_vm_Shutdown(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        self.stop(qube.name)
        return ""

    def _admin_vm_Kill(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        if qube.state == "Halted":
            raise Refusal("QubesVMNotStartedError", f"Domain is powered off: {qube.name!r}")
        self.stop(qube.name)
        if qube.properties.get("auto_cleanup") == "True":
            self.remove(qube.name)
        return ""

    def _admin_vm_Remove(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        self.remove(qube.name)
        return ""

    def _admin_vm_Pause(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        qube.state = "Paused"
        return ""

    def _admin_vm_Unpause(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        qube.state = "Running"
        return ""

    # -- properties ---------------------------------------------------------------------------------------------------

    def _value(self, qube: FakeQube, prop: str) -> str:
        special = {"template": qube.template, "name": qube.name, "uuid": qube.uuid, "klass": qube.klass}
        return special.get(prop) or qube.properties.get(prop) or DEFAULTS.get(prop, ("str", ""))[1]

    def _described(self, qube: FakeQube, prop: str) -> str:
        if prop in ("template", "name", "uuid", "klass"):
            return f"default=False type={'vm' if prop == 'template' else 'str'} {self._value(qube, prop)}"
        if prop == "label":
            return f"default=False type=label {qube.label}"
        if prop == "is_preload":
            return f"default=True type=bool {qube.preloaded}"
        default = prop not in qube.properties
        if prop == "auto_cleanup":
            return f"default={default} type=bool {qube.properties.get(prop, False)}"
        value = DEFAULTS[prop][1] if default else qube.properties[prop]
        return f"default={default} type={DEFAULTS[prop][0]} {value}"

    def _names(self, qube: FakeQube) -> list[str]:
        extra = ["name", "uuid", "klass"] + (["template"] if qube.template else [])
        if qube.klass == "DispVM":
            extra += ["auto_cleanup"] + (["is_preload"] if self.release != "4.2" else [])
        return sorted([*DEFAULTS, *extra])

    def _admin_vm_property_GetAll(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        rows = [f"{prop} {_escaped(self._described(qube, prop))}\n" for prop in self._names(qube)]
        return "".join(rows)

    def _admin_vm_property_List(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        return "".join(f"{prop}\n" for prop in self._names(qube))

    def _admin_vm_property_Get(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        if arg not in self._names(qube):
            raise Refusal("QubesNoSuchPropertyError", f"Invalid property {arg!r} of {qube.name}")
        return self._described(qube, arg)

    def _admin_vm_property_Set(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        value = payload.decode("ascii")
        if arg not in self._names(qube):
            raise Refusal("QubesNoSuchPropertyError", f"Invalid property {arg!r} of {qube.name}")
        if arg in READ_ONLY:
            raise Refusal("QubesPropertyAccessError", f"{arg} is read-only")
        self._check(qube, arg, value)
        if arg == "label":
            qube.label = value
        elif arg == "template":
            qube.template = value
        else:
            qube.properties[arg] = value
        return ""

    def _check(self, qube: FakeQube, arg: str, value: str) -> None:
        kind = {"label": "label", "template": "vm", "auto_cleanup": "bool"}.get(arg) or DEFAULTS[arg][0]
        if kind == "vm" and value and value not in self.qubes:
            raise Refusal("QubesVMNotFoundError", f"No such domain: {value!r}")
        if kind == "label" and value not in self.labels:
            raise Refusal("QubesLabelNotFoundError", "no such label")
        if arg == "netvm" and value and self._value(self.qubes[value], "provides_network") != "True":
            raise Refusal("QubesValueError", f"The {value} qube does not provide network")
        if arg == "kernel" and value not in ("6.6", "6.12", ""):
            raise Refusal("QubesPropertyValueError", f"Kernel {value!r} not installed")
        if kind == "int" and not value.isdecimal():
            raise Refusal("QubesValueError", "not a number")
        if kind == "bool" and value not in ("True", "False"):
            raise Refusal("QubesValueError", "not a bool")

    def _admin_vm_property_Reset(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        qube.properties.pop(arg, None)
        return ""

    def _admin_property_Get(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        if arg not in self.globals:
            raise Refusal("QubesNoSuchPropertyError", f"Invalid property {arg!r}")
        kind, value = self.globals[arg]
        return f"default=False type={kind} {value}"

    def _admin_property_GetAll(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        return "".join(f"{name} default=False type={kind} {value}\n" for name, (kind, value) in self.globals.items())

    # -- tags, features, firewall, notes, labels, devices -------------------------------------------------------------

    def _admin_vm_tag_List(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        return "".join(f"{tag}\n" for tag in sorted(qube.tags))

    def _admin_vm_tag_Get(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        return "1" if arg in qube.tags else "0"

    def _admin_vm_tag_Set(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        if arg.startswith("created-by-") and arg.removeprefix("created-by-") not in self.qubes:
            raise Refusal("ProtocolError", "internal error")
        qube.tags.add(arg)
        return ""

    def _admin_vm_tag_Remove(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        if arg not in qube.tags:
            raise Refusal("QubesTagNotFoundError", f"Tag not set for domain {qube.name}: {arg}")
        qube.tags.remove(arg)
        return ""

    def _admin_vm_feature_List(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        return "".join(f"{name}\n" for name in qube.features)

    def _admin_vm_feature_Get(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        if arg not in qube.features:
            raise Refusal("QubesFeatureNotFoundError", f"Feature not set for domain {qube.name}: {arg}")
        return qube.features[arg]

    def _admin_vm_feature_Set(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        try:
            qube.features[arg] = payload.decode("ascii")
        except UnicodeDecodeError:
            raise Refusal("ProtocolError", "Feature value contains non-ASCII characters") from None
        return ""

    def _admin_vm_feature_Remove(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        qube.features.pop(arg, None)
        return ""

    def _admin_vm_firewall_Get(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        return qube.firewall

    def _admin_vm_firewall_Set(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        if not payload:
            raise Refusal("ProtocolError", "expected payload")
        qube.firewall = payload.decode("ascii")
        return ""

    def _admin_vm_notes_Get(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        if self.release == "4.2":
            raise Refusal("ProtocolError", "no such method")
        return qube.notes

    def _admin_vm_notes_Set(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        qube.notes = payload.decode("utf-8")
        return ""

    def _admin_label_List(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        return "".join(f"{name}\n" for name in self.labels)

    def _admin_label_Get(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        return self.labels[arg]

    def _admin_label_Create(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        if not re.fullmatch(rb"0x[0-9a-f]{6}", payload):
            raise Refusal("ProtocolError", "not a colour")
        self.labels[arg] = payload.decode("ascii")
        return ""

    def _admin_deviceclass_List(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        return "block\npci\n"

    def _device(self, qube: FakeQube, class_: str, call: str, arg: str, payload: str) -> str:
        if call == "Assigned" and self.release == "4.3":
            rows = qube.devices.get(class_, {})
            return "".join(f"{device} {options}\n" for device, options in sorted(rows.items()))
        if call == "Assign" and self.release == "4.3":
            qube.devices.setdefault(class_, {})[arg] = payload
            return ""
        if call == "List" and self.release == "4.2":
            return ""
        raise Refusal("ProtocolError", "no such method")

    # -- volumes and pools --------------------------------------------------------------------------------------------

    def _volume(self, qube: FakeQube, arg: str) -> FakeVolume:
        if arg not in qube.volumes:
            raise Refusal("PermissionDenied", f"Argument not in '{qube.name} volumes'")
        return qube.volumes[arg]

    def _admin_vm_volume_List(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        return "".join(f"{name}\n" for name in qube.volumes)

    def _admin_vm_volume_Info(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        one = self._volume(qube, arg)
        facts = {
            "pool": one.pool, "vid": one.vid, "size": one.size, "usage": 0, "rw": one.rw, "source": "",
            "path": self.pools[one.pool].path(one.vid), "save_on_stop": one.save_on_stop,
            "snap_on_start": not one.save_on_stop and one.name != "volatile",
            "revisions_to_keep": one.revisions_to_keep, "ephemeral": False,
        }  # fmt: skip
        return "".join(f"{name}={value}\n" for name, value in facts.items())

    def _set_volume(self, qube: FakeQube, arg: str, name: str, value: object) -> str:
        setattr(self._volume(qube, arg), name, value)
        return ""

    def _admin_vm_volume_Set_revisions_to_keep(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        return self._set_volume(qube, arg, "revisions_to_keep", int(payload))

    def _admin_vm_volume_Set_rw(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        return self._set_volume(qube, arg, "rw", payload == b"True")

    def _admin_pool_List(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        return "".join(f"{name}\n" for name in self.pools)

    def _admin_pool_Info(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        pool = self.pools[arg]
        rows = {**pool.config(), "driver": pool.driver, "name": arg, "revisions_to_keep": "1"}
        rows |= {"size": str(self.pool_size), "usage": "0"}
        return "".join(f"{name}={value}\n" for name, value in rows.items())

    def _internal_vm_volume_ImportBegin(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        volume = self._volume(qube, arg)
        if qube.state != "Halted":
            raise Refusal("QubesVMNotHaltedError", f"Domain is not powered off: {qube.name!r}")
        if arg in qube.importing:
            raise Refusal("StoragePoolException", "Import operation in progress")
        size = int(payload) if payload else volume.size
        path = self.pools[volume.pool].import_begin(volume, size)
        qube.importing.add(arg)
        return f"{size} {path}"

    def _internal_vm_volume_ImportEnd(self, qube: FakeQube, arg: str, payload: bytes) -> str:
        volume = self._volume(qube, arg)
        qube.importing.discard(arg)
        self.pools[volume.pool].import_end(volume, success=payload == b"ok")
        if payload != b"ok":
            raise Refusal("QubesException", f"Data import failed: {payload.decode('ascii').partition(chr(10))[2]}")
        return ""


def _kind(klass: str) -> str:
    return "vm-templates" if klass == "TemplateVM" else "appvms"


def _shown(qube: FakeQube) -> str:
    return "Running" if qube.klass == "AdminVM" else qube.state


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")
