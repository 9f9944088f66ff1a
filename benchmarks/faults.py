"""Harm the adaptation of sites at random moments, and see whether the next run makes it good: `python -m benchmarks.faults`.

Each round brings a labelled study to a small hospital, starts `python -m flows.adapt_site` as a process of its own and does it one harm: a `kill -9`
of the flow, of DVC, of a stage, of the Prefect server or of the archive, a locked registry, a full disk, or a study whose files are cut and
overwritten. Whatever became of that run, the next one has to finish, with a champion that is a whole model, every case counted once, nothing
half-written, and no patient's identifier outside the inbox (`faults_checks.py`).
"""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import cyclopts
import numpy as np

from benchmarks.faults_checks import check_after, check_now, roles_before
from benchmarks.faults_harms import HARMS, Harm
from benchmarks.faults_hospital import Clinic, Hospital
from pipelines.cli import run
from pipelines.errors import UsageError

#: Harms that share one project; then another begins, so that no round gets slower than the first ones.
TOGETHER = 8
RUN_S = 900.0

app = cyclopts.App(name="python -m benchmarks.faults", help_format="plaintext")


@app.default
def main(*, count: int = 40, seed: int = 0, start: int = 0, in_a_row: Literal[1, 2, 4, 8] = 1, kinds: str = "", work: Path | None = None) -> None:
    """Harm adaptations COUNT times and print what became of them. Exit status 1 when anything is a fault.

    For example: `python -m benchmarks.faults --count 40 --seed 0`

    Parameters
    ----------
    count
        How many harms. They take turns; a minute each on two idle cores.
    seed
        Of the moments and of the damage: harm N of a seed strikes at the same point of a run every time.
    start
        The first harm. Eight share a project, so that harm 14 is seen again with `--start 8 --count 7`.
    in_a_row
        So many runs are harmed one after another before one is let finish: the second has to take up what is left of the first. Cheaper, too.
    kinds
        Only these harms, by commas.
    work
        Where projects and logs are kept afterwards; by default they are removed.
    """
    chosen = tuple(kinds.split(",")) if kinds else tuple(HARMS)
    if unknown := set(chosen) - set(HARMS):
        raise UsageError(f"--kinds has {', '.join(sorted(unknown))}; known: {', '.join(HARMS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers and mounts go
    with tempfile.TemporaryDirectory(prefix="semiflow-faults-") as temporary:
        began = time.perf_counter()
        report = play(range(start, start + count), seed, chosen, work or Path(temporary), in_a_row=in_a_row)
        print(report)
        print(f"{len(report.rounds)} harms in {time.perf_counter() - began:.0f} s")
    if report.faults:
        sys.exit(1)


@dataclass
class Round:
    """What became of one round. `first`: how the harmed run ended; `faults`: what is wrong after the next one."""

    number: int
    harm: str
    site: str
    moment: str
    first: str
    next: str
    seconds: float
    faults: list[str]

    def __str__(self) -> str:
        return (f"round {self.number:3} {self.harm:8} {self.site} at {self.moment:24} first run: {self.first:20} next run: {self.next:14} "
                f"{self.seconds:4.0f} s{''.join(f'  FAULT {fault}' for fault in self.faults)}")


@dataclass
class Report:
    """Every round, as a table of harm and outcome."""

    rounds: list[Round] = field(default_factory=list)
    zombies: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        return [f"round {one.number} ({one.harm} at {one.moment}): {fault}" for one in self.rounds for fault in one.faults] + self.zombies

    def __str__(self) -> str:
        counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for one in self.rounds:
            for column in ("rounds", one.first.split(":")[0], *(["next run finished"] if not one.next.startswith(("exit", "(")) else []),
                           *(["faults"] if one.faults else [])):
                counts[one.harm][column] += 1
        columns = ("rounds", "killed", "failed", "finished", "missed", "next run finished", "faults")
        lines = [f"{'harm':10}" + "".join(f"{name:>{max(8, len(name) + 2)}}" for name in columns)]
        lines += [f"{harm:10}" + "".join(f"{row[name]:>{max(8, len(name) + 2)}}" for name in columns) for harm, row in counts.items()]
        return "\n".join([*lines, *(f"FAULT {fault}" for fault in self.faults), f"{len(self.faults)} faults"])


def play(numbers: Iterable[int], seed: int, kinds: Sequence[str], work: Path, *, in_a_row: int = 1) -> Report:
    """Harm number by number, each printed as its turn ends."""
    report, projects = Report(), defaultdict(lambda: defaultdict(list))
    for number in numbers:
        projects[number // TOGETHER][number // in_a_row].append(number)
    with Hospital(work) as hospital:
        for name, turns in projects.items():
            with hospital.clinic(name) as clinic:
                for members in turns.values():
                    rounds = one_turn(clinic, [(number, kinds[number % len(kinds)]) for number in members], seed)
                    report.rounds += rounds
                    print(*rounds, sep="\n", flush=True)
        report.zombies = hospital.zombies()
    return report


def one_turn(clinic: Clinic, chosen: Sequence[tuple[int, str]], seed: int) -> list[Round]:
    """A study arrives at a site, runs are harmed one after another, and the next run makes it all good."""
    sites = set.intersection(*(set(HARMS[kind].sites) for _, kind in chosen))
    site = str(np.random.default_rng([seed, chosen[0][0]]).choice(sorted(sites)))
    harms = [(number, kind, HARMS[kind](clinic, site, np.random.default_rng([seed, number, 1]))) for number, kind in chosen]
    workspace, rounds = clinic.workspace(site), []
    known = roles_before(workspace)
    for number, kind, harm in sorted(harms, key=lambda one: one[2].order):  # what one run has finished, the next passes over
        if not rounds or rounds[-1].first.startswith("finished"):
            clinic.arrive(site)
        rounds.append(harmed(clinic, harm, number, kind))
    began = time.perf_counter()
    process = clinic.start(site, rounds[-1].number, "next")
    status = process.wait(timeout=RUN_S)
    rounds[-1].next = process.outcome() if status == 0 else f"exit {status}"
    rounds[-1].faults += [f"the next run failed: {process.last_line()}"] if status else check_after(clinic, workspace, known)
    rounds[-1].seconds += time.perf_counter() - began
    return rounds


def harmed(clinic: Clinic, harm: Harm, number: int, kind: str) -> Round:
    """One run, harmed, and what holds of the champion right after it."""
    began, workspace = time.perf_counter(), clinic.workspace(harm.site)
    had = workspace.champion.exists()
    harm.before()
    process = clinic.start(harm.site, number)
    try:
        struck = harm.strike(process)
        status = process.wait(timeout=RUN_S)
    finally:
        process.end()
        harm.over()
    faults = [f"right after it, {fault}" for fault in [*harm.faults(status), *check_now(clinic, workspace, had)]]
    harm.repair()
    first = "missed" if not struck else "finished: " + process.outcome() if status == 0 else "killed" if status < 0 else "failed"
    return Round(number, kind, harm.site, harm.moment, first, "(another harm)", time.perf_counter() - began, faults)


if __name__ == "__main__":
    run(app)
