"""Tokens that expire: they are reported in time and again later, and shown until they are removed."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Gauge

from poller.service.tokens import TokenWatch

NOW = 1_777_593_600.0
HOUR, DAY = 3600.0, 86_400.0


class Watch:
    """A watch, with a clock and tokens that a test changes."""

    def __init__(self, **expiries: float) -> None:
        self.now = NOW
        self.expiries: dict[str, float | None] = {**expiries}
        self._registry = CollectorRegistry()
        self.gauge = Gauge("expires", "", ["account"], registry=self._registry)
        self.watch = TokenWatch(lambda: dict(self.expiries), self.gauge, lambda: self.now)

    def shown(self, account: str) -> float | None:
        return self._registry.get_sample_value("expires", {"account": account})


def warnings(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    told = [(record.message, str(vars(record)["account"])) for record in caplog.records]
    caplog.clear()
    return told


def test_what_expires_within_two_weeks_is_told_at_once_and_then_every_six_hours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokens = Watch(late=NOW + 15 * DAY, soon=NOW + 13 * DAY, past=NOW - 1)
    expected = [("token.expires_soon", "soon"), ("token.expired", "past")]
    tokens.watch.look()
    assert warnings(caplog) == expected
    for seconds, told in ((60, []), (5.9 * HOUR, []), (6 * HOUR, expected), (6.1 * HOUR, [])):
        tokens.now = NOW + seconds
        tokens.watch.look()
        assert warnings(caplog) == told, seconds
    assert (tokens.shown("late"), tokens.shown("past")) == (NOW + 15 * DAY, NOW - 1)


def test_a_new_token_that_expires_soon_too_is_told_at_once(caplog: pytest.LogCaptureFixture) -> None:
    tokens = Watch(prod=NOW + DAY)
    tokens.watch.look()
    warnings(caplog)
    tokens.expiries = {"prod": NOW + 2 * DAY}
    tokens.watch.look()
    assert warnings(caplog) == [("token.expires_soon", "prod")]
    assert tokens.watch.expiries == {"prod": NOW + 2 * DAY}
    tokens.expiries = {"prod": NOW + 90 * DAY}
    tokens.watch.look()
    assert warnings(caplog) == []
    assert tokens.shown("prod") == NOW + 90 * DAY


def test_when_a_token_expires_is_shown_no_more_when_its_successor_does_not_say(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokens = Watch(prod=NOW + DAY, test=NOW + 2 * DAY)
    tokens.watch.look()
    tokens.expiries = {"prod": None, "test": NOW + 2 * DAY}
    tokens.watch.look()
    assert (tokens.shown("prod"), tokens.shown("test")) == (None, NOW + 2 * DAY)
    assert tokens.watch.expiries == {"test": NOW + 2 * DAY}
    after_a_reload = TokenWatch(lambda: {"test": None}, tokens.gauge, lambda: NOW)
    after_a_reload.look()
    assert tokens.shown("test") is None
    tokens.expiries = {"prod": NOW + 90 * DAY}
    tokens.watch.look()
    assert tokens.shown("prod") == NOW + 90 * DAY


def test_while_the_file_of_a_token_cannot_be_read_the_one_in_use_goes_on_to_be_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokens = Watch(prod=NOW + DAY)
    tokens.watch.look()
    warnings(caplog)
    tokens.expiries = {}
    for now, told in ((NOW + 60, []), (NOW + 6 * HOUR, [("token.expires_soon", "prod")])):
        tokens.now = now
        tokens.watch.look()
        assert (tokens.shown("prod"), tokens.watch.expiries) == (NOW + DAY, {"prod": NOW + DAY})
        assert warnings(caplog) == told


def test_the_warning_names_every_place_that_a_token_may_come_from(caplog: pytest.LogCaptureFixture) -> None:
    Watch(prod=NOW + DAY).watch.look()
    (record,) = caplog.records
    assert all(place in str(vars(record)["hint"]) for place in ("file", "the environment", "LoadCredential="))
