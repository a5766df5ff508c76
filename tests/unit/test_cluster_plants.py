"""Deliberate mistakes of a cluster: a scenario with two replicas on one database shows each mistake, and nothing without it.

`make soak ARGS="--cluster --plant NAME"` finds the same mistakes with three real processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from poller.core.errors import LeaseLostError
from poller.core.identity import IDENTITY_BYTES
from poller.core.windows import Window
from poller.store.rows import Prepared, WindowRead
from tests.faults.cluster_plants import counter_as_token, cursor_over_sequence, unlooked_fence, unseen_before_lock
from tests.states import NOW, START, claim_all, commit, enrolled, events, settle, waiting

pytestmark = pytest.mark.backends("postgres")
Two = tuple[Any, Any]


@pytest.fixture
def two(opened: Callable[[], Any]) -> Iterator[Two]:
    one, other = enrolled(opened()), opened()
    one.contracts.enrol(["1", "2"], "default", START, START)
    yield one, other
    one.close()
    other.close()


def expire(state: Any) -> None:
    query = "UPDATE replicas SET expires_at = clock_timestamp() - interval '1 second' WHERE token = %s"
    state._database.write(lambda connection: connection.execute(query, (state._joined().token,)))


def read(*numbers: int) -> WindowRead:
    new = events(*numbers)
    return WindowRead(Window(START, START + 60), new, len(new), NOW, advance_to=START + 60)


def books_of(state: Any) -> list[str]:
    """The books that do not balance, and whether an identity is in the ledger twice."""
    query = "SELECT contract, identities FROM ledger WHERE use_id = %s"
    rows = state._database.read(lambda connection: connection.execute(query, (state._use,), binary=True).fetchall())
    found = [
        (contract, bytes(blob[at : at + IDENTITY_BYTES]))
        for contract, blob in rows
        for at in range(0, len(blob), IDENTITY_BYTES)
    ]
    return [*state.overview().imbalances(), *(["TWICE in the ledger"] if len(found) > len(set(found)) else [])]


def a_zombie_settles(two: Two) -> list[str]:
    """One replica hangs in a send. Meanwhile the other one delivers the same batch."""
    one, other = two
    commit(one, events(1, 2))
    place = one.outbox.take("out")
    place.batch(10, 10**6)
    expire(one)
    commit(other, events(1, 2, 3))
    settle(other, "out", 3, now=NOW)
    with suppress(LeaseLostError):
        place.settle(2, now=NOW)
    place.release()
    return books_of(other)


def two_deliver(two: Two) -> list[str]:
    """Two replicas with a contract each: if one settles its events, those of the other still wait."""
    one, other = two
    (first,) = one.contracts.share(["1", "2"])[:1]
    other.contracts.share(["1", "2"])
    one.contracts.share(["1", "2"])
    (second,) = other.contracts.share(["1", "2"])
    commit(one, events(1), contract=first)
    commit(other, events(2), contract=second)
    settle(other, "out", 1, now=NOW)
    return [] if waiting(one, "out") == [1] else ["LOST"]


def the_end_of_the_log_is_lost(two: Two) -> list[str]:
    """A failover to a standby without the rows of the replicas: both join again, and share the contracts."""
    one, other = two
    one.contracts.share(["1", "2"])
    other.contracts.share(["1", "2"])

    def lose(connection: Any) -> None:
        connection.execute("DELETE FROM replicas WHERE use_id = %s", (one._use,))
        connection.execute("DELETE FROM facts WHERE use_id = %s", (one._use,))

    one._database.write(lose)
    other._joined().renew()
    one._joined().renew()
    one.contracts.share(["1", "2"])
    other.contracts.share(["1", "2"])
    first, second = ({claim.row.contract for claim in claim_all(state, ["1", "2"])} for state in two)
    return ["two replicas collect one contract"] if first & second else []


def a_zombie_commits(two: Two) -> list[str]:
    """One replica has read a window and hangs. Meanwhile the other one collects the same entries."""
    one, other = two
    claim = one.contracts.claim("1")
    with suppress(LeaseLostError):
        claim.commit(read(1, 2), Prepared)
    claim.release()
    return books_of(other)


def take_over(two: Two) -> None:
    one, other = two
    expire(one)
    commit(other, events(1, 2))


PLANTED = {
    "unlooked-fence": (unlooked_fence, a_zombie_settles, "delivered"),
    "cursor-over-sequence": (cursor_over_sequence, two_deliver, "LOST"),
    "counter-as-token": (counter_as_token, the_end_of_the_log_is_lost, "two replicas"),
    "unseen-before-lock": (unseen_before_lock, a_zombie_commits, "TWICE"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_mistake_of_a_cluster_put_in_on_purpose_is_found(
    two: Two, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    plant, scenario, what = PLANTED[name]
    options: dict[str, Any] = {"between": partial(_once, two)} if plant is unseen_before_lock else {}
    plant(monkeypatch.setattr, **options)
    assert what in " ".join(scenario(two))


def _once(two: Two) -> None:
    """The other replica takes over between the decision and the commit. Its own commit is not interrupted."""
    if not two[1]._replica:
        take_over(two)


@pytest.mark.parametrize("name", PLANTED)
def test_without_the_mistake_the_same_replicas_show_nothing(
    two: Two, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    scenario = PLANTED[name][1]
    if scenario is a_zombie_commits:
        from poller.store.postgres.contracts import Claim

        real = Claim._commit
        monkeypatch.setattr(Claim, "_commit", lambda self, *args: (_once(two), real(self, *args))[1])
    assert scenario(two) == []
