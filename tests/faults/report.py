"""The findings of a run of the harness: one account for each plan, and all of them together as text and as JSON."""

from __future__ import annotations

import json
import platform
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from poller import __version__
from tests.faults.cluster_plan import ClusterPlan
from tests.faults.oracle import Books
from tests.faults.plan import Plan
from tests.faults.victim import Death


@dataclass
class Account:
    """The result of one plan. `violations` must be empty; each begins with the life in which it was seen, if known."""

    seed: int
    subject: str
    lives: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    kills_at_work: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    entries: int = 0
    lost: int = 0
    invented: int = 0
    repeats: Counter[str] = field(default_factory=Counter)
    allowed: Counter[str] = field(default_factory=Counter)
    recoveries: int = 0
    recovery_seconds: float = 0.0
    takeovers: int = 0
    takeover_seconds: float = 0.0
    unpolled_intervals: float = 0.0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, plan: Plan | ClusterPlan) -> Account:
        return cls(plan.seed, plan.subject)

    @property
    def kills(self) -> int:
        return sum(self.ends[kind] for kind in ("kill", "commit", "write"))

    def died(self, death: Death, *, is_at_work: bool) -> None:
        self.lives += 1
        self.ends[death.kind] += 1
        self.kills_at_work += death.is_kill and is_at_work

    def judge(self, name: str, books: Books, allowed: int) -> None:
        """Enter the counts of a sink, and a violation if entries are lost, invented or repeated too often."""
        self.lost += books.lost
        self.invented += books.invented
        self.repeats[name] += books.repeated
        self.allowed[name] += allowed
        if books.lost:
            self.violate(f"{name}: {books.lost} of {books.expected} LOST")
        if books.invented:
            self.violate(f"{name}: {books.invented} INVENTED, or not the bytes they were")
        if books.repeated > allowed:
            self.violate(f"{name}: {books.repeated} REPEATED, {allowed} are allowed")

    def recovered(self, seconds: float, limit: float, *, step: int | None = None, after: str = "") -> None:
        self.recoveries += 1
        self.recovery_seconds = max(self.recovery_seconds, seconds)
        if seconds > limit:
            self.violate(f"recovery took {seconds:.1f} s{after}", step)

    def taken_over(self, seconds: float, limit: float, step: int) -> None:
        """Enter how long the contracts of a lost replica were not polled."""
        self.takeovers += 1
        self.takeover_seconds = max(self.takeover_seconds, seconds)
        if seconds > limit:
            self.violate(f"takeover took {seconds:.1f} s", step)

    def violate(self, what: str, life: int | None = None) -> None:
        self.violations.append(what if life is None else f"life {life}: {what}")

    def __str__(self) -> str:
        ends = ", ".join(f"{kind} {count}" for kind, count in sorted(self.ends.items()))
        repeats = ", ".join(f"{name} {count}/{self.allowed[name]}" for name, count in sorted(self.repeats.items()))
        if self.takeovers or self.unpolled_intervals:
            repeats += (
                f"; {self.takeovers} takeovers of at most {self.takeover_seconds:.1f} s, {self.faults.total()} faults,"
                f" unpolled for at most {self.unpolled_intervals:.1f} intervals"
            )
        return (
            f"seed {self.seed} {self.subject}: {self.lives} lives ({ends}), {self.kills_at_work} of {self.kills} kills at"
            f" work, {self.entries} entries, repeats/allowed: {repeats}; {self.recoveries} recoveries of at most"
            f" {self.recovery_seconds:.1f} s; {self.seconds:.0f} s; "
            + ("; ".join(self.violations) or "0 lost, 0 invented, books balanced")
        )


def total(accounts: Iterable[Account]) -> Account:
    """The sum of all accounts, with the first seed."""
    accounts = list(accounts)
    whole = Account(accounts[0].seed, "all")
    for account in accounts:
        whole.lives += account.lives
        whole.kills_at_work += account.kills_at_work
        whole.entries += account.entries
        whole.lost += account.lost
        whole.invented += account.invented
        whole.recoveries += account.recoveries
        whole.recovery_seconds = max(whole.recovery_seconds, account.recovery_seconds)
        whole.takeovers += account.takeovers
        whole.takeover_seconds = max(whole.takeover_seconds, account.takeover_seconds)
        whole.unpolled_intervals = max(whole.unpolled_intervals, account.unpolled_intervals)
        for mine, theirs in (
            (whole.ends, account.ends),
            (whole.faults, account.faults),
            (whole.repeats, _by_subject(account, account.repeats)),
            (whole.allowed, _by_subject(account, account.allowed)),
        ):
            mine.update(theirs)
        whole.violations += [f"seed {account.seed}: {violation}" for violation in account.violations]
    return whole


def _by_subject(account: Account, counts: Counter[str]) -> dict[str, int]:
    """Counts by subject, because plans with damages allow more repeats."""
    return {f"{account.subject}: {name}": count for name, count in counts.items()}


def as_markdown(accounts: Sequence[Account], seconds: float) -> str:
    """The tables of a report, such as results/1000-kills.md."""
    whole = total(accounts)
    seeds = [account.seed for account in accounts]
    subjects = Counter(account.subject for account in accounts)
    rows = [
        ("version", f"{__version__}, Python {platform.python_version()}"),
        ("date", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())),
        ("plans", f"{len(accounts)}, seeds {min(seeds)} to {max(seeds)}: {_listed(subjects)}"),
        ("lives", f"{whole.lives}: {_listed(whole.ends)}"),
        ("**kills (`kill -9`)**", f"**{whole.kills:,}**, {whole.kills_at_work:,} of them with entries on their way"),
        ("entries", f"{whole.entries:,}"),
        ("**lost**", f"**{whole.lost}**"),
        ("**invented, or other bytes**", f"**{whole.invented}**"),
        ("recoveries", f"{whole.recoveries}, the slowest {whole.recovery_seconds:.1f} s"),
        *_of_cluster(whole),
        ("violations of any kind", str(len(whole.violations))),
        ("time", f"{seconds / 60:.0f} min"),
    ]
    lines = ["| what | found |", "| --- | --- |", *(f"| {what} | {found} |" for what, found in rows), ""]
    lines += ["| plans: sink | repeats | the promise allows |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {count:,} | {whole.allowed[name]:,} |" for name, count in sorted(whole.repeats.items())]
    lines += ["", "| fault | struck |", "| --- | ---: |"]
    lines += [f"| {name} | {count:,} |" for name, count in sorted(whole.faults.items())]
    lines += ["", *(f"- VIOLATION {violation}" for violation in whole.violations)]
    return "\n".join(lines).rstrip() + "\n"


def _of_cluster(whole: Account) -> list[tuple[str, str]]:
    """The rows for several replicas; empty for a single one."""
    if not (whole.takeovers or whole.unpolled_intervals):
        return []
    return [
        ("**faults**", f"**{whole.faults.total():,}**, by kind below"),
        ("takeovers", f"{whole.takeovers}, the slowest {whole.takeover_seconds:.1f} s"),
        ("longest time without a poll, else", f"{whole.unpolled_intervals:.1f} intervals"),
    ]


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def save(accounts: Sequence[Account], seconds: float, path: Path) -> None:
    """Write every account as JSON, and the tables as `.md`. `path`: the name; its suffix is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"version": __version__, "seconds": round(seconds), "plans": [vars(account) for account in accounts]}
    path.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    path.with_suffix(".md").write_text(as_markdown(accounts, seconds))
