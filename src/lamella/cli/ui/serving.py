"""Starting and ending the server: the secret, the first look, the socket, the address."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from lamella.base.clock import now_ms
from lamella.base.errors import KeyRefused, UsageError
from lamella.cli.context import Context
from lamella.cli.destination import OtherContext
from lamella.cli.everyday.standing import named_repositories
from lamella.cli.pages.markup import Html
from lamella.cli.secret import FIRST, given_source
from lamella.cli.terminal import ask_secret, has_terminal
from lamella.cli.ui.admission import PageAdmission
from lamella.cli.ui.children import QUESTION_SECONDS
from lamella.cli.ui.looking import Looking, Opening
from lamella.cli.ui.server import PageServer
from lamella.cli.ui.site import Site
from lamella.operations.access.listening import at_address, at_path

_TRIES = 3
_TYPED = ("LAMELLA_PASSPHRASE", "LAMELLA_PASSPHRASE_FD")


def _repositories(context: Context, has_fleet: bool) -> list[str]:
    """The repositories to show; a machine that looks after a fleet may have none of its own. Raises UsageError."""
    try:
        return named_repositories(context)
    except UsageError:
        if has_fleet:
            return []
        raise


def _fleet(context: Context) -> Callable[[], Html] | None:
    """What the catalogue says of the fleet, if this machine looks after one; opens no repository."""
    from lamella.cli.fleet.hosts import all_hosts

    if not all_hosts(context.env):
        return None
    from lamella.cli.fleet.catalogue import FleetCatalogue, catalogue_path
    from lamella.cli.fleet.health import host_rows
    from lamella.cli.fleet.page import fleet_body

    def body() -> Html:
        now = now_ms()
        with FleetCatalogue.open(catalogue_path(context.host.cache_dir)) as catalogue:
            return fleet_body(host_rows(all_hosts(context.env), catalogue, now), catalogue.days(0), now)

    return body


def serve(context: Context) -> int:
    """Serve the page until a signal comes. Raises UsageError, LamellaError, KeyRefused."""
    args, out = context.args, context.out
    with _listening(args.listen, args.socket) as (listener, _):
        fleet = _fleet(context)
        looking = Looking([_opening(context, name) for name in _repositories(context, fleet is not None)])
        looking.again()
        port = 0 if args.socket else listener.getsockname()[1]
        host = f"127.0.0.1:{port}"
        names = () if args.socket else _hosts(listener)
        admission = PageAdmission(names, f"lamella-{port}")
        site = Site(looking, socket.gethostname(), admission.form_seal, args.kernel, fleet)
        server = PageServer(listener, admission, site.respond)
        if args.socket:
            out.say(f"listening at {args.socket}; make a tunnel to it, for example: ssh -L 8080:{args.socket} HOST")
            host = "localhost:8080"
        url = f"http://{host if args.socket else names[0]}/?token={admission.token}"
        out.answer(url)
        out.document({"url": url})
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            pass
        finally:
            if working := site.jobs.end():
                out.say(f"asked {working} jobs to end; what they committed is safe")
    return 0


def _listening(address: str, path: Path | None) -> AbstractContextManager[tuple[socket.socket, str]]:
    if path is not None:
        return at_path(path)
    try:
        return at_address(address)
    except UsageError as error:
        error.hint = "use 127.0.0.1:PORT, or a tunnel to --socket PATH"
        raise


def _hosts(listener: socket.socket) -> tuple[str, ...]:
    """How a browser may call this server; the first is what is printed."""
    name, port = listener.getsockname()[:2]
    shown = f"[{name}]" if ":" in name else name
    return (f"{shown}:{port}", f"localhost:{port}")


def _opening(context: Context, name: str) -> Opening:
    """How children open a repository: as this command would, with the passphrase only where they cannot find it."""
    other = OtherContext(context, name, FIRST)
    given = given_source(context.args, context.env, other.settings, FIRST)
    options = [f"--{word}={value}" for word, value in _options(context).items() if value]
    opening = Opening(name, tuple(options))
    if given is not None:
        return Opening(name, opening.options, _text(other)) if given.label in _TYPED else opening
    if not has_terminal():
        return opening  # the look says what is missing, or finds a kept key
    return _asked(context, opening)


def _options(context: Context) -> dict[str, str | None]:
    args = context.args
    return {"keyfile": args.keyfile, "recovery-key-file": args.recovery_key_file, "ssh-command": args.ssh_command}


def _text(context: Context) -> str:
    return context.secret().value.decode("utf-8", "surrogateescape")


def _asked(context: Context, opening: Opening) -> Opening:
    """The opening with what the user types, unless a key is kept. Raises KeyRefused, UsageError."""
    for attempt in range(_TRIES + 1):
        run = Looking([opening]).child(opening, ["list", "--json"])
        run.pump(QUESTION_SECONDS)
        if run.code not in (UsageError.exit_code, KeyRefused.exit_code):
            return opening
        if attempt:
            context.out.warn(run.error)
        if attempt < _TRIES:
            opening = Opening(opening.name, opening.options, ask_secret(f"Passphrase of {opening.name}: "))
    raise KeyRefused("no passphrase opens the repository", obj=opening.name)
