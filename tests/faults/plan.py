"""The plan of a run of the harness, drawn from a seed before anything is started. Pure.

A plan is a row of lives of one command on one state. Equal seeds give equal plans. The exact moments depend on the machine, so a
seed repeats the plan, but not every step of the run.
"""

from __future__ import annotations

import random
import re
from typing import Literal, NamedTuple, get_args

from poller.simulator.faults import ODDITIES, parse_fault
from tests.daemon import FIRST

Subject = Literal["run", "damage", "fetch", "backfill"]
End = Literal["kill", "commit", "write", "term", "heal"]
# `blinks`, `disk-fills` and `people` begin when the process is at work, all others before it starts.
Trouble = Literal[
    "",
    "token",
    "keys",
    "down",
    "blinks",
    "disk-full",
    "disk-fills",
    "read-only",
    "file-limit",
    "people",
    "loki-limits",
    "contract-limited",  # Loki takes nothing of one contract
]

# Ten plans: of the daemon, of the daemon with a damaged state, and of the two commands that end by themselves.
SUBJECTS: tuple[Subject, ...] = ("run", "run", "run", "run", "run", "damage", "damage", "fetch", "fetch", "backfill")
LIVES_A_PLAN = 25

_API_FAULTS = (
    "500:20%",
    "502:20%",
    "503:20%:retry-after=1",
    "429:20%:retry-after=1",
    "429:20%:retry-after=date+1",
    "404:20%",
    "403:30%",
    "401:30%",
    "400:10%",
    "reset:20%",
    "truncate:20%",
    "cut:20%",
    "html:20%",
    "missing-hits:20%",
    "wrong-types:20%",
    "capped-total:30%",
    "latency:30%:60ms",
    "hang:10%:400ms",
    "drip:10%:300ms",
    "drip:5%:2s",
    "mixed:20%:300ms",
    "late:20%:1s",
    "path=contracts:500:50%",
    "path=contracts:401",
    f"contract={FIRST}:500",
    f"contract={FIRST}:403",
    f"contract={FIRST}:hang:400ms",
    f"contract={FIRST}:unlisted",
    "unlisted",
    "pages:count=1",
    "limit:count=7",
    "rate:count=60:1s",
    "undated",
)
# A part cannot be read, and everything else can.
_GAP_FAULTS = (
    "null:count=400",
    "nan:count=400",
    "miscount",
    "shuffle",
    "old:5m",
    "old:5m:status=403",
    "dense:count=20",
)
_API_FAULTS += _GAP_FAULTS
# An export cannot have entries, or contracts, that the API does not show yet.
_API_FAULTS_ON_THE_PAST = tuple(fault for fault in _API_FAULTS if not re.match("late|contract=.*unlisted", fault))
_SINK_FAULTS = (
    "sink=*:500:30%",
    "sink=*:503:30%:retry-after=1",
    "sink=*:429:30%:retry-after=1",
    "sink=*:408:30%",
    "sink=*:404:30%",
    "sink=*:400:20%",
    "sink=*:413:20%",
    "sink=*:reset:30%",
    "sink=*:hang:20%:300ms",
    "sink=*:latency:20%:400ms",
    "sink=*:lost-ack:30%",
    "sink=*:partial:30%",
    "sink=*:cut",
    "sink=*:drip:30%:1s",
    "sink=*:echo:50%",
    "sink=*:encoding",
    "sink=*:html:30%",
    "sink=*:mixed:30%:300ms",
    "sink=logging:401",
    "sink=logging:422",
    "sink=logging:503",
    "sink=loki:403",
    "sink=loki:400:60%",
    "sink=moesif:402",
    "sink=moesif:lost-ack",
    "sink=opensearch:lost-ack:60%",
    "sink=opensearch:partial:60%",
    "sink=http:lost-ack:60%",
)
_CLOCKS = (-7200.0, -90.0, 90.0, 7200.0)
_TROUBLES: tuple[Trouble, ...] = get_args(Trouble)[1:]
# `fetch` has only `people`, and a full disk for its output.
_TROUBLES_OF: dict[Subject, tuple[Trouble, ...]] = {
    "run": _TROUBLES,
    "damage": _TROUBLES,
    "fetch": ("disk-full", "disk-fills", "people"),
    "backfill": ("", "people"),
}


class Damage(NamedTuple):
    """Damage of the state's file between two lives: cut off, or bits flipped. `places` are shares of its length (0 to 1)."""

    suffix: Literal["", "-wal"]
    is_cut: bool
    places: tuple[float, ...]


class Life(NamedTuple):
    """One process from start to end.

    It ends `after_seconds`, counted from its start or (`is_from_work`) from its first request; or at commit number `at` (before
    or after it); or during write number `at`; or (`heal`) by SIGTERM once it has recovered from all faults.
    """

    end: End
    after_seconds: float = 0.5
    is_from_work: bool = True
    at: int = 1
    is_before: bool = True
    patience_seconds: float = 3.0  # how long to wait for that commit or write
    faults: tuple[str, ...] = ()
    trouble: Trouble = ""
    entries: tuple[int, int] = (40, 40)  # new entries, by contract
    late_seconds: float = 0.0  # for how long the API does not show the new entries
    clock: tuple[tuple[float, float], ...] = ()  # (seconds since the start, how far the clock is off from then on)
    damage: Damage | None = None


class Plan(NamedTuple):
    """Lives one after the other, on one state and one simulator."""

    seed: int
    subject: Subject
    lives: tuple[Life, ...]


def draw(seed: int, lives: int = LIVES_A_PLAN, subject: Subject | None = None) -> Plan:
    """The plan of a seed. Seeds with the same last digit have the same subject."""
    dice = random.Random(seed)
    subject = subject or SUBJECTS[seed % len(SUBJECTS)]
    return Plan(seed, subject, tuple(_life(dice, subject) for _ in range(lives)))


def is_limit_alone(life: Life) -> bool:
    """Whether the only fault in a life is that a sink does not take one contract."""
    return life.trouble == "contract-limited" and not (life.faults or life.clock or life.damage)


def is_gap_alone(life: Life) -> bool:
    """Whether the only fault in a life is that a part cannot be read."""
    return (
        bool(life.faults)
        and {parse_fault(fault).kind for fault in life.faults} <= set(ODDITIES)
        and not (life.trouble or life.clock or life.damage)
    )


def _life(dice: random.Random, subject: Subject) -> Life:
    is_daemon = subject in ("run", "damage")
    api_faults = _API_FAULTS if subject != "backfill" else _API_FAULTS_ON_THE_PAST
    faults = [_some(dice, api_faults, 0.5), _some(dice, _SINK_FAULTS, 0.5 if is_daemon else 0.0)]
    end = dice.choices(("kill", "commit", "write", "term", "heal"), (10, 7, 1, 1, 1 if is_daemon else 0))[0]
    if end == "heal" and dice.random() < 0.5:
        fault = dice.choice((*_GAP_FAULTS, ""))
        return Life(end, faults=(fault,)) if fault else Life(end, trouble="contract-limited")
    return Life(
        end,  # type: ignore[arg-type]
        after_seconds=round(dice.uniform(0.0, 0.6), 3),
        is_from_work=dice.random() < 0.8,
        at=dice.randint(1, 4 if end == "write" else 40),
        is_before=dice.random() < 0.5,
        faults=tuple(fault for fault in faults if fault),
        trouble=dice.choice(_TROUBLES_OF[subject]) if dice.random() < 0.3 else "",
        entries=(dice.randint(0, 120), dice.randint(0, 120)),
        late_seconds=dice.choice((0.0, 0.0, 0.7)),
        clock=_clock(dice) if is_daemon else (),
        damage=_damage(dice) if subject == "damage" and dice.random() < 0.3 else None,
    )


def _some(dice: random.Random, faults: tuple[str, ...], share: float) -> str:
    fault = dice.choice(faults)
    return fault if dice.random() < share else ""


def _clock(dice: random.Random) -> tuple[tuple[float, float], ...]:
    """Mostly right. Otherwise wrong from the start, or from some moment on, or both one after the other."""
    steps = dice.choices(((), (0.0,), (0.8,), (0.0, 0.9)), (14, 2, 2, 1))[0]
    return tuple((at, dice.choice(_CLOCKS)) for at in steps)


def _damage(dice: random.Random) -> Damage:
    is_cut = dice.random() < 0.4
    places = tuple(round(dice.random(), 6) for _ in range(1 if is_cut else dice.choice((1, 8, 64))))
    return Damage(dice.choice(("", "", "-wal")), is_cut, places)  # type: ignore[arg-type]
