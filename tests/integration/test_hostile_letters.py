"""Dead letters with an odd entry or reason: they are shown without an effect on the terminal, and replayed unchanged."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from poller.store.rows import DeadLetter
from poller.store.sqlite import State
from tests.integration.fetching import Starter, failed
from tests.states import START, commit, event, next_batch, settle
from tests.support import COMMAND
from tests.terminal import on_terminal

REASON = "HTTP 400: \x1b[31m\x9b2J\u202e\r\nred"
ODD = [
    rb'{"a":"\ud800"}',
    rb'{"\udfff":1,"b":"\\ud800"}',
    '{"a":"\u009b2J\u202e\u2028\U000e0041"}'.encode(),
    rb'{"a":"\u001b[31m\u0000"}',
    b'{"a":%s}' % (b"9" * 5000),
    b'{"a":1e999,"a":-0}',
    b'{"a":%s1%s}' % (b"[" * 700, b"]" * 700),
    b"{}",
]


def die(directory: Path, lines: Sequence[bytes]) -> None:
    """A state of `fetch` in which the sink `out` refused entries with these lines."""
    state = State.open(directory, "fetch")
    state.contracts.enrol(["1"], "default", START, START)
    state.outbox.register("out", "stdout")
    commit(state, [event(number, line=line) for number, line in enumerate(lines)])
    batch = next_batch(state, "out", 100, 10**9)
    assert batch is not None
    letters = [DeadLetter(one, 400, REASON) for one in batch.events]
    settle(state, "out", len(letters), dead=letters, now=START)
    state.close()


def test_an_odd_dead_letter_is_shown_whole_and_does_nothing_to_a_terminal(bench: Starter) -> None:
    place = bench(contracts=1, events=0)
    die(place.state_dir, ODD)
    for args in (("list",), ("show", *map(str, range(1, len(ODD) + 1)))):
        run = place.run("dead-letters", *args, "--use", "fetch")
        assert run.code == 0, run.stderr
        assert all(line.decode().isprintable() for line in run.lines), run.lines
    for number, line in enumerate(ODD, 1):
        shown = place.run("dead-letters", "show", str(number), "--use", "fetch").lines
        assert number == 5 or json.loads(b"".join(shown))["entry"] == json.loads(line)
    listed = place.run("dead-letters", "list", "--json", "--use", "fetch").lines
    assert len(listed) == len(ODD)
    for shown_line, line in zip(listed, ODD, strict=True):
        assert line in shown_line, "for machines it is as it was"


def test_an_odd_dead_letter_is_replayed_as_it_was(bench: Starter) -> None:
    place = bench(contracts=1, events=0)
    die(place.state_dir, ODD)
    assert place.run("dead-letters", "replay", "--use", "fetch").code == 0
    state = State.open(place.state_dir, "fetch")
    batch = next_batch(state, "out", 100, 10**9)
    assert batch is not None
    assert [one.line for one in batch.events] == ODD
    state.close()


def test_a_dead_letter_that_is_no_entry_any_more_is_told_with_the_way_out(bench: Starter) -> None:
    place = bench(contracts=1, events=0)
    die(place.state_dir, ODD[:2])
    with closing(sqlite3.connect(place.database, isolation_level=None)) as raw:
        raw.execute("UPDATE dead_letters SET line = x'7b22ff' WHERE id = 1")
    failed(place.run("dead-letters", "show", "1", "--use", "fetch"), 4, "dead letter 1 is damaged", "purge")
    assert place.run("dead-letters", "show", "2", "--use", "fetch").code == 0
    assert place.run("dead-letters", "purge", "1", "--reason", "damaged", "--yes", "--use", "fetch").code == 0


def test_a_contract_whose_account_left_the_configuration_is_named_by_the_audit(bench: Starter) -> None:
    place = bench(contracts=1, events=20)
    assert place.fetch("--since", "3h").code == 0
    (place.directory / "ionos-poller.toml").write_text('[[accounts]]\nname = "other"\n')
    failed(place.run("audit", "--from", "3h", "--to", "1h"), 1, "account default is not configured", "put it back")


def test_json_on_a_terminal_has_its_control_characters_escaped_and_means_the_same(bench: Starter) -> None:
    place = bench(contracts=1, events=0)
    die(place.state_dir, ODD)
    command = [*COMMAND, "dead-letters", "list", "--json", "--use", "fetch"]
    screen = on_terminal(command, place.directory, place.environment())
    # The terminal has 80 columns, but does not wrap: each line stays one line.
    lines = screen.raw.replace("\r", "").splitlines()
    assert len(lines) == len(ODD)
    for shown, line in zip(lines, ODD, strict=True):
        assert shown.isprintable(), shown
        entry = shown.partition('"entry":')[2]
        assert line == ODD[4] or json.loads(f"[{entry[:-1]}]")[0] == json.loads(line)


def test_what_fetch_prints_on_a_terminal_moves_no_cursor_and_turns_no_text(bench: Starter) -> None:
    place = bench(contracts=1, events=0)
    text = "a\u009b2J\u009d\u202e\u2066\x7f\u2028\U000e0041z"
    entry = {"@uuid": "u", "meta": {"time": "2026-05-01T07:42:20Z"}, "event": {"message": text}}
    given = json.dumps(entry, ensure_ascii=False)
    place.simulator.add_entries(place.simulator.contracts[0], [given.encode()])
    screen = on_terminal([*COMMAND, "fetch", "--since", "2026-05-01"], place.directory, place.environment())
    (shown,) = [line for line in screen.raw.replace("\r", "").splitlines() if line.startswith("{")]
    assert shown.isprintable()
    assert json.loads(shown) == entry
