"""The content of the page, for a state made by hand. tests/integration/test_page.py shows it in a browser."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest

from poller.config import Poll
from poller.core.errors import StateError
from poller.core.windows import Window
from poller.pipeline.status import Seen
from poller.service.rate import MINUTES, Rate
from poller.service.web.html import HEADERS, render
from poller.service.web.view import (
    BAD,
    OK,
    WARN,
    View,
    clock,
    contract_word,
    headline,
    level,
    problems,
    sink_word,
    subline,
)
from poller.store.rows import Postponed, Range, Size
from tests.views import FIRST, HOUR, NOW, TOP, config_of, contract, gap, replica, sink, state, view

MINUTE = 60
NASTY = "<script>alert(1)</script>\"&'\x1b"


class Text(HTMLParser):
    """The visible text of a document, and its elements. Fails if elements are not nested correctly."""

    VOID = frozenset({"meta", "link", "rect", "line", "circle", "path"})

    def __init__(self, document: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.labels: list[str] = []
        self.ids: list[str] = []
        self.feed(document)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        values = dict(attrs)
        self.labels += [values["aria-label"] or ""] if "aria-label" in values else []
        self.ids += [values["id"] or ""] if "id" in values else []
        assert not [name for name in values if name.startswith("on") or name == "style"], "the policy forbids it"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


def shown(seen: View, **options: Any) -> Text:
    return Text(render(seen, **options))


def worst(seen: View) -> str:
    """The first problem on the page."""
    return problems(seen)[0].text


# The verdict


def test_where_all_is_well_it_says_so_and_up_to_when() -> None:
    seen = view()
    assert (level(seen), problems(seen)) == (OK, [])
    assert headline(seen) == "Complete up to 14:01:57 UTC"
    assert "1 contract, 3 s behind" in subline(seen)
    assert "All is well" in shown(seen).text


def test_it_is_complete_up_to_the_watermark_of_the_contract_that_is_furthest_behind() -> None:
    rows = [contract("1"), contract("2", watermark=NOW - 26 * HOUR), contract("3")]
    assert "2026-04-30 12:02:00 UTC" in headline(view(state(rows)))


def test_a_contract_that_is_left_out_holds_nothing_back() -> None:
    poll = Poll(interval_seconds=60, exclude_contracts=("2",))
    left_out = contract("2", watermark=NOW - 26 * HOUR, failure="403", succeeded_at=None)
    config = msgspec.structs.replace(config_of(["archive"]), poll=poll)
    seen = view(state([contract("1"), left_out]), config=config)
    assert (level(seen), headline(seen)) == (OK, "Complete up to 14:01:57 UTC")
    assert "left out by the configuration" in shown(seen).text


def test_nothing_is_called_complete_over_a_gap_or_a_span_that_is_still_to_be_read() -> None:
    pending = [Range(1, FIRST, Window(TOP - 9 * HOUR, TOP - 8 * HOUR), "since")]
    seen = view(state(gaps=[gap()], pending=pending))
    assert level(seen) == WARN
    assert headline(seen).startswith("Complete up to 14:01:57 UTC, but for 1 gap of 1 s on 2026-05-01 and 1 span still")
    accepted = view(state(gaps=[gap(is_accepted=True)]))
    assert (level(accepted), headline(accepted)) == (OK, "Complete up to 14:01:57 UTC")


OWN = Postponed(FIRST, 5, NOW - 10.0, NOW + 30.0, "HTTP 429: limit", NOW - 600.0)


@pytest.mark.parametrize(
    ("seen", "how", "words"),
    [
        (view(reasons=["the outbox is full: collecting is paused until a sink takes more"]), BAD, "the outbox is full"),
        (view(state(sinks=[sink(parked_at=NOW - HOUR, failure="HTTP 401")])), BAD, "parked for 1 h, next try in 0 s: HTTP 401"),
        (view(state(sinks=[sink(retry_at=NOW + 12, attempts=4, failure="refused")])), WARN, "attempt 4, next try in 12 s"),
        (view(state(sinks=[sink()._replace(postponed=[OWN])])), WARN, f"contract {FIRST}, next try in 30 s: HTTP 429: limit"),
        (view(state(sinks=[sink(dead_letters=3)])), WARN, "sink archive has refused 3 entries for good"),
        (view(state(sinks=[sink()]), config=config_of([])), WARN, "sinks forget archive"),
        (view(state([contract(failure="HTTP 503")])), WARN, "the last poll failed and is tried again: HTTP 503"),
        (view(state([contract(fetched=1)])), BAD, "the books do not balance"),
        (view(state([contract(watermark=NOW + 3600)])), WARN, "lies ahead of this machine's clock"),
        (view(state(replicas=[replica(), replica("b", config="2")])), WARN, "replicas have different configurations"),
        (view(token_expiries={"default": NOW + 3 * 86_400}), WARN, "the API token expires in 3 d"),
        (view(token_expiries={"default": NOW - 1}), BAD, "the API token has expired"),
        (view(state([])), WARN, "no contract has been found yet"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_in_words(seen: View, how: str, words: str) -> None:
    assert level(seen) == how
    assert words in " ".join(problem.text for problem in problems(seen))
    assert words.replace("`", "") in shown(seen).text


def test_the_worst_is_told_first() -> None:
    rows = state([contract(failure="HTTP 503")], [sink(parked_at=NOW - HOUR, failure="HTTP 401")])
    assert [problem.level for problem in problems(view(rows, token_expiries={"default": NOW}))] == [BAD, BAD, WARN]


def test_what_makes_the_daemon_not_ready_is_told_once() -> None:
    parked = sink(parked_at=NOW - HOUR, failure="HTTP 401")
    stale = contract(failure="HTTP 503", succeeded_at=NOW - HOUR)
    seen = view(
        state([stale], [parked]),
        reasons=["sink archive is parked: HTTP 401", f"contract {FIRST}: last successful poll"],
    )
    assert len(problems(seen)) == 2


def test_a_state_that_cannot_be_read_is_told_instead_of_an_old_picture_of_it() -> None:
    seen = View(NOW, config_of([]), Seen([], [StateError("state/run.db is damaged", hint="run with --since")]))
    assert (level(seen), headline(seen)) == (BAD, "The state cannot be read")
    assert "state/run.db is damaged" in shown(seen).text
    assert "run with --since" in worst(seen)


def test_before_the_first_poll_nothing_is_claimed() -> None:
    assert "Complete" not in headline(view(state([])))
    assert "Behind now unknown" in re.sub(" +", " ", " ".join(shown(view(state([]))).words))


# The document


def test_the_band_is_told_to_those_who_do_not_see_it() -> None:
    (label,) = [label for label in shown(view(state(gaps=[gap()]))).labels if label.startswith("Last 24 hours")]
    assert {"21 hours compared", "1 hour collected", "1 hour not yet"} < set(label.partition(": ")[2].split(", "))
    assert "between 09:00 and 10:00" in label


def test_the_chart_says_how_many_and_since_when_it_knows() -> None:
    counts = [*[None] * 50, *range(10)]
    (label,) = [label for label in shown(view(per_minute=counts)).labels if label.startswith("Entries collected")]
    assert "45 in all, at most 9 in a minute since 13:53" in label
    assert "rate" not in shown(view()).ids, "where nobody has counted yet there is no chart"


def test_every_text_is_escaped() -> None:
    seen = view(
        state(
            [contract(NASTY, account=NASTY, failure=NASTY)],
            [sink(NASTY, failure=NASTY, retry_at=NOW + 1.0)],
            gaps=[gap(reason=NASTY, contract=NASTY)],
            replicas=[replica(NASTY)],
        ),
        reasons=[NASTY],
        token_expiries={NASTY: NOW},
    )
    document = render(seen)
    assert document.count("<script>") == 1
    assert "alert(1)" in Text(document).text


def test_a_document_has_each_id_once_and_nothing_from_elsewhere() -> None:
    seen = view(state(gaps=[gap()], replicas=[replica()]), per_minute=[1] * 60, reasons=["`a"])
    document = render(seen)
    found = Text(document).ids
    assert len(found) == len(set(found))
    assert "http://www.w3.org/2000/svg" in document
    assert not re.findall(r"(?:https?:)?//(?!www\.w3\.org/2000/svg)[a-z]+\.", document.partition("<main")[2])
    assert "default-src 'none'" in HEADERS["Content-Security-Policy"]
    assert "unsafe" not in HEADERS["Content-Security-Policy"]


def test_of_many_contracts_those_that_are_not_well_are_shown_first_and_all_on_demand() -> None:
    rows = [contract(str(number)) for number in range(200)]
    rows[180] = rows[180]._replace(failure="HTTP 403")
    text = shown(view(state(rows))).text
    assert text.index("HTTP 403; last good poll") < text.index("2,010 entries · 3 s behind")
    assert "and 150 more, none worse: show all" in text
    assert "more, none worse" not in shown(view(state(rows)), is_whole=True).text
    assert len(render(view(state(rows)))) < 300_000


def test_of_many_reasons_the_first_are_shown_and_where_the_others_are() -> None:
    page = shown(view(reasons=[f"reason {number}" for number in range(30)]))
    assert "reason 9 and 20 more: ionos-poller status has all" in " ".join(" ".join(page.words).split())


def test_gaps_replicas_and_other_uses_have_a_table_where_there_are_any() -> None:
    seen = view(state(gaps=[gap(number) for number in range(25)], replicas=[replica("poller-1")]))
    other = seen.seen.uses[0]._replace(name="backfill-1", process=None)
    seen.seen.uses.append(other)
    page = shown(seen)
    assert {"gaps", "replicas", "uses"} <= set(page.ids)
    assert "and 15 more" in page.text
    assert "poller-1 12 0.1.0 3 2 s ago" in " ".join(page.words)
    assert "backfill-1 not running" in " ".join(page.words)
    assert not {"gaps", "replicas", "uses"} & set(shown(view()).ids)


def test_a_full_outbox_shows_in_its_figure() -> None:
    config = config_of(["archive"])
    seen = view(state(outbox=Size(5, config.outbox.max_bytes)), config=config)
    assert re.search(r'class="figure bad">0</dd><dd class="more">1 GiB of 1 GiB', render(seen))


@pytest.mark.parametrize(
    ("at", "words"),
    [(NOW, "14:02:00"), (NOW - 14 * HOUR - 120, "00:00:00"), (NOW - 14 * HOUR - 121, "2026-04-30 23:59:59")],
)
def test_a_time_of_today_is_told_without_the_date(at: int, words: str) -> None:
    assert clock(at, NOW) == words


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (view(), "1 contract, 3 s behind now; every sink has all that was collected."),
        (view(state(sinks=[])), "1 contract, 3 s behind now; there is no sink."),
        (view(state([contract("1"), contract("2", watermark=NOW - 9)])), "2 contracts, 9 s behind now;"),
        (view(state(sinks=[sink("a", waiting=1), sink("b")])), "1 sink of 2 has more to take."),
        (view(state(sinks=[sink("a", waiting=1), sink("b", waiting=1)])), "2 sinks of 2 have more to take."),
        (view(state([])), "The list below says why."),
    ],
)
def test_below_the_verdict_it_says_how_many_and_how_far(seen: View, words: str) -> None:
    assert words in subline(seen)


def test_before_it_is_known_what_there_is_it_says_that() -> None:
    assert headline(view(state([]))) == "No contract has been read yet"
    assert worst(view(state([]), reasons=["no contracts discovered yet"])) == "no contracts discovered yet"
    assert len(problems(view(state([]), reasons=["no contracts discovered yet"]))) == 1


@pytest.mark.parametrize("account", ["default", "left"])
def test_only_what_is_polled_holds_back_what_is_called_complete(account: str) -> None:
    config = config_of(["archive"])
    if account == "default":  # the contract is left out; in the other case its account is
        config = msgspec.structs.replace(config, poll=Poll(interval_seconds=60, exclude_contracts=("2",)))
    pending = [Range(1, "2", Window(TOP - 9 * HOUR, TOP - 8 * HOUR), "since")]
    old = contract("2", account=account, watermark=NOW - 9 * HOUR, succeeded_at=NOW - 9 * HOUR, failure="HTTP 403")
    seen = view(state([contract(), old], gaps=[gap(contract="2")], pending=pending), config=config)
    assert headline(seen) == "Complete up to 14:01:57 UTC"
    assert subline(seen).startswith("1 contract, 3 s behind")
    assert contract_word(seen, old) == (OK, "left out by the configuration", "")
    (gap_told,) = [word.text for word in problems(seen)]  # shown until a person accepts it
    assert "gaps list" in gap_told
    span = Window(TOP - 9 * HOUR, TOP - 8 * HOUR)
    two = [Range(number, FIRST, span, "since") for number in range(2)]
    assert headline(view(state(pending=two))).endswith("but for 2 spans still to be read")


@pytest.mark.parametrize("count", [3, 4, 5])
def test_of_spans_that_are_still_read_the_first_three_are_told(count: int) -> None:
    span = Window(TOP - 9 * HOUR, TOP - 8 * HOUR)
    told = [word.text for word in problems(view(state(pending=[Range(n, FIRST, span, "since") for n in range(count)])))]
    assert told[:3] == [f"contract {FIRST}: not complete yet, {span} is still to be read"] * 3
    rest = {3: [], 4: ["1 more span still to be read"], 5: ["2 more spans still to be read"]}
    assert told[3:] == rest[count]


def test_each_problem_is_a_sentence() -> None:
    def words(seen: View) -> list[tuple[str, str]]:
        return [(word.level, word.text) for word in problems(seen)]

    assert words(view(state([contract(failure="HTTP 503")]))) == [
        (WARN, f"contract {FIRST}: the last poll failed and is tried again: HTTP 503")
    ]
    (told,) = words(view(state(gaps=[gap()])))
    assert told[1].startswith(f"contract {FIRST}: complete but for 1 gap of 1 s")
    assert told[1].endswith("more entries than the API serves (`ionos-poller gaps list`)")
    assert words(view(state(sinks=[sink(dead_letters=1)]))) == [
        (WARN, "sink archive has refused 1 entry for good (`ionos-poller dead-letters list`)")
    ]
    assert words(view(token_expiries={"b": NOW, "a": NOW + 14 * 86_400 - 1, "c": NOW + 14 * 86_400})) == [
        (BAD, "account b: the API token has expired; make a new one and put it where this one comes from"),
        (WARN, "account a: the API token expires in 13 d 23 h; make a new one and put it where this one comes from"),
    ]


CONTRACT_WORDS: list[tuple[Any, tuple[str, str, str]]] = [
    (contract(), (OK, "3 s behind", "")),
    (contract(failure="HTTP 503"), (WARN, "last poll failed", "HTTP 503; last good poll 3 s ago")),
    (contract(failure="x", succeeded_at=None), (BAD, "last poll failed", "x; no good poll yet")),
    (contract(succeeded_at=NOW - 181), (BAD, "3 s behind", "last good poll 3 min ago")),
]


@pytest.mark.parametrize(("row", "word"), CONTRACT_WORDS)
def test_how_it_goes_with_a_contract(row: Any, word: tuple[str, str, str]) -> None:
    assert contract_word(view(), row) == word


TRY = "refused (`ionos-poller sinks retry archive` tries it at once)"
SINK_WORDS: list[tuple[Any, tuple[str, str, str]]] = [
    (sink(), (OK, "up to date", "")),
    (sink(waiting=1), (OK, "delivering", "")),
    (sink(parked_at=NOW - 60, failure="refused"), (BAD, "parked for 1 min, next try in 0 s", TRY)),
    (sink(parked_at=NOW - 60, retry_at=NOW + 9, failure="refused"), (BAD, "parked for 1 min, next try in 9 s", TRY)),
    (sink(retry_at=NOW + 12, attempts=4, failure="refused"), (WARN, "attempt 4, next try in 12 s", TRY)),
    (
        sink()._replace(postponed=[OWN]),
        (WARN, "1 contract waits on its own", f"contract {FIRST}, next try in 30 s: HTTP 429: limit"),
    ),
    (
        sink()._replace(postponed=[OWN, OWN]),
        (WARN, "2 contracts wait on their own", f"contract {FIRST}, next try in 30 s: HTTP 429: limit"),
    ),
    (
        sink("gone"),
        (WARN, "no longer in the configuration", "`ionos-poller sinks forget gone` deletes what waits for it"),
    ),
]


@pytest.mark.parametrize(("row", "word"), SINK_WORDS)
def test_how_it_goes_with_a_sink(row: Any, word: tuple[str, str, str]) -> None:
    assert sink_word(view(config=config_of(["archive"])), row) == word


FIGURE = re.compile(
    r'<dt>(?P<name>[^<]*)</dt><dd class="figure (?P<how>[a-z]*)">(?P<figure>[^<]*)</dd><dd class="more">(?P<more>[^<]*)</dd>'
)


def figures(seen: View) -> dict[str, tuple[str, str, str]]:
    """The figures by name: the value, the text below it, and its level."""
    found = FIGURE.finditer(render(seen))
    return {match["name"]: (match["figure"], match["more"], match["how"]) for match in found}


def test_where_all_is_well_the_figures_say_so() -> None:
    limit = "1 GiB"
    assert figures(view()) == {
        "Behind now": ("3 s", "polled every 1 min", OK),
        "Waiting for sinks": ("0", f"0 bytes of {limit}", OK),
        "Dead letters": ("0", "nothing refused", OK),
        "Gaps": ("0", "spans not readable", OK),
        "API token": ("no expiry", "or it does not say when", OK),
    }


def test_figures_add_up_over_sinks_and_gaps() -> None:
    gaps = [gap(), gap(2), gap(3, is_accepted=True)]
    sinks = [sink("a", waiting=1500, dead_letters=2), sink("b", waiting=7, dead_letters=1)]
    found = figures(view(state(sinks=sinks, gaps=gaps, outbox=Size(1507, 4096, 1024))))
    assert found["Waiting for sinks"] == ("1,507", "5 KiB of 1 GiB", OK)
    assert found["Dead letters"] == ("3", "refused for good", WARN)
    assert found["Gaps"] == ("2", "1 accepted", WARN)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([contract(watermark=NOW - 70)], ("1 min", "polled every 1 min", OK)),
        ([contract("1"), contract("2", watermark=NOW - 70)], ("1 min", "contract 2", OK)),
        ([contract("1", succeeded_at=NOW - 181), contract("2")], ("3 s", "contract 1", BAD)),
        ([contract("1", succeeded_at=NOW - 180), contract("2")], ("3 s", "contract 1", OK)),
        ([], ("unknown", "no contract yet", WARN)),
    ],
)
def test_how_far_behind_it_is_is_that_of_the_last(rows: list[Any], expected: tuple[str, str, str]) -> None:
    assert figures(view(state(rows)))["Behind now"] == expected


@pytest.mark.parametrize(
    ("seconds", "figure", "how"),
    [
        (0, "expired", BAD),
        (1, "1 s left", WARN),
        (2 * 86_400 - 1, "1 d 23 h left", WARN),
        (2 * 86_400, "2 d left", WARN),
        (14 * 86_400 - 1, "13 d left", WARN),
        (14 * 86_400, "14 d left", OK),
    ],
)
def test_how_long_a_token_is_good(seconds: int, figure: str, how: str) -> None:
    at = NOW + seconds
    day = datetime.fromtimestamp(at, UTC).date().isoformat()
    assert figures(view(token_expiries={"a": at}))["API token"] == (figure, f"on {day}", how)
    two = figures(view(token_expiries={"b": at + 1.0, "a": at}))["API token"]
    assert two == (figure, "account a", how)


@pytest.mark.parametrize(("free", "how"), [(1, OK), (0, BAD)])
def test_an_outbox_is_full_when_it_is_used_up(free: int, how: str) -> None:
    config = config_of(["archive"])
    letters = 1000
    seen = view(state(outbox=Size(5, config.outbox.max_bytes - letters - free, letters)), config=config)
    assert figures(seen)["Waiting for sinks"][2] == how


# Entries per minute


def test_entries_are_counted_by_the_minute_in_which_they_came() -> None:
    rate = Rate()
    for second, total in ((0, 100), (30, 105), (60, 107), (119, 110), (120, 110), (130, 120)):
        rate.observe(NOW + second, total)
    assert rate.per_minute(NOW + 130) == [*[None] * 57, 7, 3, 10]


def test_minutes_in_which_nobody_looked_are_not_called_empty() -> None:
    rate = Rate()
    rate.observe(NOW, 100)
    rate.observe(NOW + 5 * MINUTE, 160)
    assert rate.per_minute(NOW + 5 * MINUTE)[-6:] == [None, None, None, None, None, 0]
    assert Rate().per_minute(NOW) == [None] * MINUTES


def test_a_clock_that_was_set_back_begins_the_count_anew() -> None:
    rate = Rate()
    rate.observe(NOW, 100)
    rate.observe(NOW - HOUR, 100)
    rate.observe(NOW - HOUR + 1, 103)
    assert rate.per_minute(NOW - HOUR + 1)[-2:] == [None, 3]
    for minute in range(100):
        rate.observe(NOW + minute * MINUTE, 103 + minute)
    assert rate.per_minute(NOW + 99 * MINUTE) == [*[1] * 59, 0]
