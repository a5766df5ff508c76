"""The content of `status --json` and `/status.json`: every value has its name, and times are written as times."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from rich.console import Console

from poller.cli.status import _show
from poller.cli.status_page import page, sinks_page
from poller.config import Config, Poll
from poller.core.errors import StateError, StateUnavailableError
from poller.core.evidence.batches import Head
from poller.core.evidence.digest import fingerprint
from poller.core.windows import Window
from poller.pipeline.reloads import Reload, last_reload, note_reload
from poller.pipeline.status import Seen, Use, read_status, read_use, status_data
from poller.service.web.view import OK, WARN, View, sink_word
from poller.store.journal import JournalEntry
from poller.store.letters import LetterBooks
from poller.store.overview import Overview
from poller.store.rows import Postponed, Range, Size
from tests.archives import signer
from tests.views import FIRST, HOUR, NOW, config_of, contract, gap, replica, sink, state


def at(second: float) -> datetime:
    return datetime.fromtimestamp(second, UTC)


def of(overview: Overview, **changes: Any) -> dict[str, Any]:
    """The data of one use."""
    use = Use("run", "state/run.db", overview, 4711)._replace(**changes)
    data: Any = status_data(Seen([use], []), config_of(["loki"]))
    return dict(data["uses"]["run"])


@pytest.fixture(autouse=True)
def standing_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: NOW + 0.0006)


def test_a_contract_is_told_with_its_books_its_lag_and_its_hours() -> None:
    (row,) = of(state([contract(watermark=NOW - 3, holder="a:1")]))["contracts"]
    hours = row.pop("hours")
    assert hours["start"] == "2026-04-30T15:00:00Z"
    assert len(hours["states"]) == 24
    assert row == {
        "contract": FIRST,
        "account": "default",
        "origin": NOW - 720 * HOUR,
        "fetched": 2343,
        "new": 2010,
        "seen": 333,
        "filtered": 0,
        "late": 2,
        "repaired": 0,
        "succeeded_at": NOW - 3,
        "failed_at": None,
        "failure": "",
        "audited_at": NOW - HOUR,
        "sharing": 0,
        "holder": "a:1",
        "complete_from": "2026-04-01T14:02:00Z",
        "watermark": "2026-05-01T14:01:57Z",
        "lag_seconds": 3.001,
        "configured": True,
    }


def test_the_hours_of_a_contract_show_its_own_gaps_and_spans_to_be_read() -> None:
    rows = [contract(), contract("2")]
    span = Window(NOW // HOUR * HOUR - 2 * HOUR, NOW // HOUR * HOUR - HOUR)
    quiet = of(state(rows))["contracts"]
    told = of(state(rows, gaps=[gap()], pending=[Range(1, "2", span, "since")]))["contracts"]
    before, after = [[row["hours"]["states"] for row in found] for found in (quiet, told)]
    assert [[hour for hour in range(24) if old[hour] != new[hour]] for old, new in zip(before, after, strict=True)] == [
        [18],
        [21],
    ]


def test_a_sink_is_told_with_its_books_and_what_waits_on_its_own() -> None:
    waiting = Postponed("2", 3, NOW - 60.0, NOW + 60.0, "HTTP 400", NOW - 600.0)
    row = sink("loki", waiting=7, dead_letters=2, retry_at=NOW + 9, parked_at=NOW - 9, attempts=4, failure="HTTP 401")
    head = Head("a" * 32, 3, "f" * 64, signer().key, 12, 0, NOW - 1.0)
    books = {"loki": LetterBooks(5, 2, 2, 1)}
    (found,) = of(state(sinks=[row._replace(postponed=[waiting])], letters=books, archives={"loki": head}))["sinks"]
    assert found == {
        "name": "loki",
        "type": "file",
        "configured": True,
        "assigned": 2010,
        "delivered": 2001,
        "dead": 2,
        "waiting": 7,
        "dead_letters": 2,
        "letters_written": 5,
        "letters_replayed": 2,
        "letters_purged": 1,
        "attempts": 4,
        "retry_at": at(NOW + 9),
        "parked_at": at(NOW - 9),
        "failure": "HTTP 401",
        "postponed": [
            {
                "contract": "2",
                "attempts": 3,
                "postponed_at": at(NOW - 60),
                "retry_at": at(NOW + 60),
                "failure": "HTTP 400",
                "since": at(NOW - 600),
            }
        ],
        "archive": {
            "number": 3,
            "sha256": "f" * 64,
            "entries": 12,
            "written_at": at(NOW - 1),
            "key": fingerprint(signer().key),
        },
        "holder": "",
        "balanced": True,
    }


def test_what_left_the_configuration_is_told_as_such() -> None:
    overview = state([contract(), contract("2")], sinks=[sink("loki"), sink("old")])
    config = msgspec.structs.replace(config_of(["loki"]), poll=Poll(exclude_contracts=("2",)))
    data: Any = status_data(Seen([Use(name, "", overview, None) for name in ("run", "fetch")], []), config)["uses"]
    told = {
        (use, kind): [row["configured"] for row in data[use][kind]] for use in data for kind in ("contracts", "sinks")
    }
    assert told == {
        ("run", "contracts"): [True, False],
        ("run", "sinks"): [True, False],
        ("fetch", "contracts"): [True, False],
        ("fetch", "sinks"): [True, True],
    }, "the sinks of `fetch` and of a backfill are in no configuration"


@pytest.mark.parametrize(
    ("failures", "code"),
    [
        ([StateUnavailableError("it is starting up")], 1),
        ([StateError("it is damaged")], 4),
        ([StateError("it is damaged"), StateUnavailableError("it is starting up")], 4),
    ],
)
def test_a_state_that_cannot_be_read_just_now_is_no_reason_to_end_as_for_one_that_a_person_must_mend(
    monkeypatch: pytest.MonkeyPatch, failures: list[StateError], code: int
) -> None:
    # If the database went away while its uses were read, `status` ended with 4. Before or after that it ended with 1.
    monkeypatch.setattr("poller.cli.status.read_status", lambda stores: Seen([], failures))
    for as_json in (False, True):
        assert _show(Config(), as_json=as_json, is_whole=False) == code


@pytest.mark.parametrize(
    ("head", "shown"),
    [
        (None, False),
        (Head("a", 0, "", None, 0, 0, None), False),
        (Head("a", 1, "", None, 1, 0, None), True),
    ],
)
def test_an_archive_is_shown_once_it_has_a_digest(head: Head | None, shown: bool) -> None:
    (found,) = of(state(archives={"archive": head} if head else {}))["sinks"]
    assert (found["archive"] is not None) == shown
    if shown:
        assert (found["archive"]["key"], found["archive"]["written_at"]) == (None, None)


@pytest.mark.parametrize(
    ("books", "waiting", "is_balanced"),
    [(LetterBooks(5, 2, 2, 1), 0, True), (LetterBooks(5, 2, 2, 0), 0, False), (LetterBooks(), 1, False)],
)
def test_a_sink_is_balanced_where_both_of_its_books_are(books: LetterBooks, waiting: int, is_balanced: bool) -> None:
    row = sink()._replace(waiting=waiting)
    data = of(state(sinks=[row], letters={"archive": books}))
    assert data["sinks"][0]["balanced"] == is_balanced
    assert data["balanced"] == is_balanced
    assert (data["imbalances"] == []) == is_balanced


def test_a_sink_is_delivered_by_its_holder_or_by_those_of_the_contracts() -> None:
    rows = [contract("1", holder="b:2"), contract("2", holder="a:1"), contract("3", holder="b:2"), contract("4")]
    sinks = [sink("out"), sink("archive")._replace(holder="c:3")]
    assert [row["holder"] for row in of(state(rows, sinks))["sinks"]] == ["a:1, b:2", "c:3"]


@pytest.mark.parametrize(
    ("use", "hosts", "host"),
    [
        ("run", ["a", "b"], "b"),
        ("run", ["a"], "b"),
        ("run", [], "b"),
        ("run", ["a"], None),
        ("fetch", ["a"], "b"),
    ],
)
def test_a_sink_whose_only_machine_is_away_is_called_so(use: str, hosts: list[str], host: str | None) -> None:
    sinks = tuple(msgspec.structs.replace(row, host=host) for row in config_of(["out"]).sinks)
    config = msgspec.structs.replace(config_of([]), sinks=sinks)
    rows = [contract(holder="a:12")]
    overview = state(rows, sinks=[sink("out", waiting=1)], replicas=[replica(name) for name in hosts])
    seen = Use(use, "", overview, 12)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(sinks_page(config, seen))
    text = console.export_text()
    told = "sink out: b alone writes it, and is not at work; 1 entry waits: start `run` there, or change `host`"
    is_away = (use, hosts, host) == ("run", ["a"], "b")
    assert (" away" in text, told in text) == (is_away, is_away), text
    data: Any = status_data(Seen([seen], []), config)["uses"]
    assert data[use]["sinks"][0]["holder"] == ("" if is_away else "a:12")
    if use == "run":
        word = sink_word(View(NOW, config, Seen([seen], [])), overview.sinks[0])
        assert (word.level, word.text) == ((WARN, "b is away") if is_away else (OK, "delivering"))


def test_the_rest_of_a_use_is_told() -> None:
    action = JournalEntry(1, NOW - 5, 1000, "anna", "", "gaps accept", "gap 1", 2, "known", None)
    span = Range(9, "2", Window(NOW - HOUR, NOW), "repair")
    data = of(
        state(
            outbox=Size(3, 400, 50),
            filtered={"reads": 0},
            created_at=NOW - HOUR,
            finished="2026-05-01T00:00:00Z",
            last_action=action,
            pending=[span],
            letters={"gone": LetterBooks(1, 0, 1, 0)},
        )
    )
    assert (data["process"], data["created_at"]) == (4711, at(NOW - HOUR))
    assert data["finished_at"] == "2026-05-01T00:00:00Z"
    assert data["last_action"] == {
        "id": 1,
        "at": "2026-05-01T14:01:55Z",
        "uid": 1000,
        "login": "anna",
        "sudo_user": "",
        "action": "gaps accept",
        "subject": "gap 1",
        "count": 2,
        "reason": "known",
        "export": None,
    }
    assert data["pending"] == [
        {"contract": "2", "start": "2026-05-01T13:02:00Z", "end": "2026-05-01T14:02:00Z", "purpose": "repair"}
    ]
    letters = {"written": 1, "at_hand": 0, "replayed": 1, "purged": 0, "balanced": True}
    assert data["letters"] == {"gone": letters}
    assert (data["filtered"], data["outbox"]) == ({"reads": 0}, {"events": 3, "bytes": 400, "letter_bytes": 50})
    assert (data["clock_troubles"], data["gaps"]) == ([], [])
    assert of(state())["last_action"] is None


def test_a_clock_that_is_behind_is_told() -> None:
    assert len(of(state([contract(watermark=NOW + HOUR)]))["clock_troubles"]) == 1


def test_gaps_replicas_and_failures_of_all_uses_are_listed() -> None:
    overview = state(gaps=[gap(), gap(2, is_accepted=True)], replicas=[replica()])
    seen = Seen([Use("run", "", overview, None)], [StateError("damaged \x1b[2J")])
    data: Any = status_data(seen, config_of([]))
    start = NOW // HOUR * HOUR - 5 * HOUR
    first = {
        "id": 1,
        "contract": FIRST,
        "start": "2026-05-01T09:00:00Z",
        "end": "2026-05-01T09:00:01Z",
        "seconds": 1,
        "kind": "dense",
        "reason": "more entries than the API serves",
        "first_seen": "2026-05-01T09:00:00Z",
        "tries": 3,
        "next_try": "2026-05-01T14:02:40Z",
        "accepted": False,
    }
    assert at(start) == datetime(2026, 5, 1, 9, tzinfo=UTC)
    assert data["uses"]["run"]["gaps"] == [first, {**first, "id": 2, "next_try": None, "accepted": True}]
    assert data["gaps"] == [{"use": "run", **row} for row in data["uses"]["run"]["gaps"]]
    assert data["replicas"] == [
        {
            "use": "run",
            "host": "poller-0",
            "pid": 12,
            "version": "0.1.0",
            "since": at(NOW - HOUR),
            "seen_at": at(NOW - 2),
            "contracts": 3,
            "config": "1",
        }
    ]
    (failure,) = data["failures"]
    assert "damaged" in failure
    assert "\x1b" not in failure, "nothing of it moves a terminal's cursor"


class Stores:
    """States by name. A state that is an error cannot be read."""

    def __init__(self, place: str = "state", **states: Overview | StateError) -> None:
        self.place = place
        self._states = states
        self.gone: dict[str, StateError] = {}

    def uses(self) -> list[str]:
        return list(self._states)

    def where(self, use: str) -> str:
        return f"{self.place}/{use}.db"

    def holder(self, use: str) -> int | None:
        return 12 if use == "run" else None

    def missing(self) -> dict[str, StateError]:
        return self.gone

    def snapshot(self, use: str) -> Overview:
        found = self._states[use]
        if isinstance(found, StateError):
            raise found
        return found


def test_the_states_are_read_in_order_and_one_that_cannot_be_does_not_hide_the_others() -> None:
    names = ("backfill_b", "a_restore", "fetch", "run")
    stores: Any = Stores(**dict.fromkeys(names, state()), backfill_a=StateError("damaged"))
    stores.gone = {"lost": StateError("was there before")}
    seen = read_status(stores)
    assert [use.name for use in seen.uses] == ["run", "fetch", "a_restore", "backfill_b"]
    assert [error.message for error in seen.failures] == ["damaged", "was there before"]
    assert seen.place == "state"
    assert seen.uses[0] == read_use(stores, "run") == Use("run", "state/run.db", state(), 12)


def test_where_there_is_no_state_it_says_where_to_look() -> None:
    for place, word in (("state", "--state-dir"), ("postgresql://db/x", "state.url")):
        stores: Any = Stores(place)
        with pytest.raises(StateError, match="no state in") as raised:
            read_status(stores)
        assert place in raised.value.message
        assert word in raised.value.hint
    gone: Any = Stores()
    gone.gone = {"run": StateError("was there before")}
    assert [str(error) for error in read_status(gone).failures] == ["was there before"]


class Facts:
    """The facts of a state."""

    def __init__(self) -> None:
        self.facts: dict[str, str] = {}

    def remember(self, name: str, value: str) -> None:
        self.facts[name] = value

    def fact(self, name: str) -> str | None:
        return self.facts.get(name)


def test_the_last_reload_is_told_by_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    facts: Any = Facts()
    assert last_reload(facts) is None
    note_reload(facts, Reload(4711, 12.5, ""))
    note_reload(facts, Reload(4711, 13.5, "no such sink"))
    assert last_reload(facts) == Reload(4711, 13.5, "no such sink")
    monkeypatch.setattr("platform.node", lambda: "elsewhere")
    assert last_reload(facts) is None


@pytest.mark.parametrize("account", ["default", "left"])
@pytest.mark.parametrize(("use", "is_told"), [("run", False), ("backfill-1", True)])
def test_of_what_the_daemon_does_not_poll_any_more_no_trouble_is_told(account: str, use: str, is_told: bool) -> None:
    config = config_of(["archive"])
    if account == "default":  # the contract is left out; in the other case its account is
        config = msgspec.structs.replace(config, poll=Poll(interval_seconds=60, exclude_contracts=("2",)))
    old = contract("2", account=account, succeeded_at=NOW - HOUR, failure="HTTP 403")
    pending = [Range(1, "2", Window(NOW - 9 * HOUR, NOW - 8 * HOUR), "since")]
    seen = Seen([Use(use, "state", state([contract(), old], pending=pending), 4711)], [])
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(page(config, seen, contracts=None))
    text = console.export_text()
    (row,) = [line for line in text.splitlines() if line.startswith(" 2 ")]
    assert row.split()[-1] == "excluded"
    assert ("HTTP 403" in text, "is still to be read" in text) == (is_told, is_told)


@pytest.mark.parametrize(("use", "is_told"), [("run", True), ("fetch", True), ("restore-1", False)])
def test_where_no_contract_is_known_it_says_what_tells_why(use: str, is_told: bool) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(page(config_of(["loki"]), Seen([Use(use, "state", state([]), 4711)], []), contracts=None))
    text = console.export_text()
    assert ("no contract is known yet: `ionos-poller check` says why" in text) == is_told
    assert ("complete up to" in text) != is_told


@pytest.mark.parametrize(
    ("waiting", "letters", "told"),
    [
        (1 << 30, 0, "collecting is paused until a sink takes more"),
        (1 << 30, 5, "collecting is paused until a sink takes more"),
        ((1 << 30) - 5, 5, "collecting is paused until you replay or purge them"),
        ((1 << 30) - 6, 5, ""),
    ],
)
def test_of_a_full_outbox_it_says_that_collecting_is_paused_and_until_when(
    waiting: int, letters: int, told: str
) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    full = state(outbox=Size(7, waiting, letters))
    console.print(page(config_of(["loki"]), Seen([Use("run", "state", full, 4711)], []), contracts=None))
    text = console.export_text()
    assert (text.count("collecting is paused"), told in text) == (int(bool(told)), True)
