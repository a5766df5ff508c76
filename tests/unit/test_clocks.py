"""A clock that is set while a window is read: the watermark goes only as far as both clocks agree throughout."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from poller.config import Config
from poller.core.answers import Page
from poller.core.listing import ContractList
from poller.core.windows import Window
from poller.pipeline.collect import Collector
from poller.store.sqlite import State

NOW = 1_800_000_000
HOURS = 7200


class Clocks:
    """The API, whose clock is right, and our clock: `ahead` of it at first, and set to `then` when a page is read."""

    def __init__(self, ahead: int, then: int) -> None:
        self.ahead = ahead
        self.then = then
        self.clock_skew_seconds = 0.0

    def time(self) -> float:
        return NOW + self.ahead

    def _answered(self) -> None:
        self.clock_skew_seconds = float(self.ahead)

    def contracts(self) -> ContractList:
        self._answered()
        return ContractList(["1"])

    def page(self, contract: str, window: Window, offset: int, limit: int, *, is_retried: bool = True) -> Page:
        self.ahead = self.then
        self._answered()
        return Page((), 0, is_capped=False, weight_bytes=0, is_mended=False)


@pytest.mark.parametrize("ahead", [0, HOURS, -HOURS])
@pytest.mark.parametrize("then", [0, HOURS, -HOURS, 90])
@pytest.mark.parametrize("is_set_before", [False, True])
def test_a_clock_that_is_set_while_a_window_is_read_does_not_carry_the_watermark_into_the_future(
    tmp_path: Path, ahead: int, then: int, is_set_before: bool
) -> None:
    clocks = Clocks(ahead, then)
    accounts: dict[str, Any] = {"default": clocks}
    state = State.open(tmp_path, "run")
    collector = Collector(state, accounts, Config(), stop=threading.Event(), clock=clocks.time)
    collector.discover(since=NOW - 600)
    if is_set_before:  # not noticed yet, because no answer came since
        clocks.ahead = then
    collector.collect("1")
    row = state.contracts.get("1")
    assert row is not None
    assert row.watermark <= NOW
    collector.close()
    state.close()
