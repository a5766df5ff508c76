"""Progress: after at most three polls, all entries that can be read are collected, despite any other faults.

Two planted mistakes must be found by the same checks: a forgotten gap, and a gap that stops the watermark.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from poller.config import Config
from poller.core.answers import Page, Unreadable
from poller.core.errors import AuthError, RejectedError, TransientError
from poller.core.events import Event
from poller.core.identity import IDENTITY_BYTES
from poller.core.listing import ContractList
from poller.core.windows import Window
from poller.pipeline.collect import Collector, Prepared
from poller.store.rows import Prepare, WindowRead
from poller.store.sqlite import State
from poller.store.sqlite.contracts import Claim

NOON = 1_800_000_000
SPAN = 240
MOST = 30  # maximum number of entries that the API serves of a window
REFUSALS = ("refused", "denied", "failing")
KINDS = ("refused", "denied", "failing", "dense", "unreadable", "null", "miscounted")


class Api:
    """An API with an entry a second. `bad` maps faulty seconds, counted from the beginning, to the kind of fault."""

    clock_skew_seconds = 0.0

    def __init__(self, bad: Mapping[int, str], oldest: int) -> None:
        self.bad = {NOON + second: kind for second, kind in bad.items()}
        self.oldest = NOON + oldest
        self.requests = 0

    def hanging_count(self) -> int:
        return 0

    def contracts(self) -> ContractList:
        return ContractList(["1"])

    def page(self, contract: str, window: Window, offset: int, limit: int, *, is_retried: bool = True) -> Page:
        self.requests += 1
        inside = {kind for second, kind in self.bad.items() if window.start <= second < window.end}
        if window.start < self.oldest or "refused" in inside:
            raise RejectedError("refused", status=400)
        if "denied" in inside:
            raise AuthError("denied", is_denied=True)
        if "failing" in inside:
            raise TransientError("failing", status=500)
        if offset + limit > MOST:
            raise RejectedError("too large", status=400)
        shown = [
            entry(second, number)
            for second in range(max(window.start, NOON), window.end)[::-1]
            for number in range(MOST * 2 if self.bad.get(second) == "dense" else 1)
        ]
        events: list[Event] = []
        unreadable = []
        for event in shown[offset : offset + limit]:
            kind = self.bad.get(event.time_us // 1_000_000)
            if kind in ("unreadable", "null"):
                second = event.time_us // 1_000_000 if kind == "unreadable" else None
                unreadable.append(Unreadable(len(events), b"null", "no entry", second))
            else:
                events.append(event)
        total = len(shown) + ("miscounted" in inside)
        return Page(tuple(events), total, False, 2 * len(events), False, tuple(unreadable))


def entry(second: int, number: int) -> Event:
    return Event(second * 1_000_000 + number, b"%010d%06d" % (second, number), b"{}")


def after_polls(api: Api, polls: int) -> list[int]:
    """Poll and check the results.  Returns: how many requests each poll took."""
    kept: list[bytes] = []
    requests: list[int] = []

    def prepare(contract: str, events: Any) -> Prepared:
        kept.extend(event.identity for event in events)
        return Prepared(events)

    with tempfile.TemporaryDirectory() as directory:
        state = State.open(Path(directory), "run")
        now = [NOON + SPAN]
        config = Config()
        limits = msgspec.structs.replace(config.api, page_size=10, result_window=MOST)
        poll = msgspec.structs.replace(config.poll, initial_lookback_seconds=SPAN)
        accounts: dict[str, Any] = {"default": api}
        collector = Collector(
            state,
            accounts,
            msgspec.structs.replace(config, api=limits, poll=poll),
            stop=threading.Event(),
            prepare=prepare,
            clock=lambda: now[0],
        )
        try:
            collector.discover()
            for _ in range(polls):
                before = api.requests
                collector.collect("1")
                requests.append(api.requests - before)
                now[0] += 60
            overview = state.overview()
            assert overview.imbalances() == []
            check(api, kept, overview, now[0] - 60)
        finally:
            collector.close()
            state.close()
    return requests


def check(api: Api, kept: list[bytes], overview: Any, now: int) -> None:
    """Check that all readable entries were kept once, that the rest is in gaps, and that the watermark moves on."""
    assert len(set(kept)) == len(kept)
    assert all(len(identity) == IDENTITY_BYTES for identity in kept)
    wrong = {second for second in range(NOON, now) if second in api.bad or second < api.oldest}
    missing = {second for second in range(NOON, now) if entry(second, 0).identity not in kept} - wrong
    assert not missing, "readable, and not delivered"
    named = {second for gap in overview.gaps for second in range(gap.start, gap.end)}
    assert wrong <= named, "not readable, and not named"
    assert [row.watermark for row in overview.contracts] == [now], "it stands still"


# Without the last seconds: the last one stands for the present.
BAD = st.dictionaries(st.integers(0, SPAN - 5), st.sampled_from(KINDS), max_size=4)


@settings(max_examples=40, deadline=None)
@given(bad=BAD, oldest=st.just(0) | st.integers(0, SPAN - 20))
def test_after_three_polls_all_that_can_be_read_has_been_delivered(bad: dict[int, str], oldest: int) -> None:
    # A refused second shortly after the edge of another refused span can hide that edge, because few requests search for it.
    refused = [second for second, kind in bad.items() if kind in REFUSALS] + [oldest]
    assume(all(abs(one - other) > 40 for one, other in combinations(refused, 2)))
    after_polls(Api(bad, oldest), 3)


@pytest.mark.parametrize("kind", KINDS)
def test_each_that_is_wrong_stops_nothing_else(kind: str) -> None:
    after_polls(Api({77: kind}, 0), 3)


def forget(read: WindowRead, is_beside_gap: bool) -> WindowRead:
    return read._replace(unread=())


def hold(read: WindowRead, is_beside_gap: bool) -> WindowRead:
    return read._replace(advance_to=None) if is_beside_gap else read


@pytest.mark.parametrize(("mistake", "told"), [(forget, "not named"), (hold, "stands still")])
def test_a_planted_mistake_is_found(mistake: Any, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Claim.commit
    met: list[WindowRead] = []

    def commit(self: Claim, read: WindowRead, prepare: Prepare) -> Any:
        met.extend([read] if read.unread else [])
        return real(self, mistake(read, bool(met)), prepare)

    monkeypatch.setattr(Claim, "commit", commit)
    with pytest.raises(AssertionError, match=told):
        after_polls(Api({77: "dense"}, 0), 1)


@pytest.fixture(scope="module")
def usual_requests() -> list[int]:
    return after_polls(Api({}, 0), 24)


@pytest.mark.parametrize("kind", ["refused", "dense", "unreadable", "miscounted"])
def test_a_poll_beside_a_gap_costs_at_most_two_requests_more(kind: str, usual_requests: Sequence[int]) -> None:
    requests = after_polls(Api({77: kind}, 0), 24)
    pairs = zip(requests[1:], usual_requests[1:], strict=True)
    assert all(more <= usual + 2 for more, usual in pairs), (requests, usual_requests)
