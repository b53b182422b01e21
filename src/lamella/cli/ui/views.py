"""The pages: markup out of what was seen. Nothing is asked or done here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from lamella.cli.local_time import shown_time
from lamella.cli.pages.markup import EMPTY, Html, address, html
from lamella.cli.pages.report import ICONS, mark
from lamella.cli.shown import shown_bytes, shown_seconds
from lamella.cli.ui.children import ChildRun, Job
from lamella.cli.ui.looking import Look

Row = dict[str, Any]
_STATES = {"works": "warn", "done": "ok", "failed": "bad"}
_NAVIGATION = (("Status", ()), ("Volumes", ("volumes",)), ("Profiles", ("profiles",)), ("Jobs", ("jobs",)))
_BYTES = frozenset(("size", "data_bytes", "chunk_size", "read_bytes", "stored_bytes", "sampled_bytes"))
_TIMES = frozenset(("time", "claimed_time"))


class Forms:
    """Makes forms, each with the seal of this session."""

    def __init__(self, seal: str) -> None:
        self._seal = seal

    def form(self, to: Sequence[str | int], button: str, content: Html = EMPTY, name: str = "") -> Html:
        """A form with a button that sends it."""
        return html(
            '<form method="post" action="{}" class="{}"><input type="hidden" name="seal" value="{}">{}'
            '<button type="submit">{}</button></form>',
            address(*to),
            name,
            self._seal,
            content,
            button,
        )


def hidden(fields: Mapping[str, str]) -> Html:
    """Fields that are sent along."""
    pairs = ((name, quote(value, safe="", errors="surrogateescape")) for name, value in fields.items())
    return html("{}", (html('<input type="hidden" name="exact-{}" value="{}">', *one) for one in pairs))


def link(to: Sequence[str | int], text: str) -> Html:
    """A link to a page of this server."""
    return html('<a href="{}">{}</a>', address(*to), text)


def page(title: str, trail: Sequence[Html], body: Html, more: Html = EMPTY) -> bytes:
    """A whole page."""
    bar = (html('<a href="{}">{}</a>', address(*to), name) for name, to in _NAVIGATION)
    steps = html('<p class="trail">{}</p>', (html("{} <span>/</span> ", one) for one in trail)) if trail else EMPTY
    head = html("{}<h1><span>{}</span></h1>", steps, title) if title else EMPTY
    made = html(
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<title>{}</title>\n'
        '<link rel="stylesheet" href="/style.css">\n<script src="/page.js" defer></script>{}\n</head>\n<body>\n'
        "<nav><strong>Lamella</strong>{}</nav>\n{}<main>{}{}</main>\n</body>\n</html>\n",
        f"{title or 'Status'} - Lamella",
        more,
        bar,
        ICONS,
        head,
        body,
    )
    return made.text.encode()


def table(heads: Sequence[str], rows: Iterable[Sequence[Html | str]], numbers: Sequence[str] = ()) -> Html:
    """Rows below heads."""
    marks = ["number" if head in numbers else "name" if place == 0 else "" for place, head in enumerate(heads)]
    body = [
        html(
            "<tr>{}</tr>",
            (
                html('<td data-head="{}" class="{}"><span>{}</span></td>', head, kind, cell)
                for head, kind, cell in zip(heads, marks, row, strict=True)
            ),
        )
        for row in rows
    ]
    if not body:
        return html('<p class="empty">There is nothing here yet.</p>')
    head = (html('<th scope="col" class="{}">{}</th>', kind, name) for name, kind in zip(heads, marks, strict=True))
    return html("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>", head, body)


def volumes(look: Look) -> Html:
    """Every volume of every repository."""
    numbers = {name: number for number, name in enumerate(look.names)}
    rows = [
        (
            html("{}{}", mark(row["state"]), link(("r", numbers[row["repository"]], row["volume"]), row["volume"])),
            row["repository"],
            shown_time(row["newest_time"]) if row["newest"] else "none",
            shown_bytes(row["size"]),
            f"{row['snapshots']:,}",
            "; ".join(row["reasons"]) or "in order",
        )
        for row in look.overview.volumes
        if row["repository"] in numbers
    ]
    return table(("Volume", "Repository", "Newest", "Size", "Snapshots", "State"), rows, ("Size", "Snapshots"))


def snapshots(number: int, volume: Row) -> Html:
    """The snapshots of a volume, the newest first."""
    rows = [
        (
            link(("r", number, volume["volume"], one["snapshot"]), shown_time(one["time"])),
            one["snapshot"],
            shown_bytes(one["stored_bytes"]),
            one["consistency"],
            ", ".join(f"^{tag}" for tag in one["tags"]),
            html("{} {}", mark("ok" if one["good"] else "bad"), "whole" if one["good"] else "not whole"),
        )
        for one in reversed(volume["history"])
    ]
    return table(("Time", "Snapshot", "Added", "Consistent", "Tags", "State"), rows, ("Added",))


def facts(found: Row) -> Html:
    """What `lamella info` says about a snapshot."""
    left_out = ("schema", "command", "documents", "problems")
    items = [
        html("<div><dt>{}</dt><dd>{}</dd></div>", name.replace("_", " "), text)
        for name, value in found.items()
        if name not in left_out and (text := _shown(name, value))
    ]
    return html('<dl class="facts">{}</dl>', items)


def _shown(name: str, value: object) -> str:
    if name in _BYTES and isinstance(value, int):
        return shown_bytes(value)
    if name in _TIMES and value:
        return shown_time(str(value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(str(one) for one in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {one}" for key, one in value.items())
    return "" if value is None else str(value)


def documents(found: Row) -> Html:
    """The documents of a snapshot."""
    rows = [(str(one.get("name", "")), shown_bytes(one.get("size", 0))) for one in found.get("documents", ())]
    return table(("Document", "Size"), rows, ("Size",)) if rows else EMPTY


def failure(run: ChildRun) -> Html:
    """Why an answer is none."""
    return html('<p class="failure">{}<span>{}</span></p>', mark("bad"), run.error)


def restore_fields(number: int, proposed: str) -> Html:
    """Where to."""
    return html(
        '<label>Write it to<input type="text" name="to" required value="{}" spellcheck="false"></label>'
        '<p class="note">A path from the top of this machine, a block device, lvm:VG/LV or rbd:POOL/IMAGE.</p>'
        '<label class="choice"><input type="checkbox" name="overwrite" value="yes">Replace what is there</label>',
        proposed,
    )


def passphrase_field() -> Html:
    """Asks once more for the passphrase."""
    return html(
        '<label>Passphrase of the repository<input type="password" name="passphrase" required autocomplete="off">'
        "</label>"
    )


def plan(run: ChildRun, begin: Html) -> Html:
    """What a restore would do, and the button that does it."""
    lines = (html("<li>{}</li>", line) for line in [*run.lines, *run.messages])
    return html('<ul class="plan">{}</ul>{}', lines, begin)


def jobs(found: Iterable[Job], now: float) -> Html:
    """All jobs, the newest first."""
    rows = [
        (
            html("{}{}", mark(_STATES[job.state]), link(("jobs", job.number), job.title)),
            job.state,
            shown_seconds((job.ended or now) - job.began),
            job.run.error,
        )
        for job in found
    ]
    return table(("Job", "State", "Time", "Result"), rows, ("Time",))


def job(found: Job, now: float, stop: Html) -> Html:
    """One job: the script renews what has a name."""
    facts = job_facts(found, now)
    working = found.state == "works"
    return html(
        '<div class="job" data-job="{}"><p><strong id="state">{}</strong> <span id="seconds" class="note">{}</span></p>'
        '<progress id="share" max="1000" value="{}"></progress><p id="amount" class="note">{}</p>'
        '<p id="error" class="failure">{}</p><pre id="said">{}</pre></div>{}{}',
        str(found.number) if working else "",
        facts["state"],
        facts["seconds"],
        facts["share"],
        facts["amount"],
        facts["error"],
        (html("{}\n", line) for line in facts["said"].split("\n")),
        stop if working else EMPTY,
        html('<p class="row">{}</p>', link(found.result, "Show the result"))
        if found.result and found.state == "done"
        else EMPTY,
    )


def job_facts(found: Job, now: float) -> dict[str, str]:
    """What a page says of a job, as text."""
    progress, share = found.run.progress, found.share
    amount = ""
    if share is not None:
        done, total = shown_bytes(progress["done_bytes"]), shown_bytes(progress["total_bytes"])
        amount = f"{progress.get('stage', '')} {progress.get('volume', '')}: {done} of {total}"
    whole = 1000 if found.state == "done" else 0
    return {
        "state": found.state,
        "seconds": shown_seconds((found.ended or now) - found.began),
        "share": str(whole if share is None or whole else round(1000 * share)),
        "amount": amount,
        "error": found.run.error,
        "said": "\n".join([*found.run.messages, *([] if found.run.document else found.run.lines[:_LINES])]),
    }


_LINES = 200


def files(answer: Row, path: str, up: Html, read: Mapping[str, Html]) -> Html:
    """The entries of the directory `path`, directories first: `read` has the button of each."""
    entries = [one for one in answer.get("entries", ()) if one["path"].strip("/.") != path.strip("/.")]
    rows = [
        (
            read.get(one["path"], html("{}", one["path"].rpartition("/")[2])),
            one["mode"],
            "" if one["mode"].startswith("d") else shown_bytes(one["size"]),
            one["time"][:16].replace("T", " "),
        )
        for one in sorted(entries, key=lambda one: (not one["mode"].startswith("d"), one["path"]))
    ]
    words = f"{answer.get('file_system', '')} on {answer.get('partition', '')}, {answer.get('journal', '')}"
    heads = ("Name", "Mode", "Size", "Time (UTC)")
    return html('<p class="note">{}</p><p>{}</p>{}', words, up, table(heads, rows, ("Size",)))
