"""`backfill`: it exports a past range once, whole, oldest first, in little memory, and reports orders that cannot work."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import stat
import struct
import subprocess
import termios
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest

from tests.daemon import LOGGING, LOKI, MakeDaemon
from tests.integration.exporting import (
    AT_ONCE,
    DAY_SECONDS,
    SMALL_WINDOWS,
    AtOnce,
    ago,
    assert_complete,
    assert_exported,
    backfill,
    balanced,
    books,
    configure,
    everything,
    peak_bytes,
    read_lines,
    refused,
    text,
)
from tests.integration.fetching import FIRST, SECOND, Bench, Starter, finished
from tests.support import COMMAND, wait_until

MEMORY_BYTES = 110 * 1024 * 1024
YEAR_START = datetime(2025, 11, 1, tzinfo=UTC)
YEAR = ("--from", "2025-11-01", "--to", "2026-11-01")


def fill_year(bench: Bench, entries: int, *, burst: int) -> None:
    """Add `entries` entries to each contract: `burst` of them in one hour, the rest over a year with every third week empty."""
    for number, contract in enumerate(bench.simulator.contracts):
        add = bench.simulator.add_entries
        add(contract, count=burst, at=YEAR_START + timedelta(days=100 + 60 * number, hours=3), span_seconds=3600)
        weeks = [week for week in range(52) if (week + number) % 3]
        left = entries - burst
        for place, week in enumerate(weeks):
            count = left * (place + 1) // len(weeks) - left * place // len(weeks)
            add(contract, count=count, at=YEAR_START + timedelta(weeks=week), span_seconds=7 * DAY_SECONDS)


def test_a_year_of_uneven_entries_is_exported_whole_and_in_order_in_little_memory(bench: Starter) -> None:
    year = bench(contracts=3, events=0)
    fill_year(year, 50_000, burst=15_000)
    stderr = year.directory / "stderr"
    with stderr.open("wb") as file:
        env = {"IONOS_POLLER_API__REQUESTS_PER_SECOND": "10000"}
        process = year.start("backfill", *YEAR, "--output", "year.ndjson", "--jobs", "8", env=env, stderr=file)
        peak = peak_bytes(process)
    run = finished(process.returncode, b"", stderr.read_bytes())
    assert run.code == 0, run.stderr[-2000:]
    assert assert_exported(year.directory / "year.ndjson", year.simulator) == 150_000
    assert books(run) == balanced(150_000, "output")
    assert peak < MEMORY_BYTES, f"{peak / 1024 / 1024:.0f} MiB"
    # The state keeps only the identities, to recognise repeats; no entries.
    assert sum(path.stat().st_size for path in year.state_dir.iterdir()) < 4_500_000


@pytest.mark.parametrize("limits", [{"max_range_days": 90}, {"total_cap": 400, "result_window": 400}])
def test_a_range_beyond_the_limits_of_the_api_is_cut_to_fit(bench: Starter, limits: dict[str, int]) -> None:
    place = bench(events=0, **limits)
    fill_year(place, 3000, burst=1000)
    backfill(place, *YEAR, "--output", "year.ndjson", "--jobs", "8", env=SMALL_WINDOWS)
    assert assert_exported(place.directory / "year.ndjson", place.simulator) == 6000


def test_more_jobs_wait_for_the_api_together(bench: Starter) -> None:
    """What `--jobs` does: requests of 100 ms each run one after the other, or up to eight at the same time."""
    place = bench(events=0, latency_seconds=0.1)
    fill_year(place, 1000, burst=100)
    most = {}
    for jobs in ("1", "8"):
        place.simulator.traffic = at_once = AtOnce()
        backfill(place, *YEAR, "--output", f"{jobs}.ndjson", "--jobs", jobs, env=SMALL_WINDOWS)
        most[jobs] = at_once.most
        assert_exported(place.directory / f"{jobs}.ndjson", place.simulator)
    assert most["1"] == 1
    assert 4 < most["8"] <= 8  # more than `api.concurrency`


def test_a_name_that_ends_in_gz_is_compressed_and_gzip_agrees(bench: Starter) -> None:
    place = bench()
    backfill(place, "--from", "2h", "--to", "0m", "--output", "export.ndjson.gz")
    path = place.directory / "export.ndjson.gz"
    assert assert_exported(path, place.simulator) == 600
    assert path.stat().st_size < sum(map(len, place.oracle())) / 3
    subprocess.run(["gzip", "--test", str(path)], check=True)
    # Only this user may read it: entries name persons and addresses.
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_stdout_carries_the_entries_and_nothing_else(bench: Starter) -> None:
    place = bench()
    run = backfill(place, "--from", "2h", "--to", "0m", "--output", "-")
    assert run.rest == b""
    assert assert_complete(run.lines, everything(place.simulator)) == 600
    assert books(run) == balanced(600, "stdout")


def test_a_reader_of_stdout_that_goes_away_ends_it_and_the_rest_comes_with_the_same_command(bench: Starter) -> None:
    place = bench(events=3000)
    order = ("--from", "2h", "--to", "0m", "--output", "-")
    process = place.start("backfill", *order)
    assert process.stdout is not None
    first = process.stdout.readline()
    process.stdout.close()
    assert process.wait(30) == 1
    assert process.stderr is not None
    told = [line for line in process.stderr.read().decode().splitlines() if not line.startswith("{")]
    assert [line for line in told if "the reader of our output has gone away" in line]
    run = backfill(place, *order)
    assert set(run.lines) <= set(place.oracle())
    assert first.rstrip(b"\n") in place.oracle()
    assert run.lines, "what was not written was not committed"


def test_only_the_contracts_asked_for_are_exported(bench: Starter) -> None:
    place = bench(contracts=3)
    backfill(place, "--from", "2h", "--to", "0m", "--contract", str(SECOND), "--output", "one.ndjson")
    assert_complete(read_lines(place.directory / "one.ndjson"), place.oracle(SECOND))
    assert place.requests() <= 3


def test_the_range_includes_its_start_and_not_its_end(bench: Starter) -> None:
    start = ago(7200).replace(microsecond=0)
    end = start + timedelta(seconds=10)
    place = bench(events=0, contracts=1)
    for second, millis in [(-1, 999), (0, 0), (9, 999), (10, 0)]:
        place.simulator.add_entries(FIRST, count=1, at=start + timedelta(seconds=second, milliseconds=millis))
    run = backfill(place, "--from", text(start), "--to", text(end), "--output", "-")
    assert run.lines == place.oracle()[1:3]


def test_entries_of_the_same_time_and_without_an_id_are_all_there(bench: Starter) -> None:
    place = bench(events=50, contracts=1, ids="none")
    duplicate = {"meta": {"time": text(ago(600))}, "principal": {"identity": {"contractNumber": FIRST}}, "event": {}}
    place.simulator.add_entries(FIRST, [duplicate, duplicate, duplicate])
    backfill(place, "--from", "2h", "--to", "0m", "--output", "export.ndjson")
    assert assert_exported(place.directory / "export.ndjson", place.simulator) == 53


def test_an_export_of_nothing_is_an_empty_file(bench: Starter) -> None:
    place = bench(events=0)
    run = backfill(place, "--from", "2h", "--to", "0m", "--output", "none.ndjson.gz")
    assert assert_exported(place.directory / "none.ndjson.gz", place.simulator) == 0
    assert books(run) == balanced(0, "output")
    subprocess.run(["gzip", "--test", str(place.directory / "none.ndjson.gz")], check=True)


# The same command again


def test_the_same_order_again_says_that_it_is_complete_and_shows_the_books(bench: Starter) -> None:
    place = bench()
    order = ("--from", "2h", "--to", "0m", "--output", "export.ndjson")
    backfill(place, *order)
    before = place.requests(), (place.directory / "export.ndjson").stat()
    place.simulator.add_entries(FIRST, count=5, at=ago(3000))
    run = backfill(place, *order)
    assert "is complete already; --restart begins anew" in run.told[0]
    (use,) = json.loads(place.run("status", "--json").lines[0])["uses"]
    assert run.told[0].endswith(f"(state: {use})"), "by the name that it has wherever the state is"
    assert re.search(r"of 20\S+Z/20\S+Z is", run.told[0]), "an age means what it meant at first: said with it"
    assert books(run) == balanced(600, "output")
    assert (place.requests(), (place.directory / "export.ndjson").stat()) == before

    backfill(place, *order, "--restart")
    assert assert_exported(place.directory / "export.ndjson", place.simulator) == 605


def test_restart_does_not_delete_a_file_that_backfill_did_not_write(bench: Starter) -> None:
    place = bench()
    path = place.directory / "precious.txt"
    path.write_text("precious")
    order = ("backfill", "--from", "2h", "--to", "0m", "--output", "precious.txt")
    for extra in ((), ("--restart",), ("--restart",)):
        refused(place, *order, *extra, code=2, words=["precious.txt exists already", "name another file"])
        assert not list(place.state_dir.glob("*.db")), "what was not begun is not for `status` to show"
    assert path.read_text() == "precious"


def test_two_orders_are_two_backfills(bench: Starter) -> None:
    place = bench()
    for number, end in enumerate(("0m", "10m")):
        backfill(place, "--from", "2h", "--to", end, "--output", f"{number}.ndjson")
    assert_exported(place.directory / "0.ndjson", place.simulator)
    run = place.run("status", "--json")
    assert run.code == 0, run.stderr
    assert len([use for use in json.loads(run.lines[0])["uses"] if use.startswith("backfill-")]) == 2


# Sinks


def test_a_backfill_to_two_sinks_brings_each_all_of_it_once(bench: Starter) -> None:
    place = bench(events=2000)
    configure(place, LOGGING, LOKI)
    run = backfill(place, "--from", "2h", "--to", "0m", "--sink", LOGGING, "--sink", LOKI)
    assert [place.simulator.books(name)[1:] for name in (LOGGING, LOKI)] == [(4000, 0, 0, 0)] * 2
    assert any("stamps entries with the time of arrival" in line for line in run.told)
    assert books(run) == [*balanced(4000, LOGGING), balanced(4000, LOKI)[1]]


def test_a_sink_that_is_down_for_a_while_is_waited_for(bench: Starter) -> None:
    place = bench(events=500, faults=("sink=logging:503:x5",))
    configure(place, LOGGING)
    backfill(place, "--from", "2h", "--to", "0m", "--sink", LOGGING)
    assert place.simulator.books(LOGGING)[1:] == (1000, 0, 0, 0)


def test_a_sink_that_refuses_the_key_ends_it_and_a_new_key_goes_on_at_once(bench: Starter) -> None:
    place = bench(events=500)
    configure(place, LOGGING)
    order = ("--from", "2h", "--to", "0m", "--sink", LOGGING)
    place.simulator.change_settings(api_key="another")
    run = backfill(place, *order, code=3)
    assert [
        line for line in run.told if "sink logging" in line and "401" in line and "run the same command again" in line
    ]
    place.simulator.change_settings(api_key="demo-key")
    run = backfill(place, *order)
    assert place.simulator.books(LOGGING)[1:] == (1000, 0, 0, 0)
    assert books(run) == balanced(1000, LOGGING)


def test_what_run_has_collected_is_not_sent_again_unless_asked(daemon_of: MakeDaemon) -> None:
    """It works while `run` runs: the two share neither state nor lock."""
    daemon = daemon_of(contracts=2, events=1000, span_seconds=3 * 3600)
    daemon.configure(poll={"initial_lookback": '"1h"'})
    daemon.start()
    collected = wait_until(
        lambda: [row["new"] for row in daemon.state()["contracts"] if row["new"]][1:] and daemon.state()
    )
    recent = sum(row["new"] for row in collected["contracts"])
    wait_until(lambda: daemon.simulator.intakes[LOGGING].distinct >= recent, what="the last hour is delivered")
    order = ("backfill", "--from", "6h", "--to", "0m", "--sink", LOGGING, "--sink", LOKI)
    daemon.command(*order)
    assert f"{recent:,} entries left out" in daemon.told
    daemon.assert_once()
    backfills = [use for name, use in json.loads(daemon.command("status", "--json"))["uses"].items() if name != "run"]
    (rows,) = [use["contracts"] for use in backfills]
    assert sum(row["new"] for row in rows) + recent == 2000
    assert sum(row["seen"] for row in rows) == recent

    daemon.command(*order, "--again")
    assert daemon.simulator.books(LOGGING).repeated == 2000
    assert daemon.simulator.books(LOKI).lost == 0
    daemon.stop()
    daemon.assert_clean()


def test_a_sink_that_run_got_later_is_brought_what_is_older(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=2, events=500, span_seconds=3600)
    daemon.configure(sinks={LOGGING: {}})
    daemon.start()
    daemon.await_delivery(LOGGING)
    daemon.stop()
    daemon.configure(sinks={LOGGING: {}, LOKI: {}})
    daemon.start()
    wait_until(lambda: any(sink["name"] == LOKI for sink in daemon.state()["sinks"]), what="run knows the sink")
    for contract in daemon.simulator.contracts:
        daemon.simulator.add_entries(contract, count=20)
    daemon.await_delivery(LOGGING)
    wait_until(lambda: daemon.simulator.intakes[LOKI].distinct == 40, what="the new ones are delivered")
    daemon.command("backfill", "--from", "2h", "--to", "0m", "--sink", LOKI)
    daemon.assert_once()
    daemon.stop()
    daemon.assert_clean()


# Entries that are too old for Loki


OLD, YOUNG = 300, 200


def old_and_young(bench: Starter) -> Bench:
    """Entries in two contracts, some older than Loki's limit of 7 days, none near it."""
    place = bench(events=0)
    for contract in (FIRST, SECOND):
        place.simulator.add_entries(contract, count=OLD, at=ago(20 * DAY_SECONDS), span_seconds=12 * DAY_SECONDS)
        place.simulator.add_entries(contract, count=YOUNG, at=ago(6 * DAY_SECONDS), span_seconds=6 * DAY_SECONDS - 60)
    configure(place, LOKI, batch_events="50")
    return place


def loki(place: Bench) -> tuple[int, int, dict[str, int]]:
    """How many entries Loki stored and refused, and the outcomes of the requests."""
    state = place.simulator.state()["intakes"][LOKI]
    return state["stored"], state["refused"], state["outcomes"]


ORDER = ("--from", "21d", "--to", "0m", "--sink", LOKI)


def test_what_loki_will_refuse_is_counted_before_the_start_and_accounted_for_after(bench: Starter) -> None:
    place = old_and_young(bench)
    run = backfill(place, *ORDER)
    told = next(line for line in run.told if "are too old for loki" in line)
    assert told.startswith("600 entries of 14 days ("), told
    assert "each becomes a dead letter (--too-old has" in told
    assert run.told.index(told) < run.told.index(books(run)[0])
    stored, refused_count, outcomes = loki(place)
    assert (stored, refused_count, set(outcomes)) == (2 * YOUNG, 0, {"204"}), "nothing is sent to be refused"
    assert sum(outcomes.values()) <= 2 * (7 * 24 + 2), "a request for each contract and hour, and no retry loop"
    assert books(run) == balanced(2 * (OLD + YOUNG), LOKI, dead=2 * OLD)
    assert [line for line in run.told if "dead-letters list --use backfill-" in line]
    use = next(place.state_dir.glob("backfill-*.db")).stem
    listed = place.run("dead-letters", "list", "--use", use, "--json")
    assert listed.code == 0, listed.stderr
    assert b"older than the 7 days" in b"\n".join(listed.lines)
    purge = place.run("dead-letters", "purge", "--reason", "test", "--use", use)
    assert (purge.code, purge.lines) == (2, [])
    assert purge.told[-1].startswith("ionos-poller: --yes: missing"), "nobody is there to be asked"
    assert place.run("dead-letters", "list", "--use", use, "--json").lines == listed.lines


def test_replayed_dead_letters_are_sent_by_the_same_command(bench: Starter) -> None:
    place = old_and_young(bench)
    backfill(place, *ORDER)
    use = next(place.state_dir.glob("backfill-*.db")).stem
    assert place.run("dead-letters", "replay", "--use", use).code == 0
    run = backfill(place, *ORDER, "--too-old", "stamp-now")
    assert loki(place)[:2] == (2 * (OLD + YOUNG), 0)
    assert books(run) == balanced(2 * (OLD + YOUNG), LOKI)
    assert "is complete already" in backfill(place, *ORDER).told[0]


def test_skipped_entries_are_counted_and_not_read(bench: Starter) -> None:
    place = old_and_young(bench)
    run = backfill(place, *ORDER, "--too-old", "skip")
    assert [line for line in run.told if line.startswith("600 entries of 14 days") and "each is skipped" in line]
    assert loki(place)[:2] == (2 * YOUNG, 0)
    *balance, skipped = books(run)
    assert balance == balanced(2 * YOUNG, LOKI)
    assert "too old: 600" in skipped


def test_skipping_goes_on_after_an_interruption_and_counts_once(bench: Starter) -> None:
    place = old_and_young(bench)
    place.simulator.set_faults([f"contract={SECOND}:500:after=1"])
    backfill(place, *ORDER, "--too-old", "skip", code=1, env=AT_ONCE)
    place.simulator.set_faults([])
    run = backfill(place, *ORDER, "--too-old", "skip")
    assert loki(place)[:2] == (2 * YOUNG, 0)
    *balance, skipped = books(run)
    assert balance == balanced(2 * YOUNG, LOKI)
    assert "too old: 600" in skipped


def test_entries_stamped_now_are_all_taken(bench: Starter) -> None:
    place = old_and_young(bench)
    run = backfill(place, *ORDER, "--too-old", "stamp-now")
    assert [line for line in run.told if "each is stamped now" in line]
    stored, refused_count, outcomes = loki(place)
    assert (stored, refused_count, set(outcomes)) == (2 * (OLD + YOUNG), 0, {"204"})
    assert place.simulator.books(LOKI)[2:] == (0, 0, 0)
    assert books(run) == balanced(2 * (OLD + YOUNG), LOKI)


def test_skipping_is_refused_where_another_sink_would_take_the_old_ones(bench: Starter) -> None:
    place = old_and_young(bench)
    configure(place, LOKI, LOGGING)
    both = ("backfill", *ORDER, "--sink", LOGGING, "--too-old", "skip")
    run = place.run(*both)
    assert run.code == 2
    assert [line for line in run.told if "run one backfill for each sink" in line]


def test_old_entries_beside_those_that_run_sends_are_not_too_far_behind_for_loki(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=2, events=600, span_seconds=6 * DAY_SECONDS)
    daemon.configure(sinks={LOKI: {}}, poll={"initial_lookback": '"2h"'})
    daemon.start()
    wait_until(lambda: not daemon.troubles(), what="ready")
    for contract in daemon.simulator.contracts:
        daemon.simulator.add_entries(contract, count=10)
    wait_until(lambda: daemon.simulator.intakes[LOKI].distinct >= 20, what="the newest are delivered")
    daemon.command("backfill", "--from", "6d", "--to", "0m", "--sink", LOKI, "--jobs", "8")
    daemon.await_delivery(LOKI)
    daemon.stop()
    daemon.assert_once(LOKI)
    # Entries that Loki refused because of newer ones of `run` went to further streams.
    assert daemon.simulator.state()["intakes"][LOKI]["active_streams"] <= 2 * (1 + 2 * 4)
    assert b"dead_lettered" not in daemon.stderr_file.read_bytes()
    daemon.assert_clean()


# Orders that cannot be carried out


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("--from", "1h", "--to", "2h", "--output", "x"), 2, ["--from", "1h is not before --to 2h"]),
        (("--from", "2026-02-01", "--to", "2026-02-01", "--output", "x"), 2, ["--from", "is not before"]),
        (("--from", "2126-01-01", "--to", "2126-02-01", "--output", "x"), 2, ["--from", "lies in the future"]),
        (("--from", "2h", "--to", "1h", "--output", "missing/x"), 2, ["--output", "missing/x", "No such file or directory"]),
        (("--from", "2h", "--to", "1h", "--output", "."), 2, ["--output"]),
        (("--from", "2h", "--to", "1h", "--output", "/proc/x"), 2, ["--output", "/proc/x"]),
        (("--from", "2h", "--to", "1h", "--output", "there"), 2, ["--output", "there exists already"]),
        (("--from", "2h", "--to", "1h", "--sink", "nowhere"), 2, ["--sink", "nowhere is not in the config"]),
        (("--from", "2h", "--to", "1h"), 2, ["--output", "either --output or --sink"]),
        (("--from", "2h", "--to", "1h", "--output", "x", "--sink", "y"), 2, ["--output", "either --output or --sink"]),
        (("--from", "2h", "--to", "1h", "--output", "x", "--contract", "99"), 2, ["--contract", "no account sees 99"]),
    ],
)  # fmt: skip
def test_an_order_that_cannot_be_carried_out_is_one_clear_line(
    bench: Starter, args: tuple[str, ...], code: int, words: list[str]
) -> None:
    place = bench(events=10)
    (place.directory / "there").write_bytes(b"precious")
    refused(place, "backfill", *args, code=code, words=words)
    assert (place.directory / "there").read_bytes() == b"precious"


def test_a_token_that_is_refused_is_one_clear_line(bench: Starter) -> None:
    place = bench(events=10)
    order = ("backfill", "--from", "2h", "--to", "1h", "--output", "x")
    refused(place, *order, code=3, words=["401", "IONOS_API_TOKEN"], env={"IONOS_API_TOKEN": "no-good"})
    assert not (place.directory / "x").exists()


def test_a_contract_that_is_denied_does_not_keep_the_others_from_being_exported(bench: Starter) -> None:
    place = bench(forbidden=(FIRST,))
    order = ("--from", "2h", "--to", "0m", "--output", "x")
    run = backfill(place, *order, code=1)
    assert [line for line in run.told if str(FIRST) in line and "ACCESS_ACTIVITY_LOG" in line]
    assert not (place.directory / "x").exists(), "what is not complete does not look complete"
    place.simulator.change_settings(forbidden=())
    backfill(place, *order)
    assert_exported(place.directory / "x", place.simulator)


def test_an_end_in_the_future_is_told_and_means_now(bench: Starter) -> None:
    place = bench()
    run = backfill(place, "--from", "2h", "--to", "2126-01-01", "--output", "x")
    assert run.told[0].startswith("--to lies in the future; exporting up to now (")
    assert_exported(place.directory / "x", place.simulator)
    again = backfill(place, "--from", "2h", "--to", "2126-01-01", "--output", "x")
    assert again.told[0].startswith("--to lay in the future when this backfill began: it ends at ")
    assert "complete already" in again.told[1]


def test_a_full_disk_is_one_clear_line_and_the_same_command_goes_on_where_there_is_room(bench: Starter) -> None:
    place = bench(events=15_000)
    order = ("backfill", "--from", "2h", "--to", "0m", "--output", "x")
    env = place.environment({"IONOS_POLLER_OUTBOX__MAX_BYTES": "1MiB"})
    # In units of 512 or 1024 bytes, depending on the shell: enough for the state, not for the output.
    limited = ["sh", "-c", 'ulimit -f 16000 && exec "$@"', "sh", *COMMAND, *order]
    done = subprocess.run(limited, cwd=place.directory, env=env, capture_output=True, timeout=60, check=False)
    run = finished(done.returncode, done.stdout, done.stderr)
    assert run.code == 1, run.stderr[-2000:]
    assert len(run.told) == 1, run.told
    assert "File too large (nothing is lost: give it room and run the same command again)" in run.told[0]
    assert not (place.directory / "x").exists()
    before = place.requests()
    run = backfill(place, *order[1:])
    assert_exported(place.directory / "x", place.simulator)
    assert books(run) == balanced(30_000, "output")
    assert place.requests() - before < before, "it went on where it was"


# Progress


def test_in_a_pipe_progress_is_a_line_of_the_log(bench: Starter) -> None:
    run = backfill(bench(), "--from", "2h", "--to", "0m", "--output", "x")
    (line,) = [line for line in run.log if line["message"] == "backfill.progressed"]
    assert (line["share"], line["entries"], line["delivered"]) == (1.0, 600, 600)
    assert line["windows"] >= 2
    assert line["entries_per_second"] > 0
    assert "\x1b" not in run.stderr


def test_on_a_terminal_progress_is_a_bar_for_each_contract_and_the_log_does_not_run_through_it(bench: Starter) -> None:
    place = bench(latency_seconds=0.05)
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
    order = ("backfill", "--from", "2h", "--to", "0m", "--output", "x")
    process = place.start(*order, env={"TERM": "xterm", **SMALL_WINDOWS}, stderr=follower)
    os.close(follower)
    shown = b""
    with suppress(OSError):  # the read fails when the process has closed the terminal
        while data := os.read(leader, 65536):
            shown += data
    os.close(leader)
    assert process.wait(30) == 0
    screen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    for contract in (FIRST, SECOND):
        last = [line for line in re.split(r"[\r\n]+", screen) if line.startswith(str(contract))][-1]
        assert re.search(r"100% 300 entries  windows: \d+  [\d,]+/s\s+0:00:00", last), last
    assert "window.collected" not in screen
    assert "books: fetched 600 = new 600" in screen
    assert shown.count(b"\x1b[?25h") == shown.count(b"\x1b[?25l") == 1, "the cursor is shown again"
    assert_exported(place.directory / "x", place.simulator)


def test_every_refusal_left_the_directory_clean(bench: Starter) -> None:
    """A refused order leaves no partial file."""
    place = bench(events=10)
    refused(place, "backfill", "--from", "2h", "--to", "1h", "--output", "x", "--contract", "99", code=2, words=["99"])
    assert {path.name for path in place.directory.iterdir()} <= {"state"}
