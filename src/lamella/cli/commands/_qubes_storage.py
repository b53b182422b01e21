"""`lamella qubes setup-storage`: what a qube needs to store backups."""

from __future__ import annotations

from dataclasses import asdict

from lamella.cli.context import Context
from lamella.qubes.admin import Admin
from lamella.qubes.inventory import Inventory
from lamella.qubes.storage_qube import check_storage, example_policy, install, storage_files


def setup_storage(context: Context, admin: Admin) -> int:
    """Show, or install, what the qube needs."""
    args, out = context.args, context.out
    qube = check_storage(admin, Inventory(admin), args.storage_qube, out.report)
    options = [*(["--append-only"] if args.append_only else []), *([f"--quota={args.quota}"] if args.quota else [])]
    files = storage_files(args.name, args.place, options)
    if args.install and not args.dry_run:
        context.confirm(f"Will write in {qube.name}, as root: {', '.join(file.path for file in files)}.")
        install(qube, files)
    for file in files:
        out.line(f"in {qube.name}: {file.path} (mode {file.mode})" + (", installed" if args.install else ""))
        if not args.install:
            out.line("".join(f"    {line}\n" for line in file.content.splitlines()))
    if not args.install:
        out.line("in dom0, only if other qubes are to use it: /etc/qubes/policy.d/30-lamella.policy")
        out.line("".join(f"    {line}\n" for line in example_policy().splitlines()))
    place = f"qubes://{qube.name}/{args.name}"
    out.say(f"then: lamella -r {place} init")
    facts = {"policy": example_policy(), "installed": args.install, "url": place}
    out.document({"qube": qube.name, "files": [asdict(file) for file in files], **facts})
    return 0
