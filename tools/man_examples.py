"""Three examples of every command, for its manual page. A test parses every line that begins with `lamella`."""

from __future__ import annotations

EXAMPLES: dict[str, list[tuple[str, str]]] = {
    "backup": [
        ("Back up two disks as one snapshot", "lamella backup /srv/images/web.img lvm:vg0/database"),
        ("What would be read, and why", "lamella backup -n /srv/images"),
        ("The output of a command as a volume", "lamella backup 'db=!pg_dump --format=custom shop'"),
    ],
    "check": [
        ("Is the history whole?", "lamella check"),
        ("Accept that a repository was set back on purpose", "lamella check --accept-rollback"),
        ("No new host may join from now on", "lamella check --close-enrolment"),
    ],
    "completion": [
        ("In ~/.bashrc", 'eval "$(lamella completion bash)"'),
        ("For all users of zsh", "lamella completion zsh > /usr/share/zsh/vendor-completions/_lamella"),
        ("In a session of fish", "lamella completion fish | source"),
    ],
    "config": [
        ("Begin a configuration", "lamella config init"),
        ("Is it right?", "lamella config validate"),
        ("What counts, and where it comes from", "lamella config show"),
    ],
    "copy": [
        ("The newest snapshot of a volume to a second repository", "lamella copy web@latest --to /mnt/second"),
        ("Everything", "lamella copy --to offsite"),
        ("What would be copied", "lamella copy -n --to offsite"),
    ],
    "delete": [
        ("One snapshot", "lamella delete web@20261122T184501Z"),
        ("Every snapshot of a volume", "lamella delete web --all-snapshots"),
        ("What would go, and what comes back", "lamella delete -n web@latest"),
    ],
    "diff": [
        ("What changed between two days", "lamella diff web@2026-11-21 web@2026-11-22"),
        ("What the live disk holds that the newest snapshot does not", "lamella diff web@latest --live"),
        ("As a map that a program can read", "lamella diff web@2026-11-21 --map changes.json"),
    ],
    "doctor": [
        ("Is this machine fit for backups?", "lamella doctor"),
        ("Remove what killed runs left", "lamella doctor --fix"),
        ("This host leaves: what would be removed", "lamella doctor --forget-host -n"),
    ],
    "drill": [
        ("Does the newest backup boot?", "lamella drill web"),
        ("Until the web server answers on the console", "lamella drill web --until 'nginx.*started' --seconds 300"),
        ("Keep a picture of its screen", "lamella drill web@yesterday --screenshot web.png"),
        ("Those of several that had no drill for a month", "lamella drill --every 30d --budget 1h web mail:vda"),
    ],
    "export": [
        ("Serve a snapshot as a disk, read-only", "lamella export web@yesterday --socket /run/web.nbd"),
        (
            "Let a machine write, and throw that away",
            "lamella export web --socket /run/web.nbd --throw-away",
        ),
        ("An image for QEMU", "lamella export web@latest --to web.qcow2 --format qcow2"),
        ("Everything, for other programs", "lamella export --all /mnt/usb/gone"),
    ],
    "files": [
        ("Look into a snapshot", "lamella files list web@latest /etc"),
        ("Get one directory out", "lamella files get web@yesterday /etc/nginx --to /tmp/nginx"),
        ("Where is it?", "lamella files find web '*.sql'"),
        ("A home without its caches", "lamella files backup /home/me --exclude-caches --exclude .cache/"),
    ],
    "import": [
        ("What a wyng archive holds", "lamella import wyng /mnt/usb/laptop.backup --list"),
        ("All of it, with the times that it claims", "lamella import wyng /mnt/usb/laptop.backup --trust-times"),
        ("The snapshots of a machine in Proxmox Backup", "lamella import pbs /mnt/datastore/main vm/100 --trust-times"),
        ("An image out of every archive of borg", "lamella import borg /mnt/usb/borg 'images/web.img'"),
        ("All backups of qvm-backup as one history", "lamella import qvm /mnt/usb/qubes-backup-*"),
        ("Two volumes, one under another name", "lamella import wyng /mnt/usb/laptop.backup root.img home=vm-home.img"),
    ],
    "info": [
        ("The repository", "lamella info"),
        ("A volume", "lamella info web"),
        ("A snapshot, for scripts", "lamella info web@latest --json"),
    ],
    "fleet": [
        (
            "A host with a repository of its own",
            "lamella fleet add web --below s3://backups/hosts --host-keyfile web.key --recovery-sheet web.sheet",
        ),
        ("Look at all repositories", "lamella fleet refresh"),
        ("Is every host in order, as a page", "lamella fleet status --html fleet.html"),
        ("What there is of a volume of any host, of one day", "lamella fleet search mail --until 2026-11-28"),
        ("Prune all repositories, two at a time", "lamella fleet prune --keep-daily 30 --at-once 2 -y"),
    ],
    "init": [
        (
            "On a disk, with a sheet to print",
            "lamella init -r /mnt/usb/lamella --recovery-sheet sheet.txt",
        ),
        ("On another host", "lamella init -r ssh://backup@nas.example/srv/lamella"),
        ("And give it a name in the configuration", "lamella init -r /mnt/usb/lamella --save-as usb"),
    ],
    "key": [
        ("Which keys open the repository?", "lamella key list"),
        ("A second passphrase", "lamella key add"),
        ("Not asked again for an hour", "lamella key cache --minutes 60"),
    ],
    "list": [
        ("Volumes and snapshots", "lamella list"),
        ("The snapshots of a volume", "lamella list web"),
        ("For scripts", "lamella list --json"),
    ],
    "mirror": [
        ("A second copy, byte for byte, without keys", "lamella mirror -r /srv/lamella --to /mnt/usb/lamella"),
        ("What would be copied", "lamella mirror -n --to /mnt/usb/lamella"),
        ("To a bucket", "lamella mirror --to s3://backups/mirror"),
    ],
    "monitor": [
        ("Free the space of the checkpoints of every volume", "lamella monitor"),
        ("Of one image", "lamella monitor /srv/images/web.img"),
        ("For scripts", "lamella monitor --json"),
    ],
    "mount": [
        ("Every snapshot as a file", "lamella mount /mnt/snapshots"),
        ("Until Ctrl-C", "lamella mount /mnt/snapshots --foreground"),
        ("Another repository than the usual one", "lamella mount /mnt/snapshots -r usb"),
    ],
    "prune": [
        ("What would be removed, and what comes back", "lamella prune -n --keep-daily 14 --keep-monthly 12"),
        ("By the rules of the configuration", "lamella prune"),
        ("One volume alone", "lamella prune web --keep-last 3"),
    ],
    "qubes": [
        ("Every qube that is marked for backups", "lamella qubes backup"),
        ("Bring a qube back beside the one that exists", "lamella qubes restore work --rename-conflicting"),
        ("Which qubes are there, and which are saved?", "lamella qubes list"),
    ],
    "rename": [
        ("A machine has a new name", "lamella rename web webserver"),
        ("What would be done", "lamella rename -n web webserver"),
        ("In another repository", "lamella rename -r usb web webserver"),
    ],
    "repair": [
        ("What can be repaired", "lamella repair -n"),
        ("Take what is lost from a copy", "lamella repair --from /mnt/second"),
        ("Take what is lost from the live disk", "lamella repair --source web=/srv/images/web.img"),
    ],
    "report": [
        ("A page of charts, to look at, print or send", "lamella report --html report.html"),
        ("What was added lately, in a few lines", "lamella report"),
        ("The figures behind the charts", "lamella report --json"),
    ],
    "restore": [
        ("The newest snapshot as a new file", "lamella restore web --to /srv/images/web.img"),
        ("Yesterday's, in place of the file", "lamella restore web@yesterday --to /srv/images/web.img --overwrite"),
        ("Every volume of the repository", "lamella restore --all --to /srv/restored/"),
        ("A machine of libvirt, with all its disks", "lamella restore mail:vda --to libvirt:mail"),
    ],
    "run": [
        ("Back up, prune, verify and copy as the profile says", "lamella run nightly"),
        ("What would be done", "lamella run nightly -n"),
        ("In a script: silent unless something is wrong", "lamella run -q nightly"),
    ],
    "schedule": [
        ("Every night from now on", "lamella schedule install nightly"),
        ("When does it run next?", "lamella schedule show nightly"),
        ("Show the units, write nothing", "lamella schedule install nightly --print"),
    ],
    "serve": [
        (
            "In authorized_keys of a server: this key may only add",
            "lamella serve --append-only /srv/lamella/web",
        ),
        (
            "Only hosts that an admin brought in",
            "lamella serve --append-only --admitted /srv/lamella/web",
        ),
        ("A bucket for a host that may not know its credentials", "lamella serve s3://backups/web"),
    ],
    "setup": [
        ("Ask a few questions, and do everything", "lamella setup"),
        ("Without a terminal", "lamella setup -y -r /mnt/backup/lamella --when daily --tell root"),
        ("What would be written and run", "lamella setup -n -y -r /mnt/backup/lamella"),
    ],
    "status": [
        ("Is everything in order?", "lamella status"),
        ("For a script or a monitoring system", "lamella status --json"),
        ("For Prometheus", "lamella status --prometheus /var/lib/node_exporter/lamella.prom"),
    ],
    "tag": [
        ("Name a snapshot", "lamella tag web@latest before-upgrade"),
        ("No rule removes it", "lamella tag web@latest --pin"),
        ("Go back to it by that name", "lamella restore web@^before-upgrade --to web.img"),
    ],
    "ui": [
        ("A page in the browser of this machine", "lamella ui"),
        ("Always at one port", "lamella ui --listen 127.0.0.1:8642"),
        ("For a tunnel from another machine", "lamella ui --socket /run/user/1000/lamella.sock"),
    ],
    "verify": [
        ("A sample of everything", "lamella verify"),
        ("Every byte of a volume's newest snapshot", "lamella verify web@latest --level full"),
        ("Ten gibibytes a night, the longest unread first", "lamella verify --budget 10GiB"),
    ],
}
