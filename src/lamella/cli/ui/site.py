"""What each address does. Reading ones show what is known; everything else is a form that starts another run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lamella.cli.local_time import shown_time
from lamella.cli.pages.markup import EMPTY, Html, address, html, resource
from lamella.cli.pages.report import mark, report_body
from lamella.cli.shown import shown
from lamella.cli.ui import views
from lamella.cli.ui.children import ChildRun, Job, Jobs
from lamella.cli.ui.looking import Look, Looking, Opening, program
from lamella.cli.ui.server import NotServed, PageAnswer, PageRequest
from lamella.cli.ui.views import Forms, link

Row = dict[str, Any]
_TARGETS = ("/", "lvm:", "rbd:")
_LONGEST = 4096
_WHOLE = "-"
"""In an address, no partition in particular."""


class SeenPlace(NamedTuple):
    """A snapshot, or a volume without one, that is known and was named by an address."""

    number: int
    opening: Opening
    volume: Row
    snapshot: str = ""

    @property
    def parts(self) -> tuple[str | int, ...]:
        """Its address."""
        return ("r", self.number, self.volume["volume"], *([self.snapshot] if self.snapshot else []))

    @property
    def selector(self) -> str:
        """As a command names it."""
        return f"{self.volume['volume']}@{self.snapshot}"


class Site:
    """The pages of one server."""

    def __init__(
        self,
        looking: Looking,
        host: str,
        seal: str,
        kernel: Path | None = None,
        fleet: Callable[[], Html] | None = None,
    ) -> None:
        """`host` is the name of this machine, `kernel` that of the guest which reads files; `fleet` draws the fleet."""
        self._fleet = fleet
        self._kernel = [] if kernel is None else [f"--kernel={kernel}"]
        self.looking = looking
        self.jobs = Jobs(self._ended)
        self._host = host
        self._forms = Forms(seal)
        self._drawn: tuple[Look, bytes] | None = None

    def respond(self, request: PageRequest) -> PageAnswer:
        """Answer a request that was admitted. Raises NotServed."""
        parts = request.parts
        match parts:
            case ("style.css",):
                sheet = resource("report.css") + resource("ui.css")
                return PageAnswer(200, sheet.encode(), "text/css; charset=utf-8")
            case ("page.js",):
                return PageAnswer(200, resource("page.js").encode(), "text/javascript; charset=utf-8")
            case ("r", number, volume, *rest):
                return self._of_repository(request, self._place(number, volume, rest[:1]), rest[1:])
            case ("jobs", *rest):
                return self._of_jobs(request, rest)
            case _:
                return self._posted(request) if request.posted else self._page(parts)

    def _ended(self, job: Job) -> None:
        """What a job changed is looked at again; one that only reads leaves its answer."""
        if job.result and job.run.code == 0:
            self.looking.keep(_key(job.result), job.run)
        elif not job.result:
            self.looking.forget()

    # -- reading ------------------------------------------------------------------------------------------------------

    def _page(self, parts: tuple[str, ...]) -> PageAnswer:
        look = self.looking.look()
        match parts:
            case ():
                return PageAnswer(200, self._status(look))
            case ("volumes",):
                return _answer("Volumes", [], views.volumes(look))
            case ("fleet",) if self._fleet is not None:
                return _answer("Fleet", [], self._fleet())
            case ("profiles",):
                return _answer("Profiles", [], self._profiles(look.overview.profiles))
        raise NotServed(404, "there is no such page")

    def _status(self, look: Look) -> bytes:
        """The report, drawn once for each look: a year of many volumes takes a moment."""
        drawn = self._drawn
        if drawn is None or drawn[0] is not look:
            again = self._forms.form(("look",), "Look again", name="row")
            fleet = EMPTY if self._fleet is None else html("<p>{}</p>", link(("fleet",), "The fleet"))
            body = html("{}{}{}", report_body(look.overview, self._host), fleet, again)
            drawn = self._drawn = (look, views.page("", [], body))
        return drawn[1]

    def _profiles(self, rows: list[Row]) -> Html:
        cells = [
            (
                html("{}{}", mark(row["state"]), row["profile"]),
                shown_time(row["last"]) if row["last"] else "never",
                shown_time(row["next"]) if row["next"] else "",
                "; ".join(row["reasons"]) or "in order",
                self._forms.form(("profiles", row["profile"], "run"), "Run now", name="plain"),
            )
            for row in rows
        ]
        return views.table(("Profile", "Last run", "Next run", "State", ""), cells)

    def _place(self, number: str, volume: str, snapshot: list[str]) -> SeenPlace:
        """Only what was seen is found: no text of an address gets further. Raises NotServed."""
        openings = self.looking.openings
        if not number.isdecimal() or len(number) > 4 or int(number) >= len(openings):
            raise NotServed(404, "there is no such repository")
        opening = openings[int(number)]
        for row in self.looking.look().overview.volumes:
            if row["volume"] == volume and row["repository"] == opening.name:
                known = {one["snapshot"] for one in row["history"]}
                if snapshot and snapshot[0] not in known:
                    raise NotServed(404, "there is no such snapshot")
                return SeenPlace(int(number), opening, row, *snapshot)
        raise NotServed(404, "there is no such volume")

    def _of_repository(self, request: PageRequest, place: SeenPlace, rest: list[str]) -> PageAnswer:
        if not place.snapshot and not request.posted:
            return self._volume(place)
        match rest:
            case [] if not request.posted:
                return self._snapshot(place)
            case ["restore"] if not request.posted:
                return self._ask_target(place)
            case ["plan"] if request.posted:
                return self._plan(place, request.fields)
            case ["restore"] if request.posted:
                return self._restore(place, request.fields)
            case ["files", partition, path] if not request.posted:
                return self._files(place, partition, path)
            case ["files"] if request.posted:
                return self._read(place, request.fields)
        raise NotServed(404, "there is no such page")

    def _volume(self, place: SeenPlace) -> PageAnswer:
        words = "; ".join(place.volume["reasons"]) or "in order"
        state = html('<p class="state">{}<span>{}</span></p>', mark(place.volume["state"]), words)
        body = html("{}{}", state, views.snapshots(place.number, place.volume))
        return _answer(place.volume["volume"], [_volumes()], body)

    def _snapshot(self, place: SeenPlace) -> PageAnswer:
        run = self.looking.ask(place.opening, "info", place.selector, "--json")
        if run.code or not run.document:
            return _answer(place.selector, self._trail(place)[:-1], views.failure(run), status=502)
        first = views.hidden({"path": "/", "partition": ""})
        body = html(
            '{}<div class="row"><a class="button" href="{}">Restore it</a>{}</div>{}<h2>Proofs on this host</h2>{}',
            views.facts(run.document),
            address(*place.parts, "restore"),
            self._forms.form((*place.parts, "files"), "Look into its files", first, name="second"),
            views.documents(run.document),
            views.facts({name: place.volume[name] or "never" for name in ("verified", "drilled")}),
        )
        return _answer(place.snapshot, self._trail(place)[:-1], body)

    def _trail(self, place: SeenPlace) -> list[Html]:
        name = place.volume["volume"]
        return [_volumes(), link(place.parts[:3], name), link(place.parts, place.snapshot)]

    # -- restoring ----------------------------------------------------------------------------------------------------

    def _ask_target(self, place: SeenPlace) -> PageAnswer:
        fields = views.restore_fields(place.number, "")
        form = self._forms.form((*place.parts, "plan"), "Show what would be done", fields, name="panel")
        return _answer("Restore", self._trail(place), form)

    def _plan(self, place: SeenPlace, fields: Mapping[str, str]) -> PageAnswer:
        words = _restore_words(place, fields)
        run = self.looking.child(place.opening, [*words, "--dry-run"])
        run.pump(_PLAN_SECONDS)
        if run.code:
            retry = self._forms.form(
                (*place.parts, "plan"), "Show what would be done",
                views.restore_fields(place.number, fields.get("to", "")), name="panel",
            )  # fmt: skip
            return _answer("Restore", self._trail(place), html("{}{}", views.failure(run), retry))
        again = views.hidden({name: fields.get(name, "") for name in ("to", "overwrite")})
        asked = views.passphrase_field() if place.opening.passphrase is not None else EMPTY
        begin = self._forms.form((*place.parts, "restore"), "Restore", html("{}{}", again, asked), name="panel")
        return _answer("What would be done", self._trail(place), views.plan(run, begin))

    def _restore(self, place: SeenPlace, fields: Mapping[str, str]) -> PageAnswer:
        """The passphrase goes to the restore alone, which tries it; a wrong one opens nothing."""
        words, passphrase = _restore_words(place, fields), None
        if place.opening.passphrase is not None:
            passphrase = fields.get("passphrase", "")
            if not passphrase:
                raise NotServed(403, "a restore needs the passphrase")
        run = self.looking.child(place.opening, [*words, "--yes"], passphrase)
        return _go(self.jobs.start(f"restore {place.selector} to {shown(fields['to'])}", run))

    # -- files --------------------------------------------------------------------------------------------------------

    def _read(self, place: SeenPlace, fields: Mapping[str, str]) -> PageAnswer:
        path, partition = fields.get("path", "/"), fields.get("partition", "")
        if not path.startswith("/") or max(len(path), len(partition)) > _LONGEST or "\0" in path + partition:
            raise NotServed(400, "not a path from the top")
        result = (*place.parts, "files", partition or _WHOLE, path)
        if self.looking.kept(*_key(result)) is not None:
            return PageAnswer(303, headers={"Location": address(*result)})
        words = ["files", "list", place.selector, path, f"--partition={partition}", "--json", *self._kernel]
        run = self.looking.child(place.opening, words)
        return _go(self.jobs.start(f"files of {place.selector}: {shown(path)}", run, result))

    def _files(self, place: SeenPlace, partition: str, path: str) -> PageAnswer:
        run = self.looking.kept(*_key((*place.parts, "files", partition, path)))
        chosen = "" if partition == _WHOLE else partition

        def button(where: str, text: str) -> Html:
            fields = views.hidden({"path": where, "partition": chosen})
            return self._forms.form((*place.parts, "files"), text, fields, name="plain")

        if run is None:
            return _answer(shown(path), self._trail(place), button(path, "Read this directory"))
        found = run.document
        read = {
            one["path"]: button("/" + one["path"].strip("/"), one["path"].rpartition("/")[2])
            for one in found.get("entries", ())
            if one["mode"].startswith("d")
        }
        above = path.rstrip("/").rpartition("/")[0] or "/"
        up = button(above, "the directory above") if path.strip("/") else EMPTY
        return _answer(shown(path), self._trail(place), views.files(found, path, up, read))

    # -- jobs ---------------------------------------------------------------------------------------------------------

    def _posted(self, request: PageRequest) -> PageAnswer:
        match request.parts:
            case ("look",):
                self.looking.again()
                return PageAnswer(303, headers={"Location": "/"})
            case ("profiles", name, "run"):
                return self._run(name)
        raise NotServed(404, "there is no such page")

    def _run(self, name: str) -> PageAnswer:
        if name not in {row["profile"] for row in self.looking.look().overview.profiles}:
            raise NotServed(404, "there is no such profile")
        secret = next((one.passphrase for one in self.looking.openings if one.passphrase is not None), None)
        by = [] if secret is None else ["env", "LAMELLA_PASSPHRASE_FD=0"]
        run = ChildRun([*by, *program(), "run", name, "--now", "--json-lines"], secret)
        return _go(self.jobs.start(f"run {name}", run))

    def _of_jobs(self, request: PageRequest, rest: list[str]) -> PageAnswer:
        if not rest and not request.posted:
            return _answer("Jobs", [], views.jobs(self.jobs.all(), time.monotonic()))
        number = int(rest[0]) if rest and rest[0].isdecimal() and len(rest[0]) < 9 else 0
        job = self.jobs.of(number)
        if job is None:
            raise NotServed(404, "there is no such job")
        match rest[1:]:
            case [] if not request.posted:
                stop = self._forms.form(("jobs", number, "stop"), "Stop it", name="stop")
                return _answer(job.title, [link(("jobs",), "Jobs")], views.job(job, time.monotonic(), stop))
            case ["now"] if not request.posted:
                found = json.dumps(views.job_facts(job, time.monotonic()))
                return PageAnswer(200, found.encode(), "application/json")
            case ["stop"] if request.posted:
                job.run.stop()
                return _go(job)
        raise NotServed(404, "there is no such page")


_PLAN_SECONDS = 60.0


def _restore_words(place: SeenPlace, fields: Mapping[str, str]) -> list[str]:
    """The words of the command. Raises NotServed for a target that depends on where this server runs."""
    to = fields.get("to", "")
    if not to.startswith(_TARGETS) or len(to) > _LONGEST or "\0" in to:
        raise NotServed(400, "the target must be a path from the top of this machine, lvm:VG/LV or rbd:POOL/IMAGE")
    return ["restore", place.selector, f"--to={to}", *(["--overwrite"] if fields.get("overwrite") == "yes" else [])]


def _key(parts: tuple[str | int, ...]) -> tuple[str, ...]:
    return tuple(str(part) for part in parts)


def _volumes() -> Html:
    return link(("volumes",), "Volumes")


def _answer(title: str, trail: list[Html], body: Html, *, status: int = 200) -> PageAnswer:
    return PageAnswer(status, views.page(title, trail, body))


def _go(job: Job) -> PageAnswer:
    return PageAnswer(303, headers={"Location": address("jobs", job.number)})
