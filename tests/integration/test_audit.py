"""`audit`, and the self-audit of `run`: missing entries are found, reported by contract and hour, and delivered once."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import time
from collections.abc import Mapping
from contextlib import closing
from datetime import datetime, timedelta

import pytest

from poller.store.sqlite.contracts import read_ranges
from poller.store.sqlite.database import Reader
from poller.store.sqlite.schema import with_functions
from tests.daemon import FIRST, LOGGING, LOKI, SECOND, Daemon, MakeDaemon
from tests.integration.exporting import DAY_SECONDS, HOUR_SECONDS, ago, hour_of, refused, text
from tests.integration.fetching import Bench, Run, Starter, finish, same
from tests.support import COMMAND, clean_environment, wait_until

DAYS = 3
HOURS = 4 * 24
SPAN = ("--from", "4d", "--to", "0m")
# The first poll collects everything. The self-audit of `run` is off: it has its own tests.
LOOKBACK = {"initial_lookback": '"4d"', "audit_interval": '"0s"'}


def in_that_hour(at: datetime) -> datetime:
    """The middle of the hour, so that further entries are in the same hour."""
    return at.replace(minute=30, second=0, microsecond=0)


LATE = 26 * HOUR_SECONDS  # longer than any overlap


def add_late(place: Bench | Daemon) -> tuple[str, str]:
    """Add entries that become visible a day late: one in one contract, three in the other.  Returns: their hours."""
    first, second = in_that_hour(ago(LATE)), in_that_hour(ago(LATE + 5 * HOUR_SECONDS))
    place.simulator.add_entries(FIRST, count=1, at=first)
    place.simulator.add_entries(SECOND, count=3, at=second, span_seconds=60)
    return hour_of(first), hour_of(second)


def audit(place: Bench, *args: str, code: int, env: Mapping[str, str] | None = None) -> Run:
    run = place.run("audit", *args, env=env)
    assert run.code == code, (run.code, run.lines, run.stderr[-2000:])
    return run


def rows(table: str) -> list[list[str]]:
    """The table of `audit` without its heading."""
    heading, *lines = table.splitlines()
    assert heading.split() == ["contract", "hour", "at", "API", "collected", "missing"]
    return [line.split() for line in lines]


def assert_told(table: str, hours: tuple[str, str]) -> None:
    """Check that the table has the entries of `add_late`, and nothing else."""
    found = rows(table)
    assert [(row[0], row[1], row[4]) for row in found] == [(str(FIRST), hours[0], "1"), (str(SECOND), hours[1], "3")]
    assert all(int(row[2]) == int(row[3]) + int(row[4]) for row in found)


# The use `fetch`


@pytest.fixture
def fetched(bench: Starter) -> Bench:
    """A place where `fetch` has collected the last three days of two contracts."""
    place = bench(events=600, span_seconds=DAYS * DAY_SECONDS)
    run = place.fetch("--since", "4d")
    assert run.code == 0, run.stderr
    same(run.lines, place.oracle())
    return place


def test_what_the_api_refuses_to_count_is_named_and_the_rest_is_compared(fetched: Bench) -> None:
    add_late(fetched)
    fetched.simulator.set_faults(["old:28h"])
    run = audit(fetched, *SPAN, code=1)
    assert [row[0] for row in rows(b"\n".join(run.lines).decode())] == [str(FIRST)]
    named = [line for line in run.stderr.splitlines() if "not compared" in line and "dateStart" in line]
    assert len(named) == 2
    answer = json.loads(audit(fetched, *SPAN, "--json", code=1).lines[0])
    assert [row["contract"] for row in answer["refused"]] == [str(FIRST), str(SECOND)]
    assert not answer["equal"]


def test_a_repair_ends_where_the_outbox_is_full_and_what_it_had_not_read_comes_with_the_next_fetch(
    fetched: Bench,
) -> None:
    for contract in (FIRST, SECOND):
        fetched.simulator.add_entries(contract, count=200, at=in_that_hour(ago(LATE)), span_seconds=60)
    small = {"IONOS_POLLER_OUTBOX__MAX_BYTES": "64KiB"}
    run = audit(fetched, *SPAN, "--repair", code=1, env=small)
    assert "the outbox is full" in run.stderr
    assert len(fetched.fetch().lines) == 400
    audit(fetched, *SPAN, code=0)


def test_an_audit_of_what_is_equal_costs_a_request_a_contract_and_one_for_its_open_hour(fetched: Bench) -> None:
    before = fetched.requests()
    run = audit(fetched, *SPAN, code=0)
    assert run.lines[0].startswith(b"equal: 2 contracts, ")
    assert fetched.requests() - before == 2 * 2
    assert fetched.requests("contracts") == 1, "those of `fetch`: audit asks for what was collected"


def test_a_clean_audit_prints_what_it_proves_and_names_what_it_does_not(fetched: Bench) -> None:
    run = audit(fetched, "--from", "4d", code=0)
    equal, heading, *lines = [line.decode().split() for line in run.lines]
    assert (equal[0], heading) == ("equal:", ["contract", "hours", "at", "API", "collected", "from", "to"])
    answer = json.loads(audit(fetched, "--from", "4d", "--json", code=0).lines[0])
    assert [row["contract"] for row in answer["contracts"]] == [str(FIRST), str(SECOND)]
    for line, row in zip(lines, answer["contracts"], strict=True):
        assert 0 < row["at_api"] == row["collected"] <= 600
        assert line[:4] == [row["contract"], str(row["hours"]), str(row["at_api"]), str(row["collected"])]
        assert DAYS * 24 <= row["hours"] <= 4 * 24 + 2
    (young,) = [line for line in run.told if line.startswith("not compared yet: ")]
    assert f"from {lines[0][-1]} on, younger than poll.overlap (10m)" in young


def test_late_entries_are_told_by_contract_and_hour_and_repaired_by_fetch_once(fetched: Bench) -> None:
    before = fetched.oracle()
    hours = add_late(fetched)
    requests = fetched.requests()
    run = audit(fetched, *SPAN, code=1)
    assert_told(b"\n".join(run.lines).decode(), hours)
    assert fetched.requests() - requests <= 2 * 9, "one hour of 96 is found by halves"
    data = json.loads(audit(fetched, *SPAN, "--json", code=1).lines[0])
    assert (data["use"], data["equal"]) == ("fetch", False)
    found = data["differences"]
    assert [(row["contract"], f"{row['from']}/{row['to']}", row["missing"]) for row in found] == [
        (str(FIRST), hours[0], 1),
        (str(SECOND), hours[1], 3),
    ]
    assert all(row["at_api"] == row["collected"] + row["missing"] for row in found)

    run = audit(fetched, *SPAN, "--repair", code=0)
    assert "4 entries collected, for the next `fetch` to deliver" in run.told
    assert "after repair: nothing is missing" in run.told
    run = fetched.fetch()
    assert run.code == 0, run.stderr
    same([*before, *run.lines], fetched.oracle())
    assert fetched.fetch().lines == []
    answer = json.loads(audit(fetched, *SPAN, "--json", code=0).lines[0])
    assert (answer["use"], answer["equal"], answer["differences"]) == ("fetch", True, [])
    assert answer["compared"]["from"].endswith(":00:00Z"), "whole hours"


def test_what_lies_before_collecting_began_is_named_and_no_difference(bench: Starter) -> None:
    place = bench(events=2000, contracts=1, span_seconds=DAY_SECONDS)
    first = place.fetch()
    assert first.code == 0, first.stderr
    for repair in ([], ["--repair"], []):
        run = audit(place, "--from", "24h", "--to", "1m", *repair, code=0)
        assert run.lines[0].startswith((b"equal: 1 contract, ", b"nothing was compared: all of it lies before"))
        (told,) = [line for line in run.told if line.startswith("not compared: ")]
        assert f"of contract {FIRST}; `ionos-poller backfill --from " in told
        count = int(told.split(" entries")[0].split()[-1].replace(",", ""))
        assert 1950 <= count <= 2000 - len(first.lines)
    answer = json.loads(audit(place, "--from", "24h", "--to", "1m", "--json", code=0).lines[0])
    ((before,), equal) = (answer["before_collecting"], answer["equal"])
    assert (before["contract"], before["is_exact"], equal, answer["differences"]) == (str(FIRST), True, True, [])
    assert 1950 <= before["at_api"] <= 2000 - len(first.lines)
    lines = place.run("backfill", "--from", before["from"], "--to", before["to"], "--output", "-").lines
    assert len(lines) == before["at_api"]

    began = json.loads(place.run("status", "--json").lines[0])["uses"]["fetch"]["contracts"][0]["origin"]
    assert datetime.fromisoformat(before["to"]).timestamp() == began
    # A span that `--since` added is compared from then on.
    assert place.fetch("--since", "12h").code == 0
    answer = json.loads(audit(place, "--from", "24h", "--to", "1m", "--json", code=0).lines[0])
    assert datetime.fromisoformat(answer["compared"]["from"]) < ago(11.9 * HOUR_SECONDS)
    assert answer["before_collecting"][0]["to"][:13] == answer["compared"]["from"][:13]
    # If the API cannot count the earlier entries, the audit still succeeds.
    place.simulator.set_faults(["contract=31960001:503:x1"])
    run = audit(place, "--from", "24h", "--to", "1m", code=0, env={"IONOS_POLLER_API__MAX_RETRIES": "0"})
    assert [line for line in run.told if "an unknown number of entries" in line]


def test_one_repair_completes_although_more_becomes_visible_while_it_is_done(fetched: Bench) -> None:
    """The second comparison finds more than the first. The command repairs this, too, before it ends."""
    hours = add_late(fetched)
    fetched.simulator.set_faults([f"contract={FIRST}:latency:300ms"])
    process = fetched.start("audit", *SPAN, "--repair", env={"IONOS_POLLER_LOG_LEVEL": "info"})
    assert process.stderr is not None
    assert any(b"window.collected" in line for line in process.stderr), "the first comparison is over, and repaired"
    fetched.simulator.add_entries(SECOND, count=2, at=in_that_hour(ago(LATE + 9 * HOUR_SECONDS)))
    run = finish(process)
    assert run.code == 0, run.stderr
    assert_told(b"\n".join(run.lines).decode(), hours)
    assert "after repair: nothing is missing" in run.told
    row = json.loads(fetched.run("status", "--json").lines[0])["uses"]["fetch"]["contracts"][1]
    assert (row["late"], row["repaired"]) == (0, 5)


def test_a_gap_is_named_and_not_compared_and_no_difference_once_it_is_accepted(bench: Starter) -> None:
    place = bench(events=100, contracts=1, span_seconds=5 * HOUR_SECONDS, result_window=50, total_cap=50)
    env = {"IONOS_POLLER_API__RESULT_WINDOW": "50", "IONOS_POLLER_API__PAGE_SIZE": "50"}
    dense = in_that_hour(ago(3 * HOUR_SECONDS))
    place.simulator.add_entries(FIRST, count=80, at=dense)
    assert place.fetch("--since", "6h", env=env).code == 1
    span = ("--from", "6h", "--to", "0m")
    run = audit(place, *span, "--repair", code=1, env=env)
    assert run.lines[0].startswith(b"equal: 1 contract, ")
    assert b"but for 1 gap of 1 s on " in run.lines[0]
    (told,) = [line for line in run.told if line.startswith("not compared: gap ")]
    assert f" of contract {FIRST}, {text(dense)}/" in told
    answer = json.loads(audit(place, *span, "--json", code=1, env=env).lines[0])
    ((gap,), equal) = (answer["gaps"], answer["equal"])
    assert (gap["contract"], gap["start"], gap["accepted"], equal) == (str(FIRST), text(dense), False, False)
    assert answer["differences"] == []
    assert place.run("gaps", "accept", str(gap["id"])).code == 0
    answer = json.loads(audit(place, *span, "--json", code=0, env=env).lines[0])
    assert (answer["equal"], answer["gaps"][0]["accepted"]) == (True, True)
    place.simulator.add_entries(FIRST, count=1, at=dense + timedelta(minutes=1))
    assert [row[4] for row in rows(b"\n".join(audit(place, *span, code=1, env=env).lines).decode())] == ["1"]


def test_what_is_too_young_for_any_comparison_is_said_to_be(fetched: Bench) -> None:
    before = fetched.requests()
    for as_json in ([], ["--json"]):
        env = {"IONOS_POLLER_POLL__OVERLAP": "2h"}
        run = fetched.run("audit", "--from", "9m", "--to", "0m", *as_json, env=env)
        assert run.code == 0
        nothing = json.loads(run.lines[0])["compared"] is None if as_json else run.lines[0].startswith(b"nothing was ")
        assert nothing, run.lines
    assert fetched.requests() == before


def test_where_every_hour_differs_an_audit_costs_at_most_one_request_an_hour(fetched: Bench) -> None:
    start = in_that_hour(ago(HOURS * HOUR_SECONDS))
    for hour in range(HOURS):
        fetched.simulator.add_entries(FIRST, count=1, at=start + timedelta(hours=hour))
    requests = fetched.requests()
    found = rows(b"\n".join(audit(fetched, *SPAN, "--contract", str(FIRST), code=1).lines).decode())
    assert len(found) >= HOURS - 3
    assert fetched.requests() - requests <= HOURS + 1, "and one to read the open hour"
    assert {row[0] for row in found} == {str(FIRST)}


def test_totals_that_are_capped_are_bisected(bench: Starter) -> None:
    place = bench(events=3000, contracts=1, span_seconds=DAY_SECONDS, total_cap=400, result_window=400)
    env = {"IONOS_POLLER_API__RESULT_WINDOW": "400"}
    assert len(place.fetch("--since", "2d", env=env).lines) == 3000
    before = place.requests()
    assert place.run("audit", "--from", "2d", "--to", "0m", env=env).code == 0
    assert place.requests() - before <= 24
    place.simulator.add_entries(FIRST, count=500, at=in_that_hour(ago(5 * HOUR_SECONDS)), span_seconds=600)
    run = place.run("audit", "--from", "2d", "--to", "0m", "--repair", env=env)
    assert run.code == 0, run.stderr
    assert [row[4] for row in rows(b"\n".join(run.lines).decode())] == ["500"]
    assert len(place.fetch(env=env).lines) == 500


def test_entries_that_the_api_does_not_show_any_more_differ_but_nothing_is_repaired(fetched: Bench) -> None:
    log = fetched.simulator.logs[FIRST]
    del log._times[100], log._refs[100]
    run = audit(fetched, *SPAN, "--repair", code=1)
    ((contract, _, at_api, collected, missing),) = rows(b"\n".join(run.lines).decode())
    assert (contract, int(collected) - int(at_api), missing) == (str(FIRST), 1, "0")
    assert fetched.fetch().lines == []


def test_what_is_older_than_the_ledger_remembers_is_told_and_not_repaired_twice(fetched: Bench) -> None:
    """The ledger keeps their counts, so they are compared. A repair would deliver them twice."""
    with sqlite3.connect(fetched.database) as connection:
        connection.execute("UPDATE ledger SET forgotten = length(identities) / 16, identities = x''")
    connection.close()
    assert audit(fetched, *SPAN, code=0).lines[0].startswith(b"equal")
    hours = add_late(fetched)
    run = audit(fetched, *SPAN, "--repair", code=1)
    assert_told(b"\n".join(run.lines).decode(), hours)
    assert [line for line in run.told if "ledger_retention" in line and "backfill" in line]
    assert "after repair: 4 missing" in run.told
    # No span is queued to be read again.
    with closing(Reader(fetched.database)) as reader, reader.reading() as connection:
        assert read_ranges(connection) == []


def test_what_may_still_be_on_its_way_is_not_compared(fetched: Bench) -> None:
    fetched.simulator.add_entries(FIRST, count=1, at=ago(1))
    assert audit(fetched, *SPAN, code=0).lines[0].startswith(b"equal")


@pytest.mark.parametrize("minutes", [20, 40, 59])
def test_the_hour_that_is_not_over_is_compared_entry_by_entry(fetched: Bench, minutes: int) -> None:
    """Each of these times is in the current hour, or in the one before if the current one has just begun."""
    at = ago(minutes * 60)
    fetched.simulator.add_entries(FIRST, count=2, at=at)
    ((contract, hour, *_, missing),) = rows(
        b"\n".join(audit(fetched, "--from", "1h", "--to", "0m", code=1).lines).decode()
    )
    assert (contract, missing) == (str(FIRST), "2")
    assert hour.startswith(hour_of(at)[:13])
    assert "after repair: nothing is missing" in audit(fetched, "--from", "1h", "--to", "0m", "--repair", code=0).told
    assert len(fetched.fetch().lines) == 2
    assert audit(fetched, "--from", "1h", "--to", "0m", code=0).lines[0].startswith(b"equal")


def test_an_hour_is_compared_whole_whatever_part_of_it_is_asked_for(fetched: Bench) -> None:
    at = in_that_hour(ago(LATE))
    fetched.simulator.add_entries(FIRST, count=1, at=at)
    for start, end in ((-60, 60), (-60, -30), (30, 31), (-1800, 1), (-3700, 1)):
        texts = [(at + timedelta(seconds=seconds)).isoformat() for seconds in (start, end)]
        run = audit(fetched, "--from", texts[0], "--to", texts[1], code=1)
        assert [(row[0], row[4]) for row in rows(b"\n".join(run.lines).decode())] == [(str(FIRST), "1")]


def test_where_the_api_gives_no_totals_the_entries_are_read(bench: Starter) -> None:
    place = bench(events=300, contracts=1, span_seconds=5 * HOUR_SECONDS, shape="list")
    assert place.fetch("--since", "6h").code == 0
    period = ("--from", "6h", "--to", "0m")
    assert place.run("audit", *period).lines[0].startswith(b"equal")
    at = ago(3 * HOUR_SECONDS)
    place.simulator.add_entries(FIRST, count=3, at=at)
    run = place.run("audit", *period, "--repair")
    ((contract, hour, at_api, collected, missing),) = rows(b"\n".join(run.lines).decode())
    assert (contract, hour[:13], missing) == (str(FIRST), hour_of(at)[:13], "3")
    assert int(at_api) == int(collected) + 3
    assert run.code == 0, run.stderr
    assert len(place.fetch().lines) == 3


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("--from", "1h", "--to", "2h"), 2, ["--from", "is not before --to"]),
        (("--from", "2126-01-01", "--to", "2126-01-02"), 2, ["--from", "lies in the future"]),
        ((*SPAN, "--contract", "99"), 2, ["--contract", "99 was never collected", f"{FIRST}, {SECOND}"]),
        ((*SPAN, "--use", "run"), 4, ["run.db does not exist", "`run` has not run"]),
    ],
)
def test_an_audit_that_cannot_be_done_is_one_clear_line(
    fetched: Bench, args: tuple[str, ...], code: int, words: list[str]
) -> None:
    refused(fetched, "audit", *args, code=code, words=words)


@pytest.mark.parametrize(
    "choice", [{"IONOS_POLLER_POLL__EXCLUDE_CONTRACTS": f"{SECOND}"}, {"IONOS_POLLER_POLL__CONTRACTS": f"{FIRST}"}]
)
def test_what_the_configuration_leaves_out_is_named_and_neither_compared_nor_repaired(
    fetched: Bench, choice: dict[str, str]
) -> None:
    """Left-out contracts are not collected any more: all their newer entries would be missing."""
    hours = add_late(fetched)
    run = audit(fetched, *SPAN, code=1, env=choice)
    assert [(row[0], row[1]) for row in rows(b"\n".join(run.lines).decode())] == [(str(FIRST), hours[0])]
    assert f"not compared: 1 contract that the configuration leaves out: {SECOND}" in run.told
    repaired = audit(fetched, *SPAN, "--repair", "--json", code=0, env=choice)
    assert [row["contract"] for row in json.loads(repaired.lines[0])["contracts"]] == [str(FIRST)]
    assert len(fetched.fetch(env=choice).lines) == 1, "the late one of the first contract"


def test_where_the_configuration_leaves_out_all_that_was_collected_there_is_nothing_to_compare(fetched: Bench) -> None:
    choice = {"IONOS_POLLER_POLL__EXCLUDE_CONTRACTS": f"{FIRST},{SECOND}"}
    refused(fetched, "audit", *SPAN, code=2, words=["leaves out all", f"{FIRST}, {SECOND}"], env=choice)
    refused(fetched, "audit", *SPAN, "--contract", str(SECOND), code=2, words=["poll.exclude_contracts"], env=choice)
    assert audit(fetched, *SPAN, "--contract", str(SECOND), code=0, env={"IONOS_POLLER_POLL__CONTRACTS": f"{FIRST}"})


def test_an_api_that_fails_is_told_and_is_no_difference(fetched: Bench) -> None:
    fetched.simulator.set_faults([f"contract={SECOND}:500"])
    run = fetched.run("audit", *SPAN, env={"IONOS_POLLER_API__MAX_RETRIES": "0"})
    assert run.code == 1
    assert [line for line in run.told if str(SECOND) in line and "500" in line]
    assert run.lines[0].startswith(b"equal: 1 contract"), "the other one"
    fetched.simulator.set_faults([])
    bad = {"IONOS_API_TOKEN": "bad"}
    refused(fetched, "audit", *SPAN, "--contract", str(FIRST), code=3, words=["401"], env=bad)
    assert json.loads(fetched.run("audit", *SPAN, "--json", env=bad).lines[0])["equal"] is False


def test_a_state_without_any_contract_is_not_called_equal(bench: Starter) -> None:
    place = bench(events=5)
    place.fetch(env={"IONOS_API_TOKEN": "bad"})
    refused(place, "audit", *SPAN, code=4, words=["has not collected any contract yet"])


# The use `run`


def collected(daemon_of: MakeDaemon, **poll: str) -> Daemon:
    daemon = daemon_of(contracts=2, events=600, span_seconds=DAYS * DAY_SECONDS)
    daemon.configure(poll={**LOOKBACK, **poll})
    daemon.start()
    daemon.await_delivery()
    return daemon


def test_the_audit_of_run_repairs_a_gap_by_itself_and_delivers_it_once(daemon_of: MakeDaemon) -> None:
    daemon = collected(daemon_of, audit_interval='"1s"', audit_span='"2d"')
    wait_until(lambda: daemon.logged("audit.finished"), what="an audit")
    assert not daemon.logged("audit.difference_found")
    hours = add_late(daemon)
    daemon.await_delivery(timeout=20)
    told = {line["hour"]: line for line in daemon.logged("audit.difference_found")}
    assert {hour: told[hour]["contract"] for hour in told} == {hours[0]: str(FIRST), hours[1]: str(SECOND)}
    assert [told[hour]["at_api"] - told[hour]["collected"] for hour in hours] == [1, 3]
    wait_until(lambda: daemon.metric("audit_missing_events", contract=str(SECOND)) == 0, what="an audit finds none")
    assert daemon.metric("events_repaired_total", contract=str(FIRST)) == 1
    assert daemon.metric("events_repaired_total", contract=str(SECOND)) == 3
    audits = len(daemon.logged("audit.finished"))
    wait_until(lambda: len(daemon.logged("audit.finished")) >= audits + 2, what="more audits")
    daemon.stop()
    daemon.assert_once()
    daemon.assert_clean()


def test_what_became_visible_while_nothing_ran_is_found_by_the_first_audit_after_it(daemon_of: MakeDaemon) -> None:
    daemon = collected(daemon_of)
    daemon.stop()
    hours = add_late(daemon)
    with closing(sqlite3.connect(daemon.state_dir / "run.db")) as state, state:
        at = int(ago(30 * HOUR_SECONDS).timestamp())
        assert with_functions(state).execute("UPDATE contracts SET audited_at = ?", (at,)).rowcount == 2
    daemon.configure(poll={**LOOKBACK, "audit_interval": '"2s"', "audit_span": '"2h"'})
    daemon.start()
    wait_until(lambda: daemon.metric("events_repaired_total", contract=str(SECOND)) == 3, what="an audit")
    daemon.await_delivery(timeout=20)
    assert {line["hour"] for line in daemon.logged("audit.difference_found")} == set(hours)
    daemon.stop()
    daemon.assert_once()
    daemon.assert_clean()


def test_an_audit_comes_when_it_is_due_however_often_the_daemon_is_reloaded(daemon_of: MakeDaemon) -> None:
    daemon = collected(daemon_of, audit_interval='"4s"')

    reloaded_at = time.monotonic()

    def is_audited() -> bool:
        nonlocal reloaded_at
        if time.monotonic() - reloaded_at > 2:
            daemon.reload()
            reloaded_at = time.monotonic()
        return bool(daemon.logged("audit.finished"))

    wait_until(is_audited, 30, what="an audit")
    daemon.stop()


def test_repair_while_run_runs_is_done_by_run_at_its_next_poll(daemon_of: MakeDaemon) -> None:
    daemon = collected(daemon_of)
    assert daemon.command("audit", *SPAN).startswith("equal: 2 contracts")
    add_late(daemon)
    daemon.command("audit", *SPAN, code=1)
    repair = daemon.directory / "repair"
    with repair.open("w") as said:
        code = subprocess.run(
            [*COMMAND, "audit", *SPAN, "--repair"],
            cwd=daemon.directory,
            env=clean_environment(),
            stdout=said,
            stderr=said,
            timeout=30,
            check=False,
        ).returncode
    told = repair.read_text()
    assert code == 0, told
    assert "the running daemon collects them at its next poll" in told
    assert "after repair: nothing is missing" in told
    daemon.await_delivery(timeout=20)
    wait_until(
        lambda: daemon.metric("events_repaired_total", contract=str(SECOND)) == 3, what="the books are up to date"
    )
    assert daemon.command("audit", *SPAN).startswith("equal: 2 contracts")
    daemon.stop()
    daemon.assert_once()
    daemon.assert_clean()


def test_repair_while_run_does_not_run_is_delivered_once_by_the_next_run(daemon_of: MakeDaemon) -> None:
    daemon = collected(daemon_of)
    daemon.stop()
    hours = add_late(daemon)
    assert_told(daemon.command("audit", *SPAN, "--repair"), hours)
    assert daemon.lost() == 2 * 4, "collected, and not delivered yet"
    assert daemon.command("audit", *SPAN, "--use", "run").startswith("equal")
    daemon.start()
    daemon.await_delivery()
    daemon.stop()
    daemon.assert_once(LOGGING, LOKI)
    daemon.assert_clean()
