"""A service that `lamella schedule` wrote, with a credential of systemd's and a limit of memory that the kernel keeps.

tests/system/test_systemd.py has the rest, on the kernel of the machine that runs the tests: whether that one can limit
memory depends on how it was started. The fears: the timer cannot open the repository, or its secret lies in a file that
everybody reads; a run that the kernel kills is heard of by nobody, or costs the repository.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tests.system.systemd_machine import systemd_machine

_PREPARE = r"""
umask 077; mkdir -p /etc/lamella /srv/vm /etc/systemd/system/lamella-run-nightly.service.d
printf '#!/bin/sh\ncat >> /srv/told\n' > /usr/local/bin/tell; chmod 755 /usr/local/bin/tell
head -c 1M /dev/urandom > /srv/vm/disk.img; echo 'correct horse battery staple' > /etc/lamella/passphrase
printf '[Service]\nLoadCredential=lamella.passphrase:/etc/lamella/passphrase\n' \
    > /etc/systemd/system/lamella-run-nightly.service.d/secret.conf
cat > /etc/lamella/lamella.toml <<'END'
[repositories.main]
url = "/srv/main"
[profiles.nightly]
sources = ["/srv/vm/*.img"]
repositories = ["main"]
notify.command = "/usr/local/bin/tell"
schedule = { when = "yearly", random_delay = "0", memory_max = "64M" }
END
LAMELLA_PASSPHRASE_FILE=/etc/lamella/passphrase $L init -q -r main --kdf-cost 17
$L schedule install nightly
"""
_RUN = "lamella-run-nightly.service"


def test_a_credential_opens_and_too_little_memory_is_told_and_harms_nothing(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    began = time.monotonic()
    (tmp_path / "top").mkdir()
    with systemd_machine(tmp_path / "top", start_seconds=600, seconds=600) as machine:
        record_property("seconds until systemd is up", round(time.monotonic() - began))
        machine.ok(_PREPARE)
        # The key of a passphrase alone takes 128 MiB.
        assert machine.run(f"systemctl start --wait {_RUN}").returncode != 0
        shown = machine.ok(f"systemctl show -p Result -p MemoryMax {_RUN}")
        assert "Result=oom-kill" in shown, (shown, machine.ok(f"journalctl --no-pager -o cat -u {_RUN}"))
        killed = [line for line in machine.ok("dmesg").splitlines() if "oom_memcg=/system.slice/" in line]
        assert killed and all(f"/{_RUN}," in line for line in killed), killed
        assert machine.run("test -e /srv/told").returncode != 0
        machine.run("systemctl start --wait lamella-watch-nightly.service")
        told = machine.ok("cat /srv/told")
        assert '"failure"' in told and "broken off" in told, told
        # The next run has enough, and reads back what it stored. (By hand: Lamella takes seconds to start here.)
        unit = f"/etc/systemd/system/{_RUN}"
        machine.ok(
            f"sed -i s/^MemoryMax=.*/MemoryMax=1G/ {unit}; systemctl daemon-reload; systemctl start --wait {_RUN}"
        )
        journal = machine.ok(f"journalctl --no-pager -o cat -u {_RUN}")
        assert "[backup main] done" in journal and "[verify main] done" in journal and "every step was done" in journal
        assert '"over"' in machine.ok("cat /srv/told").removeprefix(told)
    record_property("seconds in all", round(time.monotonic() - began))
