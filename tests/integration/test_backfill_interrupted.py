"""`backfill` is killed, stopped, cut off or started twice. The same command then continues, and every entry is there once."""

from __future__ import annotations

import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.exporting import (
    AT_ONCE,
    LOGGING,
    LOKI,
    SMALL_WINDOWS,
    ago,
    assert_complete,
    assert_exported,
    backfill,
    balanced,
    books,
    configure,
    everything,
)
from tests.integration.fetching import FIRST, SECOND, Bench, Starter, finish, finished, same
from tests.support import wait_until

KILLS, FEWER_KILLS = 20, 8
BATCH_EVENTS = 100
RANGE = ("--from", "2h", "--to", "0m")


def interrupt(place: Bench, order: tuple[str, ...], after_requests: int, number: signal.Signals) -> int:
    """Start it, and send signal `number` after `after_requests` requests for entries.  Returns: its exit code."""
    log = place.directory / "stderr"
    before = place.requests()
    with log.open("ab") as stderr:
        process = place.start("backfill", *order, env=SMALL_WINDOWS, stderr=stderr, stdout=subprocess.DEVNULL)
    wait_until(
        lambda: place.requests() >= before + after_requests or process.poll() is not None, 30, what="it is under way"
    )
    process.send_signal(number)
    code = process.wait(30)
    finished(code, b"", log.read_bytes())  # checks that it has no traceback
    return code


def kill_often(place: Bench, order: tuple[str, ...], seed: int, kills: int) -> None:
    """Kill it at random moments, then let it finish."""
    dice = random.Random(seed)
    for number in range(kills):
        code = interrupt(place, order, dice.randint(0, 18), signal.SIGKILL)
        assert code == -signal.SIGKILL, f"it was over before kill {number}: more entries are needed"
    backfill(place, *order, env=SMALL_WINDOWS)


@pytest.mark.parametrize(("name", "kills"), [("export.ndjson", KILLS), ("export.ndjson.gz", FEWER_KILLS)])
def test_killed_at_random_moments_the_file_has_every_entry_once_and_each_line_whole(
    bench: Starter, name: str, kills: int
) -> None:
    place = bench(events=12_000, faults=("latency:5ms",))
    kill_often(place, (*RANGE, "--output", name), seed=4, kills=kills)
    assert assert_exported(place.directory / name, place.simulator) == 24_000


def test_killed_at_random_moments_sinks_have_every_entry_and_what_repeats_is_the_batch_in_flight(
    bench: Starter,
) -> None:
    place = bench(events=12_000, faults=("latency:5ms",))
    configure(place, LOGGING, LOKI, batch_events=str(BATCH_EVENTS))
    kill_often(place, (*RANGE, "--sink", LOGGING, "--sink", LOKI), seed=5, kills=FEWER_KILLS)
    logging_books, loki_books = (place.simulator.books(name) for name in (LOGGING, LOKI))
    assert (logging_books.lost, logging_books.invented) == (0, 0)
    assert logging_books.repeated <= FEWER_KILLS * BATCH_EVENTS
    # Loki drops exact repeats.
    assert loki_books[1:] == (24_000, 0, 0, 0)


def test_ctrl_c_ends_it_with_130_and_a_word_on_how_to_go_on(bench: Starter) -> None:
    place = bench(events=3000, faults=("latency:20ms",))
    order = (*RANGE, "--output", "x")
    for number in (signal.SIGINT, signal.SIGTERM):
        assert interrupt(place, order, 10, number) == 130
        assert not (place.directory / "x").exists()
    told = [line for line in (place.directory / "stderr").read_text().splitlines() if not line.startswith("{")]
    assert len(told) == 2
    assert all("not complete" in line and "same command again" in line for line in told)
    place.simulator.set_faults([])
    run = backfill(place, *order, env=SMALL_WINDOWS)
    assert_exported(place.directory / "x", place.simulator)
    assert books(run) == balanced(6000, "output")


def refuse(place: Bench) -> None:
    place.simulator.set_faults(["500"])


def hang_up(place: Bench) -> None:
    place.simulator.set_faults(["reset"])


def expire(place: Bench) -> None:
    place.simulator.change_settings(token="another")


@pytest.mark.parametrize(("trouble", "codes"), [(refuse, {1}), (hang_up, {1}), (expire, {1, 3})])
def test_with_the_api_down_in_the_middle_it_ends_and_later_goes_on_where_it_was(
    bench: Starter, trouble: Callable[[Bench], None], codes: set[int]
) -> None:
    # With an expired token the code is 3 if no contract was finished before, otherwise 1.
    # A complete export, to count its requests.
    whole = bench(events=3000)
    backfill(whole, *RANGE, "--output", "x", env=SMALL_WINDOWS)

    place = bench(events=3000, faults=("latency:20ms",))
    order = (*RANGE, "--output", "x")
    process = place.start("backfill", *order, env={**SMALL_WINDOWS, **AT_ONCE})
    wait_until(lambda: place.requests() >= whole.requests() * 2 // 3, 30, what="most of it is read")
    trouble(place)
    run = finish(process)
    assert run.code in codes, run.stderr[-2000:]
    assert "not complete: run the same command again to go on where it stopped" in run.told
    assert not (place.directory / "x").exists()

    place.simulator.set_faults([])
    place.simulator.change_settings(token="demo-token")
    before = place.requests()
    run = backfill(place, *order, env=SMALL_WINDOWS)
    assert_exported(place.directory / "x", place.simulator)
    # Committed spans are not requested again.
    assert place.requests() - before <= whole.requests() * 2 // 3
    assert books(run) == balanced(6000, "output")


def test_it_is_not_complete_before_every_contract_that_it_began_with_is(bench: Starter) -> None:
    place = bench()
    order = ("--from", "2h", "--to", "0m", "--output", "out.ndjson")
    place.simulator.set_faults([f"contract={SECOND}:503"])
    assert place.run("backfill", *order, env=AT_ONCE).code == 1
    place.simulator.change_settings(unlisted=(SECOND,))
    again = place.run("backfill", *order, env=AT_ONCE)
    assert again.code == 1
    assert any(str(SECOND) in line and "does not list it any more" in line for line in again.told)
    assert not (place.directory / "out.ndjson").exists()
    place.simulator.set_faults([])
    place.simulator.change_settings(unlisted=())
    assert place.run("backfill", *order).code == 0
    same((place.directory / "out.ndjson").read_bytes().splitlines(), place.oracle())


def test_an_age_means_the_same_range_after_an_interruption(bench: Starter) -> None:
    place = bench(events=100, faults=(f"contract={SECOND}:500",))
    order = ("--from", "2h", "--to", "0m", "--output", "x")
    backfill(place, *order, code=1, env=AT_ONCE)
    place.simulator.set_faults([])
    # Later than the end of the first run, so in another range.
    place.simulator.add_entries(SECOND, count=1)
    backfill(place, *order)
    had = list((place.directory / "x").read_bytes().splitlines())
    assert_complete(had, [line for line in everything(place.simulator) if line in set(had)])
    assert len(had) == 200


def test_restart_begins_anew_in_the_middle(bench: Starter) -> None:
    place = bench(events=500, faults=(f"contract={SECOND}:500",))
    order = (*RANGE, "--output", "x")
    backfill(place, *order, code=1, env=AT_ONCE)
    place.simulator.set_faults([])
    place.simulator.add_entries(FIRST, count=7, at=ago(600))
    backfill(place, *order, "--restart")
    assert assert_exported(place.directory / "x", place.simulator) == 1007


def test_the_partial_file_gone_is_told_and_restart_helps(bench: Starter) -> None:
    place = bench(events=500, faults=(f"contract={SECOND}:500",))
    order = (*RANGE, "--output", "x")
    backfill(place, *order, code=1, env=AT_ONCE)
    place.simulator.set_faults([])
    (part,) = place.directory.glob("x.*.part")
    part.unlink()
    run = backfill(place, *order, code=2)
    assert len(run.told) == 1
    assert "--restart begins anew" in run.told[0]
    backfill(place, *order, "--restart")
    assert assert_exported(place.directory / "x", place.simulator) == 1000


def test_the_same_order_twice_at_a_time_is_refused_and_another_is_not(bench: Starter) -> None:
    place = bench(events=500, faults=("path=entries:latency:20ms",))
    order = (*RANGE, "--output", "x")
    process = place.start("backfill", *order, env=SMALL_WINDOWS)
    wait_until(place.requests, 30, what="it is under way")
    process.send_signal(signal.SIGSTOP)
    for extra in ((), ("--restart",)):
        run = place.run("backfill", *order, *extra)
        assert run.code == 4, run.stderr
        assert len(run.told) == 1
        assert f"another process holds this state (process {process.pid})" in run.told[0]
    backfill(place, *RANGE, "--contract", str(FIRST), "--output", "y")
    assert_complete((place.directory / "y").read_bytes().splitlines(), place.oracle(FIRST))
    process.send_signal(signal.SIGCONT)
    assert finish(process).code == 0
    assert_exported(place.directory / "x", place.simulator)


def test_two_orders_with_one_output_do_not_mix(bench: Starter) -> None:
    place = bench(events=500, faults=(f"contract={SECOND}:500",))
    backfill(place, *RANGE, "--output", "x", code=1, env=AT_ONCE)
    place.simulator.set_faults([])
    backfill(place, *RANGE, "--contract", str(SECOND), "--output", "x")
    run = backfill(place, *RANGE, "--output", "x", code=1)
    assert [line for line in run.told if "exists already" in line and "the complete export is in" in line]
    assert_complete((place.directory / "x").read_bytes().splitlines(), place.oracle(SECOND))
    (part,) = Path(place.directory).glob("x.*.part")
    assert_complete(part.read_bytes().splitlines(), everything(place.simulator))
