"""When jobs are due, also if the clock was set while the daemon ran."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from poller.service.triggers import Every

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


def due_times(trigger: Every, first: datetime, now: datetime) -> list[datetime]:
    """The due times that the scheduler goes through at `now`, and the next one, which it then plans."""
    found = [first]
    while found[-1] <= now and len(found) < 100:
        found.append(trigger.get_next_fire_time(found[-1], now))
    return found


@pytest.mark.parametrize("is_spread", [False, True])
@pytest.mark.parametrize(
    "missed", [timedelta(seconds=61), timedelta(days=1), timedelta(days=366), timedelta(days=36_600)]
)
def test_a_clock_set_forward_costs_one_run_however_far(missed: timedelta, is_spread: bool) -> None:
    trigger = Every(60, is_spread=is_spread)
    missed_run, planned = due_times(trigger, NOW, NOW + missed)
    assert missed_run == NOW
    assert timedelta(0) < planned - (NOW + missed) <= timedelta(seconds=60)


def test_a_run_on_time_is_followed_one_interval_later() -> None:
    trigger = Every(60)
    assert trigger.get_next_fire_time(None, NOW) == NOW
    assert trigger.get_next_fire_time(NOW, NOW) == NOW + timedelta(seconds=60)
    assert trigger.get_next_fire_time(NOW, NOW + timedelta(seconds=2)) == NOW + timedelta(seconds=60)
    assert trigger.get_next_fire_time(NOW, NOW + timedelta(seconds=60)) == NOW + timedelta(seconds=120)
    assert Every(0.2).get_next_fire_time(NOW, NOW) == NOW + timedelta(seconds=1), "never more often than that"


def test_after_a_missed_run_the_pace_stays_what_it_was() -> None:
    assert Every(60).get_next_fire_time(NOW, NOW + timedelta(seconds=200)) == NOW + timedelta(seconds=240)


def test_contracts_found_together_are_polled_apart_from_the_second_poll_on() -> None:
    seconds = {(Every(60, is_spread=True).get_next_fire_time(NOW, NOW) - NOW).total_seconds() for _ in range(50)}
    assert len(seconds) == 50
    assert 6 <= min(seconds) <= max(seconds) <= 60
    trigger = Every(60, is_spread=True)
    second = trigger.get_next_fire_time(NOW, NOW)
    assert trigger.get_next_fire_time(NOW, NOW) == second  # the scheduler asks twice and uses the second answer
    assert trigger.get_next_fire_time(second, second) == second + timedelta(seconds=60)
