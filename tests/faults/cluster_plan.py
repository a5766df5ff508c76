"""The faults of replicas and their database, drawn from a seed before anything is started. Pure.

A plan is a row of steps. In each step faults strike, all at once or shortly after each other; then everything must recover by
itself. Entries come in all the time.
"""

from __future__ import annotations

import random
from typing import Literal, NamedTuple, get_args

Kind = Literal[
    "kill",  # `kill -9` of a replica
    "freeze",  # SIGSTOP for longer than the lease, then SIGCONT
    "pause",  # the same, for less than the lease
    "term",  # SIGTERM to a replica, and a start
    "cut",  # the connections of a replica to the database break
    "cut-all",  # the connections of all replicas break
    "away",  # a replica cannot reach the database
    "stall",  # the connections of a replica carry nothing and do not break, for longer than the lease
    "hiccup",  # the same for all replicas, for less than the lease
    "lose-answers",  # COMMITs of entries and places are carried out, and their connections break before the answer
    "lose-leases",  # the same for COMMITs about replicas and leases
    "database-kill",  # `kill -9` of all processes of the server, and a start
    "database-restart",  # an orderly stop, and a start
    "fail-over",  # an asynchronous standby without the last commits is promoted
    "pooler-kill",  # `kill -9` of PgBouncer, and a start
    "rolling",  # the next replica is replaced, as in an upgrade
]
KINDS: tuple[Kind, ...] = get_args(Kind)
REPLICAS = 3
STEPS_A_PLAN = 20

_WEIGHTS: dict[Kind, int] = {
    "kill": 8,
    "freeze": 5,
    "pause": 1,
    "term": 2,
    "cut": 3,
    "cut-all": 2,
    "away": 2,
    "stall": 3,
    "hiccup": 1,
    "lose-answers": 8,
    "lose-leases": 2,
    "database-kill": 5,
    "database-restart": 2,
    "fail-over": 5,
}
# At most one of these in a step: they replace the server, or need it.
_OF_THE_SERVER = ("database-kill", "database-restart", "fail-over", "pooler-kill")


class Fault(NamedTuple):
    """A fault: of which replica, for how many seconds. `count` is the number of answers to lose, or varies the moment."""

    kind: Kind
    replica: int = 0
    seconds: float = 0.0
    count: int = 1


class Step(NamedTuple):
    """Faults that strike together: the first at once, each other one `gap_seconds` after the one before it."""

    faults: tuple[Fault, ...]
    gap_seconds: float = 0.0


class ClusterPlan(NamedTuple):
    """Steps one after the other, on one database. `server`: the programs of Debian or of the wheel."""

    seed: int
    subject: str
    steps: tuple[Step, ...]
    server: Literal["debian", "wheel"] = "debian"
    is_pooled: bool = False
    is_held: bool = False
    """Whether a transaction with an old snapshot stays open all the time."""
    contracts: int = 6
    lease_seconds: int = 3
    interval_seconds: int = 2
    overlap: str = "10m"
    """With "0s" nothing is read twice. A second read would hide some mistakes."""


def draw_cluster(seed: int, steps: int = STEPS_A_PLAN) -> ClusterPlan:
    """The plan of a seed."""
    dice = random.Random(seed)
    is_pooled = seed % 3 == 1
    weights = _WEIGHTS | ({"pooler-kill": 4} if is_pooled else {})
    return ClusterPlan(
        seed,
        "cluster",
        tuple(_step(dice, weights) for _ in range(steps)),
        server="wheel" if seed % 4 == 3 else "debian",
        is_pooled=is_pooled,
        is_held=seed % 3 == 2,
        overlap="0s" if seed % 2 else "10m",
    )


def rolling_restart(seed: int, rounds: int = 3) -> ClusterPlan:
    """All replicas are replaced one after the other, `rounds` times, without other faults."""
    steps = tuple(Step((Fault("rolling", number),)) for _ in range(rounds) for number in range(REPLICAS))
    return ClusterPlan(seed, "rolling restart", steps, lease_seconds=15, interval_seconds=5)


def _step(dice: random.Random, weights: dict[Kind, int]) -> Step:
    kinds = dice.choices(list(weights), list(weights.values()), k=dice.choice((1, 1, 2, 3)))
    first = next((kind for kind in kinds if kind in _OF_THE_SERVER), None)
    chosen = [kind for kind in kinds if kind == first or kind not in _OF_THE_SERVER]
    if first is not None:  # keep it once
        chosen = [kind for kind in chosen if kind != first] + [first]
    return Step(tuple(_fault(dice, kind) for kind in chosen), round(dice.choice((0.0, 0.3, 1.0)), 1))


def _fault(dice: random.Random, kind: Kind) -> Fault:
    seconds = {
        "freeze": dice.uniform(3.5, 6.0),
        "pause": dice.uniform(0.3, 2.0),
        "away": dice.uniform(1.0, 5.0),
        "stall": dice.uniform(3.5, 6.0),
        "hiccup": dice.uniform(0.3, 2.0),
        "database-kill": dice.uniform(0.0, 4.0),
        "fail-over": dice.uniform(0.3, 2.0),
    }.get(kind, 0.0)
    return Fault(kind, dice.randrange(REPLICAS), round(seconds, 1), dice.randint(1, 6))
