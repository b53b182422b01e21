"""Carries a history out, step by step, and asks after each what is wrong."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from lamella.repository.repository import Repository
from lamella.stores.local.store import LocalStore
from tests.cli.program import Done
from tests.fault.rot import same
from tests.torture.damage import LOCKS, Damages
from tests.torture.hostile import Hostile
from tests.torture.judge import Deed, Known, complaints, latest, must_stay
from tests.torture.oracle import Key, Oracle, Saved, View
from tests.torture.steps import History, Step
from tests.torture.world import DAY_MS, HOUR_MS, KILLED, SECRET, VOLUMES, World, host_at, write_source

_MOST_CHANGES = 30
"""Changes of file systems among which the moment of a kill is drawn; a command that makes fewer ends by itself."""
_TIMES = {"h": HOUR_MS, "d": DAY_MS}
_RULES = {"last": "--keep-last", "within": "--keep-within", "tag": "--keep-tag"}


class Complaint(NamedTuple):
    """Something is wrong after a step."""

    step: Step
    text: str

    def __str__(self) -> str:
        return f"step {self.step}: {self.text}"


@dataclass
class Figures:
    """What happened, in numbers."""

    histories: int = 0
    steps: int = 0
    commands: int = 0
    damages: int = 0
    kills: int = 0
    full: int = 0
    pauses: int = 0
    prunes: int = 0
    removed: int = 0
    attacks: int = 0
    violations: int = 0

    def __str__(self) -> str:
        names = self.__dataclass_fields__
        return ", ".join(f"{name} {getattr(self, name)}" for name in names)


@dataclass
class Torture:
    """One history under way."""

    history: History
    place: Path
    figures: Figures
    log: Callable[[str], None] | None = None
    tracked: Path | None = None
    known: Known = field(default_factory=Known)
    view: View = field(default_factory=View)
    complaints: list[Complaint] = field(default_factory=list)
    calm: bool = True
    """Nothing was ever damaged, and nobody said that more is there than is."""
    odd: bool = False
    """A pack is not what its name or its length says: the emergency reader uses what is whole in it, others do not."""
    junk: bool = False
    """There are objects of nobody."""
    _looked: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        history = self.history
        self.world = World(self.place, history.seed, history.lockless, history.checkpointed, self.tracked)
        self.world.build()
        self.oracle = Oracle(self.place, self.world.repo, self.world.key)
        with (
            self.world.determined("surveyor"),
            Repository.open(LocalStore.open(self.world.repo), SECRET, host_at(self.place / "surveyor")) as repo,
        ):
            self.damages = Damages(self.world, repo.keys)
        self.hostile = Hostile(self.world)

    def run(self) -> list[Complaint]:
        """All steps, up to the first one after which something is wrong."""
        for step in self.history.steps:
            chance = self.world.begin(step.number)
            self.world.now_ms += chance.choice((1, 1, 5, 30)) * HOUR_MS
            self.figures.steps += 1
            getattr(self, "_do_" + step.word.replace("-", "_"))(step, chance)
            if self.log:
                self.log(f"{step}  {[str(one.text) for one in self.complaints]}")
            if self.complaints:
                break
        self.figures.histories += 1
        self.figures.commands += self.world.commands
        self.figures.kills += self.world.kills
        self.figures.full += self.world.full
        self.figures.pauses += self.world.pauses
        self.figures.damages += self.damages.done
        self.figures.violations += bool(self.complaints)
        return self.complaints

    # -- looking -------------------------------------------------------------------------------------------------------

    def _look(self) -> View:
        """What the oracle sees; asked again only after something changed."""
        now = self.world.objects()
        if now != self._looked:
            # What was only added to takes nothing away; junk does not come in this way.
            added = not self.junk and self._looked.items() <= now.items()
            self.view = self.oracle.look(self.known.saved, self.view.whole if added else frozenset())
            self._looked = now
        return self.view

    def _complain(self, step: Step, text: str) -> None:
        self.complaints.append(Complaint(step, text))

    def _saw(self, host: str, done: Done, view: View) -> None:
        """The host has looked at the repository, whole: it knows what stood there."""
        if host != "stranger" and done.code in {0, 3, 20} and view.opens:
            self.known.seen.setdefault(host, set()).update(view.times)

    # -- commands ------------------------------------------------------------------------------------------------------

    def _command(
        self, step: Step, chance: random.Random, words: list[str | Path], stay: frozenset[Key], word: str = ""
    ) -> Done:
        """Run it in the way of the step, and judge what it did."""
        before = self._look()
        done = self._ran(step, chance, words)
        stay -= self.known.back
        deed = Deed(word or str(words[0]), step.host, done, before, self._look(), stay, self.calm)
        self._learn_removed(deed)
        for text in complaints(deed, self.known):
            self._complain(step, f"{' '.join(map(str, words))} (exit {done.code}): {text}")
        self._saw(step.host, done, deed.after)
        if self.log:
            self.log(f"    {step.host}: {' '.join(map(str, words))} -> {done.code} {' '.join(done.err.split())[-300:]}")
        return done

    def _ran(self, step: Step, chance: random.Random, words: list[str | Path]) -> Done:
        world = self.world
        if step.how == "killed":
            return world.run_killed(step.host, chance.randrange(_MOST_CHANGES), *words)
        if step.how == "full":
            return world.run_full(step.host, chance.randrange(6), *words)
        if step.how == "paused":
            other = chance.choice([host for host in VOLUMES if host != step.host])
            rival: list[list[str | Path]] = [["prune", "--keep-last", "3"], ["verify", "--level", "full"], ["list"]]
            meanwhile = chance.choice(rival)
            return world.run_paused(
                step.host, chance.randrange(_MOST_CHANGES), lambda: self._between(step, other, meanwhile), *words
            )
        return world.run(step.host, *words)

    def _between(self, step: Step, other: str, words: list[str | Path]) -> None:
        done = self.world.run(other, *words)
        if words[0] == "verify":
            self.known.passed.pop(other, None)  # a newer one may have passed there
        if "internal error" in done.err:
            self._complain(step, f"meanwhile {words} on {other} fell over: {done.err[-300:]}")

    def _learn_removed(self, deed: Deed) -> None:
        """What went was asked to go, unless it had to stay; what is back stands again."""
        went = deed.before.times.keys() - deed.after.times.keys() - deed.stay
        if deed.after.opens and not deed.after.missing:
            self.known.gone |= went & self.known.saved.keys()
            self.figures.removed += len(went)
        self.known.gone -= deed.after.times.keys() - self.known.back
        # What may go may go in two commands: a killed one that removed it, and the next.

    def _everything(self) -> frozenset[Key]:
        return frozenset(self._look().times)

    def _do_backup(self, step: Step, chance: random.Random) -> None:
        volumes = VOLUMES[step.host]
        for volume in volumes:
            if chance.random() < 0.8 or not self.world.source(volume).exists():
                write_source(self.world, volume, chance)
        held = {volume: self.world.place / "truth" / f"{step.number}-{volume}.img" for volume in volumes}
        for volume, image in held.items():
            self.world.write(image, self.world.held[volume])
        settings = self.world.settings.read_bytes()
        words: list[str | Path] = ["backup", *map(self.world.source, volumes), "--chunk-size", "64K", "--workers", "1"]
        words += ["--document", f"settings={self.world.settings}", *["--deltas"] * (self.world.tracked is not None)]
        before = self._look()
        sound = not self.known.unread
        done = self._command(step, chance, words, self._stay(step))
        after = self._look()
        new = sorted(after.times.keys() - before.times.keys() - self.known.saved.keys())
        for key in new:
            saved_as = self._volume_of(key, after, volumes)
            if saved_as is not None:
                number = len(self.known.saved)
                self.known.saved[key] = Saved(
                    key, number, saved_as, step.host, after.writers[key], held[saved_as], settings
                )
        self._looked = {}
        view = self._look()
        if done.code == 0 and not self.complaints:
            self._check_saved(step, new, view, volumes)
        for key in new:
            if key in self.known.saved and key not in view.whole and sound and done.code in {0, KILLED}:
                self._complain(step, f"backup (exit {done.code}): the new {view.names[key.volume_id]} is not whole")
        self._saw(step.host, done, view)

    def _volume_of(self, key: Key, view: View, volumes: tuple[str, ...]) -> str | None:
        """Which volume this is, though its name may be lost; None: none of these."""
        for known in self.known.saved.values():
            if known.key.volume_id == key.volume_id:
                return known.volume
        name = view.names[key.volume_id].partition("~")[0]
        return name if name in volumes else None

    def _check_saved(self, step: Step, new: list[Key], view: View, volumes: tuple[str, ...]) -> None:
        found = {self.known.saved[key].volume for key in new if key in self.known.saved}
        for volume in volumes:
            if volume not in found:
                self._complain(step, f"backup ends with 0, and {volume} has no new snapshot")

    def _do_prune(self, step: Step, chance: random.Random) -> None:
        word, _, value = step.what.partition(" ")
        self.figures.prunes += 1
        view = self._look()
        stay = must_stay(self.known, view, step.host, step.what, self.world.clock(step.host))
        if view.missing or self.known.hidden(view) & self.known.seen.get(step.host, set()):
            stay = set(view.times)
        if step.how == "paused":  # the other one may prune by a rule of its own
            stay &= must_stay(self.known, view, "", "last 3", self.world.clock(step.host))
        self._command(step, chance, ["prune", _RULES[word], value], frozenset(stay))

    def _do_delete(self, step: Step, chance: random.Random) -> None:
        view = self._look()
        rows = self.known.rows(view, chance.choice(self.known.volumes())) if self.known.saved else []
        if not rows:
            return
        key = {"oldest": rows[0], "newest": rows[-1], "any": chance.choice(rows)}[step.what]
        stay = self._everything() - {key}
        if view.missing:
            stay = self._everything()
        if step.how == "paused":
            stay &= must_stay(self.known, view, "", "last 3", self.world.clock(step.host))
        self._command(step, chance, ["delete", f"{view.names[key.volume_id]}@{key.name}", "-y"], frozenset(stay))

    def _stay(self, step: Step) -> frozenset[Key]:
        """What a command that removes nothing leaves; while it stands still another one may prune."""
        stay = self._everything()
        if step.how == "paused":
            stay &= must_stay(self.known, self._look(), "", "last 3", self.world.clock(step.host))
        return stay

    def _do_verify(self, step: Step, chance: random.Random) -> None:
        full = step.what == "full"
        words: list[str | Path] = ["verify", "--level", step.what, "--workers", "1"]
        done = self._command(step, chance, words, self._stay(step), "verify" if full else "verify-some")
        view = self._look()
        if full and step.how == "paused":
            self.known.passed.pop(step.host, None)  # what it read in which state nobody can tell
        if full and done.code in {0, 20} and step.how != "paused" and not view.missing:
            self.known.unread = False
            if step.host != "stranger":
                failed = frozenset(re.findall(r"^cannot be restored: ([^@~]+)(?:~\w+)?@(\S+)$", done.out, re.MULTILINE))
                self.known.pass_all(view, step.host, self.world.clock(step.host), failed)
            self.known.flagged |= (view.times.keys() & self.known.saved.keys()) - view.whole

    def _do_repair(self, step: Step, chance: random.Random) -> None:
        self.known.marred = True
        done = self._command(step, chance, ["repair", "-y", "--workers", "1"], self._stay(step))
        self.known.passed.pop(step.host, None)  # it reads everything, too: a newer one may have passed
        view = self._look()
        if done.code in {0, 20} and not view.missing:
            self.known.flagged -= view.whole
            self.known.flagged |= (view.times.keys() & self.known.saved.keys()) - view.whole

    def _do_look(self, step: Step, chance: random.Random) -> None:
        words: list[str | Path] = [*step.what.split()]
        if step.what == "list":
            words.append("--json")
        self._command(step, chance, words, self._stay(step))

    def _do_label(self, step: Step, chance: random.Random) -> None:
        view = self._look()
        rows = self.known.rows(view, chance.choice(self.known.volumes())) if self.known.saved else []
        if not rows:
            return
        key = chance.choice(rows)
        words = {"tag": ["kept"], "pin": ["--pin", "by hand"], "unpin": ["--unpin"]}[step.what]
        done = self._command(step, chance, ["tag", f"{view.names[key.volume_id]}@{key.name}", *words], self._stay(step))
        if step.what == "pin" and done.code == 0:
            self.known.pinned.add(key)
        elif step.what == "unpin":
            self.known.pinned.discard(key)

    def _do_give_up(self, step: Step, chance: random.Random) -> None:
        """Somebody believes what `check` says, and gives up what is missing."""
        view = self._look()
        if not view.missing:
            return
        told = self.world.run(step.host, "check", "--json")
        words_told = (word.strip(":;,") for word in told.out.replace('"', " ").split())
        lost = sorted({word for word in words_told if word.startswith("w/")})
        if told.code != 21 or not lost:
            return
        self.known.marred = True
        self.known.given_up |= self.known.hidden(view)
        words: list[str | Path] = ["check", *(f"--give-up={name}" for name in lost), "-y"]
        self._command(step, chance, words, self._stay(step), "give-up")

    def _do_restore(self, step: Step, chance: random.Random) -> None:
        known = self.known.volumes() or [""]
        volumes = [chance.choice(known)] if step.what == "named" else known
        for volume_id in volumes:
            rows = self.known.rows(self._look(), volume_id)
            if rows and not self.complaints:
                self._restored(step, chance, self.known.saved[chance.choice(rows)])

    def _restored(self, step: Step, chance: random.Random, saved: Saved) -> None:
        view = self._look()
        wanted = f"{view.names[saved.key.volume_id]}@{saved.key.name}"
        host = "stranger" if step.what == "emergency" else step.host
        right = [saved.image]
        if step.what != "named":
            wanted = view.names[saved.key.volume_id]
            right = [one.image for one in latest(self.known, view, host, saved.volume)]
        out = self.place / "out"
        out.unlink(missing_ok=True)
        words: list[str | Path] = ["restore", wanted, "--to", out, "--workers", "1"]
        if step.what == "emergency":
            done = Done(self.oracle.restore(wanted, out), "", "")
        else:
            done = self._command(step, chance, words, self._stay(step))
        given = any(same(out, image) for image in right)
        told = f"restore {wanted} ({step.what}, exit {done.code})"
        if out.exists() and not given:
            self._complain(step, f"{told}: the bytes are not those of {' or '.join(image.stem for image in right)}")
        if done.code == 0 and not out.exists():
            self._complain(step, f"{told}: nothing is written")
        sure = step.what == "named" and step.how == "plain" and saved.key in view.whole and not self.odd
        if sure and not given:
            self._complain(step, f"{told}: it is whole, and is not restored: {done.err[-300:]}")

    # -- what happens to it --------------------------------------------------------------------------------------------

    def _do_damage(self, step: Step, chance: random.Random) -> None:
        before = self._look()
        done = self.damages.inflict(step.what, chance)
        if done is None:
            return
        after = self._look()
        self.known.back |= (after.times.keys() - before.times.keys()) & self.known.gone
        self.calm = False
        self.odd |= step.what.startswith(("pack:", "swap:"))
        if step.what.startswith(("commit:", "swap:w")):
            self.known.pinned.clear()  # that may have been said there
            hidden = (before.times.keys() - after.times.keys()) & self.known.saved.keys()
            self.known.proven = self.known.proven | hidden if done.proves else set()
        broke = before.whole - after.whole
        if done.proves or not step.what.startswith(("commit:", "swap:w")):
            self.known.broke |= broke  # of other commits nobody can know who never saw them
        self.known.unread |= not done.seen or step.what.startswith("blob:")
        if done.seen:
            self.known.flagged |= broke & after.times.keys()
        if self.log:
            self.log(f"    damage {done.what}, breaks {sorted(broke)}")

    def _do_junk(self, step: Step, chance: random.Random) -> None:
        self.calm, self.junk = False, True
        self.odd |= step.what == "pack-copy"
        self.damages.inflict(f"junk:{step.what}", chance)

    def _do_lock(self, step: Step, chance: random.Random) -> None:
        """The marker or a slot breaks; a command does nothing to the rest; the right bytes are back."""
        before = self.world.objects()
        done = self.damages.inflict("lock:", chance)
        assert done is not None
        told = self.world.run(step.host, *chance.choice((["list"], ["prune", "--keep-last", "1", "-n"], ["check"])))
        if "internal error" in told.err or told.code < 0:
            self._complain(step, f"with a broken {done.names[0]}: exit {told.code} {told.err[-300:]}")
        self.damages.heal(done.names)
        now = self.world.objects()
        changed = {name for name in before if not name.startswith(LOCKS) and now.get(name) != before[name]}
        if told.code != 0 and changed:
            self._complain(step, f"with a broken {done.names[0]}: exit {told.code}, and {sorted(changed)} changed")

    def _do_heal(self, step: Step, chance: random.Random) -> None:
        names = sorted(self.damages.originals)
        if not names:
            return
        some = None if step.what == "all" else (chance.choice(names),)
        self.damages.heal(some)
        view = self._look()
        if some is None:
            if not self.known.marred:
                lost = {key for key in self.known.broke - self.known.gone if key not in view.whole}
                for key in sorted(lost):
                    self._complain(step, f"all damage is put right, and number {self.known.saved[key].number} is lost")
            self.known.broke.clear()
            self.known.marred = self.odd = False
        self.known.back &= view.times.keys()
        self.known.flagged -= view.whole
        self.known.given_up -= view.times.keys()

    def _do_clock(self, step: Step, chance: random.Random) -> None:
        if step.what == "right":
            self.world.skew_ms.pop(step.host, None)
        else:
            self.world.skew_ms[step.host] = int(step.what[:-1]) * _TIMES[step.what[-1]]

    def _do_forget(self, step: Step, chance: random.Random) -> None:
        """A host loses its cache, or with its state all that it knew; or is put back to what it was before."""
        here, before = self.place / step.host, self.place / f"{step.host}-before"
        if step.what == "cache":
            shutil.rmtree(here / "cache", ignore_errors=True)
            return
        if step.what == "old" and here.exists() and not before.exists():
            shutil.copytree(here, before)
            return
        shutil.rmtree(here, ignore_errors=True)
        self.known.seen.pop(step.host, None)
        self.known.passed.pop(step.host, None)
        if step.what == "old" and before.exists():
            before.rename(here)

    def _do_wait(self, step: Step, chance: random.Random) -> None:
        self.world.now_ms += int(step.what[:-1]) * _TIMES[step.what[-1]]

    def _do_hostile(self, step: Step, chance: random.Random) -> None:
        before = self._look()
        if self.hostile.attack(step.what, chance):
            self.figures.attacks += 1
            self.calm &= step.what != "seen"
            view = self._look()
            if before.whole - view.whole:
                self._complain(step, "the oracle itself gives less after the attack")
