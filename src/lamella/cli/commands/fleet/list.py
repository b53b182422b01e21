"""`lamella fleet list`: the hosts of the fleet, and their volumes."""

from __future__ import annotations

import argparse
from typing import Any

from lamella.base.clock import iso
from lamella.cli.amounts import shown_age
from lamella.cli.context import Context
from lamella.cli.fleet.catalogue import FleetCatalogue, catalogue_path
from lamella.cli.fleet.hosts import FleetHost, chosen
from lamella.cli.local_time import shown_time
from lamella.cli.shown import shown_bytes

Row = dict[str, Any]
_MOMENTS = ("newest_ms", "verified_ms", "drilled_ms")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The action's own arguments."""
    parser.add_argument("host", nargs="*", default=[], metavar="HOST", help="the volumes of these hosts")


def run(context: Context) -> int:
    """Show them; opens no repository."""
    hosts = chosen(context.env, context.args.host)
    if context.args.host:
        return _volumes(context, hosts)
    table = [
        (host.name, host.settings.url, "yes" if host.has_key else "no", _quota(host), host.mirror or "", host.problem)
        for host in hosts
    ]
    context.out.table([("HOST", "REPOSITORY", "KEY", "QUOTA", "MIRROR", ""), *table])
    context.out.document({"hosts": [_row(host) for host in hosts]})
    return 0


def _quota(host: FleetHost) -> str:
    return "" if host.quota_bytes is None else shown_bytes(host.quota_bytes)


def _row(host: FleetHost) -> Row:
    return {
        "host": host.name,
        "repository": host.settings.url,
        "keys": host.has_key,
        "quota_bytes": host.quota_bytes,
        "stale_after": shown_age(host.stale_ms // 1000),
        "mirror": host.mirror,
        "file": str(host.path),
        "problem": host.problem,
    }


def _volumes(context: Context, hosts: list[FleetHost]) -> int:
    with FleetCatalogue.open(catalogue_path(context.host.cache_dir)) as catalogue:
        known, volumes = catalogue.hosts(), catalogue.volumes()
    rows = [
        {"host": host.name, **_shown(volume)}
        for host in hosts
        if host.name in known
        for volume in volumes[known[host.name].id]
    ]
    for host in hosts:
        if host.name not in known or not known[host.name].seen_ms:
            context.out.warn(f"{host.name} was never looked at: lamella fleet refresh {host.name}")
    table = [
        (row["host"], row["name"], shown_time(row["newest"]) if row["newest"] else "none", str(row["snapshots"]),
         shown_bytes(row["size"]), row["consistency"], row["trouble"])
        for row in rows
    ]  # fmt: skip
    context.out.table([("HOST", "VOLUME", "NEWEST", "SNAPSHOTS", "SIZE", "CONSISTENT", ""), *table])
    context.out.document({"volumes": rows})
    return 0


def _shown(volume: Row) -> Row:
    """A volume with its moments as everywhere in JSON."""
    moments = {key.removesuffix("_ms"): iso(volume[key]) if volume[key] else "" for key in _MOMENTS}
    return {key: value for key, value in volume.items() if key not in _MOMENTS} | moments
