"""`status` on a terminal, in a pipe and as JSON, while `run` runs and while it does not."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Mapping

import pytest

from tests.daemon import FIRST, LOGGING, LOKI, SECOND, Daemon, MakeDaemon
from tests.integration.fetching import Bench, Starter, finish
from tests.states import first_schema
from tests.support import COMMAND, clean_environment, wait_until
from tests.terminal import COLOUR, COLUMNS, Terminal, on_terminal

NOBODY_LISTENS = '"http://127.0.0.1:9"'
AT_A_GLANCE = 20


@pytest.fixture
def troubled(daemon_of: MakeDaemon) -> Daemon:
    """A daemon that delivers to Loki, with a sink that refuses its key, a sink that is down, and a refused contract."""
    daemon = daemon_of(events=100, forbidden=(SECOND,))
    sinks: Mapping[str, Mapping[str, str]] = {
        LOKI: {},
        LOGGING: {"api_key_file": f'"{daemon.token_file}"'},
        "loki-down": {"url": NOBODY_LISTENS},
    }
    daemon.configure(sinks=sinks)
    daemon.start()
    wait_until(lambda: daemon.simulator.intakes[LOKI].distinct == 100, what="Loki has all of the first contract")
    wait_until(lambda: daemon.sink(LOGGING)["parked_at"], what="a sink is parked")
    wait_until(lambda: daemon.sink("loki-down")["retry_at"], what="a sink is down")
    wait_until(lambda: daemon.trouble(str(SECOND)), what="a contract fails")
    return daemon


def status(daemon: Daemon, *args: str, **env: str) -> Terminal:
    return on_terminal([*COMMAND, "status", *args], daemon.directory, clean_environment(env))


def row_of(text: str, name: object) -> list[str]:
    """The cells of the row that begins with `name`."""
    return next(line.split() for line in text.splitlines() if line.startswith(f" {name} "))


def test_a_terminal_of_80_columns_shows_at_a_glance_what_is_well_and_what_is_not(troubled: Daemon) -> None:
    assert troubled.process is not None
    terminal = status(troubled)
    assert terminal.process.returncode == 0
    assert not [line for line in terminal.shown.splitlines() if len(line) > COLUMNS]
    assert f"run   at work, process {troubled.process.pid}" in terminal.shown
    assert row_of(terminal.shown, FIRST)[-1] == "ago"
    assert row_of(terminal.shown, SECOND)[-1] == "failed"
    assert row_of(terminal.shown, LOKI) == [LOKI, "loki", "100", "0", "0", "ok"]
    assert row_of(terminal.shown, LOGGING) == [LOGGING, "logging-service", "0", "100", "0", "parked"]
    assert row_of(terminal.shown, "loki-down") == ["loki-down", "loki", "0", "100", "0", "retrying"]
    for trouble in (f"contract {SECOND}: ", f"sink {LOGGING}, parked for ", "sink loki-down, attempt "):
        assert f"\n {trouble}" in terminal.shown
    assert "books: fetched " in terminal.shown
    assert COLOUR.search(terminal.raw)


def test_no_color_means_no_colour(troubled: Daemon) -> None:
    plain = status(troubled, NO_COLOR="1")
    assert not COLOUR.search(plain.raw)
    assert "parked" in plain.shown
    for args in (["check", "--offline"], ["fetch", "--contract", "1", "--state-dir", "/dev/null/nothing"]):
        for env, is_coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
            shown = on_terminal([*COMMAND, *args], troubled.directory, clean_environment(env))
            assert bool(COLOUR.search(shown.raw)) == is_coloured, (args, env, shown.raw)


def test_a_pipe_gets_whole_lines_without_escapes(troubled: Daemon) -> None:
    text = troubled.command("status")
    assert "\x1b" not in text
    assert re.search(r"^ sink loki-down, .*connection refused.*\)$", text, re.MULTILINE), "in one line, to its end"


def test_a_contract_is_not_called_complete_while_a_span_of_it_is_still_to_be_read(bench: Starter) -> None:
    place = bench(events=100, contracts=1)
    assert place.fetch().code == 0
    place.simulator.set_faults([f"contract={FIRST}:503"])
    assert place.fetch("--since", "12h", env={"IONOS_POLLER_API__MAX_RETRIES": "0"}).code == 1
    answer = json.loads(place.run("status", "--json").lines[0])["uses"]["fetch"]
    ((span,), (row,)) = (answer["pending"], answer["contracts"])
    assert (span["contract"], span["purpose"], span["start"]) == (str(FIRST), "since", row["complete_from"])
    told = f" contract {FIRST}: not complete yet, {span['start']}/{span['end']} is still to be read"
    assert told in [line.decode() for line in place.run("status").lines]
    place.simulator.set_faults([])
    assert place.fetch().code == 0
    assert json.loads(place.run("status", "--json").lines[0])["uses"]["fetch"]["pending"] == []
    assert b"not complete" not in b"".join(place.run("status").lines)


def test_whether_run_runs_is_told(troubled: Daemon) -> None:
    assert troubled.process is not None
    assert troubled.state()["process"] == troubled.process.pid
    troubled.stop()
    assert troubled.state()["process"] is None
    text = troubled.command("status")
    assert "run   not running" in text
    assert "next try when `run` runs" in text


def test_watch_shows_it_again_in_place_until_interrupted(troubled: Daemon) -> None:
    terminal = Terminal([*COMMAND, "status", "--watch"], troubled.directory, clean_environment())
    wait_until(lambda: terminal.raw.count("books: fetched") >= 2, what="it is shown twice")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.wait() == 0
    assert "\x1b[?1049h" in terminal.raw, "a screen of its own"
    assert terminal.raw.rstrip().endswith(("\x1b[?1049l", "\x1b[?25h")), "and the terminal as it was"


def test_watch_into_a_pipe_goes_on_until_nobody_reads(bench: Starter) -> None:
    place = bench(events=1)
    assert place.fetch("--since", "1h").code == 0
    for args, beginning in ((), b"fetch   not running"), (("--json",), b'{"uses":{"fetch":'):
        process = place.start("status", "--watch", *args)
        assert process.stdout is not None
        count = 0
        while count < 2:
            line = process.stdout.readline()
            assert line, "it ended by itself"
            count += line.startswith(beginning)
        process.stdout.close()
        process.stdout = None
        assert finish(process).code == 1


def test_a_state_that_cannot_be_used_is_told_and_hides_no_other(bench: Starter) -> None:
    place = bench(events=1)
    assert place.fetch("--since", "1h").code == 0
    (place.state_dir / "backfill-1.db").write_bytes(b"no database")
    (place.state_dir / "run.db.unusable-20260501T074220Z").write_bytes(b"damaged")
    for args in ((), ("--json",)):
        run = place.run("status", *args)
        assert run.code == 4
        text = b"\n".join(run.lines).decode()
        for word in ("fetch", str(FIRST), "backfill-1.db: cannot be read", "run.db was set aside", "--since T"):
            assert word in text, word


def test_of_many_contracts_a_terminal_shows_those_that_are_not_well_first(bench: Starter) -> None:
    place = bench(contracts=AT_A_GLANCE + 5, events=1, forbidden=(FIRST + AT_A_GLANCE + 1,))
    assert place.fetch("--since", "1h").code == 1
    shown = contracts_shown(place)
    assert len(shown) == AT_A_GLANCE
    assert shown[0] == FIRST + AT_A_GLANCE + 1
    everyone = sorted(place.simulator.contracts)
    assert contracts_shown(place, "--all") == everyone
    piped = b"\n".join(place.run("status").lines).decode()
    assert re.findall(r"^ (\d+) ", piped, re.MULTILINE) == [str(number) for number in everyone]


def contracts_shown(place: Bench, *args: str) -> list[int]:
    terminal = on_terminal([*COMMAND, "status", *args], place.directory, place.environment())
    assert ("... and 5 more" in terminal.shown) == (not args)
    return [int(number) for number in re.findall(r"^ (\d+) ", terminal.shown, re.MULTILINE)]


def test_the_daemon_comes_first_and_finished_backfills_share_a_line(bench: Starter) -> None:
    place = bench(events=30)
    assert place.fetch("--since", "2h").code == 0
    for name in ("a", "b", "c", "d"):
        assert place.run("backfill", "--from", "2h", "--output", f"{name}.ndjson").code == 0
    (place.state_dir / "run.db").write_bytes((place.state_dir / "fetch.db").read_bytes())
    text = b"\n".join(place.run("status").lines).decode()
    first, *_ = text.splitlines()
    assert first == f"state in {place.state_dir}"
    assert text.index("\nrun ") < text.index("\nfetch ")
    (line,) = [line for line in text.splitlines() if "backfill" in line]
    assert line.startswith(" 4 finished backfills, 240 entries delivered")
    assert line.endswith(" and 1 more")
    assert list(json.loads(place.run("status", "--json").lines[0])["uses"])[:2] == ["run", "fetch"]
    assert place.run("status", "--all").lines.count(b"") >= 5, "each in full"


def test_of_a_backfill_that_cannot_be_read_forget_says_why(bench: Starter) -> None:
    place = bench(events=30)
    first_schema(place.state_dir / "backfill-old.db")
    refused = place.run("backfill", "forget", "old")
    assert (refused.code, len(refused.told)) == (4, 1)
    assert "start `run` or `fetch`, which upgrades all states here" in refused.told[0]
    assert place.fetch().code == 0
    assert place.run("backfill", "forget", "old", "--yes").lines == [b"backfill-old forgotten"]


def test_a_finished_backfill_is_forgotten_and_one_that_is_not_stays(bench: Starter) -> None:
    place = bench(events=30)
    for name in ("a", "b"):
        assert place.run("backfill", "--from", "2h", "--output", f"{name}.ndjson").code == 0
    place.simulator.set_faults(["path=entries:503"])
    assert place.run(
        "backfill", "--from", "2h", "--output", "c.ndjson", env={"IONOS_POLLER_API__MAX_RETRIES": "0"}
    ).code
    uses = json.loads(place.run("status", "--json").lines[0])["uses"]
    done = sorted(name for name, use in uses.items() if use["finished_at"])
    (unfinished,) = set(uses) - set(done)
    refused = place.run("backfill", "forget", done[0], unfinished)
    assert (refused.code, [unfinished in line for line in refused.told]) == (2, [True])
    assert place.run("backfill", "forget", done[0].removeprefix("backfill-")).lines == [f"{done[0]} forgotten".encode()]
    assert place.run("backfill", "forget", "--finished").lines == [f"{done[1]} forgotten".encode()]
    assert place.run("backfill", "forget", "--finished").lines == [b"no backfill is finished"]
    assert place.run("backfill", "forget").code == place.run("backfill", "forget", done[0]).code == 2
    assert [*json.loads(place.run("status", "--json").lines[0])["uses"]] == [unfinished]
    assert (place.directory / "a.ndjson").exists()
    assert place.run("backfill", "forget", unfinished, "--yes").code == 0
    nothing = place.run("status")
    assert (nothing.code, nothing.lines) == (4, [])
    assert f"no state in {place.state_dir}" in nothing.told[0]
