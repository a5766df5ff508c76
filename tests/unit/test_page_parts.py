"""The parts of the page, element by element: what is drawn for each number, and the text of each cell."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any, NamedTuple

import pytest

from poller import __version__
from poller.config import Account
from poller.core.windows import Window
from poller.service.web.html import render
from poller.service.web.view import BAD, OK, WARN, View
from poller.store.rows import Range, Size
from tests.views import FIRST, HOUR, NOW, TOP, config_of, contract, gap, replica, sink, state, view


class Element(NamedTuple):
    tag: str
    attributes: dict[str, str]
    text: str


class Elements(HTMLParser):
    """All elements of a document in order, each with the text in it."""

    VOID = frozenset({"meta", "link", "rect", "line", "circle", "path"})

    def __init__(self, document: str) -> None:
        super().__init__()
        self.found: list[Element] = []
        self._open: list[tuple[int, str, dict[str, str], list[str]]] = []
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(Element(tag, {}, ""))
        self._open.append((len(self.found) - 1, tag, {name: value or "" for name, value in attrs}, []))
        if tag in self.VOID:
            self.handle_endtag(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        at, name, attributes, words = self._open.pop()
        assert name == tag
        self.found[at] = Element(tag, attributes, re.sub(r"\s+", " ", "".join(words)).strip())
        if self._open:
            self._open[-1][3].extend(words)

    def handle_data(self, data: str) -> None:
        if self._open:
            self._open[-1][3].append(data)


def elements(seen: View, tag: str, **wanted: str) -> list[Element]:
    """The elements of the page with this tag and these attributes (`cls` for class)."""
    names = {name.replace("cls", "class").replace("_", "-"): value for name, value in wanted.items()}
    return [
        found
        for found in Elements(render(seen)).found
        if found.tag == tag and all(found.attributes.get(name) == value for name, value in names.items())
    ]


def texts(seen: View, tag: str, **wanted: str) -> list[str]:
    return [found.text for found in elements(seen, tag, **wanted)]


GOOD, DOUBTFUL, WRONG = view(), view(state(gaps=[gap()])), view(reasons=["the `outbox` is full"])


@pytest.mark.parametrize(
    ("seen", "how", "words", "colour", "path"),
    [
        (GOOD, OK, "All is well", "%230b7a6f", "M4.5 10.5l3.5 3.5 7.5-8"),
        (DOUBTFUL, WARN, "Worth a look", "%23b26a00", "M10 5v6.5M10 14.7v.3"),
        (WRONG, BAD, "Needs attention", "%23c0362c", "M6 6l8 8M14 6l-8 8"),
    ],
)
def test_how_it_goes_is_told_in_the_title_the_icon_and_the_verdict(
    seen: View, how: str, words: str, colour: str, path: str
) -> None:
    assert texts(seen, "title") == [f"{words} · ionos-poller"]
    (icon,) = elements(seen, "link", rel="icon")
    assert f"fill='{colour}'" in icon.attributes["href"]
    assert f"path d='{path}'" in icon.attributes["href"]
    assert icon.attributes["href"].startswith("data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg'")
    assert (texts(seen, "p", id="badge"), texts(seen, "p", id="announcement")) == ([words], [words])
    (section,) = elements(seen, "section", aria_labelledby="headline")
    assert section.attributes["class"] == f"verdict {how}"
    assert [found.attributes["d"] for found in elements(seen, "path")] == [path]


def test_the_frame_says_who_when_and_where_else() -> None:
    assert texts(GOOD, "strong") == ["ionos-poller"]
    assert __version__ in texts(GOOD, "header")[0]
    assert texts(GOOD, "span", id="clock") == ["Updated 14:02:00 UTC"]
    assert elements(GOOD, "time")[0].attributes["datetime"] == "2026-05-01T14:02:00Z"
    assert {found.attributes["id"]: (found.attributes["href"], found.text) for found in elements(GOOD, "a")} == {
        "link-json": ("status.json", "The same as JSON"),
        "link-metrics": ("metrics", "Metrics"),
        "link-ready": ("readyz", "Ready?"),
        "link-health": ("healthz", "Alive?"),
    }
    assert elements(GOOD, "html")[0].attributes["lang"] == "en"
    (stale,) = elements(GOOD, "div", id="stale")
    assert ("hidden" in stale.attributes, stale.attributes["role"]) == (True, "alert")
    assert [found.attributes["content"] for found in elements(GOOD, "meta", http_equiv="refresh")] == ["10"]


def test_what_can_be_typed_is_marked_and_an_odd_backquote_is_not() -> None:
    assert texts(WRONG, "li", cls=BAD) == ["the outbox is full"]
    assert texts(WRONG, "code") == ["outbox"]
    odd = view(reasons=["one ` alone <b>"])
    assert (texts(odd, "li", cls=BAD), texts(odd, "code"), texts(odd, "b")[:1]) == (["one ` alone <b>"], [], ["2,010"])


def test_a_state_that_cannot_be_read_has_no_figures_and_no_cards() -> None:
    seen = view()._replace(seen=view().seen._replace(uses=[]))
    assert (elements(seen, "dl"), elements(seen, "section", cls="card")) == ([], [])
    assert texts(seen, "main")[0].endswith("The list below says why.")


# Contracts


def test_each_hour_of_a_contract_has_a_cell() -> None:
    pending = [Range(1, FIRST, Window(TOP - 9 * HOUR, TOP - 8 * HOUR), "since")]
    row = contract(origin=TOP - 21 * HOUR)
    seen = view(state([row], gaps=[gap(seconds=HOUR + 1)], pending=pending))
    cells = [found for found in elements(seen, "i") if "title" in found.attributes]
    kinds = [found.attributes["class"] for found in cells]
    assert kinds == [
        *["before"] * 2,
        *["compared"] * 12,
        "not-yet",
        *["compared"] * 3,
        "gap",
        "gap",
        *["compared"] * 2,
        "collected",
        "not-yet",
    ]
    assert cells[0].attributes["title"] == "15:00 to 16:00: before collecting began"
    assert cells[14].attributes["title"] == "05:00 to 06:00: not yet complete"
    assert cells[18].attributes["title"] == "09:00 to 10:00: has a gap"
    assert cells[22].attributes["title"] == "13:00 to 14:00: collected, not compared yet"
    assert cells[21].attributes["title"] == "12:00 to 13:00: compared with the API's own count"
    (band,) = elements(seen, "div", cls="band")
    assert band.attributes["aria-label"] == (
        "Last 24 hours: 17 hours compared, 1 hour collected, 2 hours not yet, 2 hours before, gap between 09:00 and 11:00"
    )
    assert texts(seen, "p", cls="scale")[0] == "15:0021:0003:0009:00now"
    assert texts(seen, "ul", cls="legend") == ["comparedcollectedgapnot yetbefore"]
    assert [found.attributes["class"] for found in elements(seen, "i") if "title" not in found.attributes] == [
        *("compared", "collected", "gap", "not-yet", "before")
    ]


def test_a_contract_is_told_with_its_entries_and_its_account_where_there_are_several() -> None:
    rows = [contract(new=1234), contract("2", failure="HTTP `503`")]
    assert texts(view(state(rows)), "span", cls="name")[:2] == ["2", FIRST], "what is not well comes first"
    config = config_of(["archive"])
    two = type(config)(poll=config.poll, accounts=(Account(name="default"), Account(name="b")), sinks=config.sinks)
    seen = view(state(rows), config=two)
    assert texts(seen, "span", cls="name")[:2] == ["2 default", f"{FIRST} default"]
    lines = texts(seen, "p", cls="what")
    assert lines[0] == "2 default2,010 entries · last poll failed"
    assert lines[1] == f"{FIRST} default1,234 entries · 3 s behind"
    assert "HTTP 503; last good poll 3 s ago" in texts(seen, "p", cls="small")
    assert [found.text for found in elements(seen, "span", cls=f"word {WARN}")] == ["last poll failed"]
    assert texts(view(state([])), "p", cls="small")[0] == "No contract is known yet."


@pytest.mark.parametrize(("count", "more"), [(50, []), (51, ["and 1 more, none worse: show all"])])
def test_of_many_contracts_fifty_are_shown(count: int, more: list[str]) -> None:
    seen = view(state([contract(str(number)) for number in range(count)]))
    assert (len(elements(seen, "div", cls="contract")), texts(seen, "p", cls="more-rows")) == (50, more)
    assert [found.attributes["href"] for found in elements(seen, "a", id="link-all")] == ["?all"] * len(more)


# The chart


def test_each_minute_has_a_bar_as_tall_as_its_count() -> None:
    seen = view(per_minute=[None, 0, 50, 1, 100, 25])
    bars = [found.attributes for found in elements(seen, "rect")]
    assert bars == [
        {"class": "unknown", "x": "1", "y": "0", "width": "8", "height": "100"},
        {"class": "bar", "x": "21", "y": "50.0", "width": "8", "height": "50.0"},
        {"class": "bar", "x": "31", "y": "98.0", "width": "8", "height": "2.0"},
        {"class": "bar", "x": "41", "y": "0.0", "width": "8", "height": "100.0"},
        {"class": "now", "x": "51", "y": "75.0", "width": "8", "height": "25.0"},
    ]
    assert [found.attributes["class"] for found in elements(seen, "line")] == ["grid", "base"]
    assert [found.attributes["x2"] for found in elements(seen, "line")] == ["60", "60"]
    assert [found.attributes["y2"] for found in elements(seen, "line")] == ["0", "100"]
    (chart,) = elements(seen, "div", cls="chart")
    since = "since 13:58, when this process began to count"
    assert chart.attributes["aria-label"] == (
        f"Entries collected per minute in the last hour: 176 in all, at most 100 in a minute {since}"
    )
    assert f"Counted {since}." in texts(seen, "p", cls="small")
    assert "at most 100" in texts(seen, "span", cls="small")
    assert texts(seen, "p", cls="scale")[-1] == "13:0313:33now"


def test_an_hour_without_an_entry_has_no_bars_and_says_so() -> None:
    seen = view(per_minute=[0] * 60)
    assert elements(seen, "rect") == []
    assert "none in this time" in texts(seen, "span", cls="small")
    (chart,) = elements(seen, "div", cls="chart")
    assert chart.attributes["aria-label"].endswith("0 in all, at most 0 in a minute")
    assert not [words for words in texts(seen, "p", cls="small") if "Counted" in words]
    assert elements(view(per_minute=[None] * 60), "div", cls="chart") == []


# Sinks, books, tables


def test_a_sink_is_told_with_its_numbers() -> None:
    rows = [sink("loki", waiting=1500, dead_letters=2, since=NOW - 90), sink("file", waiting=3), sink("gone")]
    seen = view(state(sinks=rows), config=config_of(["loki", "file"]))
    assert texts(seen, "p", cls="counts") == [
        "508 delivered 1,500 waiting for 1 min 2 dead letters",
        "2,007 delivered 3 waiting",
        "2,010 delivered 0 waiting",
    ]
    names = texts(seen, "span", cls="name")[1:]
    assert names == ["loki file", "file", "gone file"], "a type that is its name is not told twice"
    words = texts(seen, "p", cls="fine")
    assert words == ["ionos-poller sinks forget gone deletes what waits for it"]
    assert [found.text for found in elements(seen, "span", cls=f"word {WARN}")] == ["no longer in the configuration"]
    assert "No sink is known yet." in texts(view(state(sinks=[])), "p", cls="small")


@pytest.mark.parametrize(("fetched", "word"), [(7026, (OK, "balanced")), (7027, (BAD, "do not balance"))])
def test_the_books_are_those_of_all_contracts(fetched: int, word: tuple[str, str]) -> None:
    rows = [contract("1", fetched=fetched, new=5000, seen=2000, filtered=26), contract("2")]
    limit = 1 << 30
    seen = view(state(rows, outbox=Size(1, 1024, 1024), filtered={"reads": 26}))
    (books,) = elements(seen, "dl", cls="books")
    assert books.text == f"New7,010Seen before2,333Filtered26Fetched{fetched + 2343:,}"
    assert "Outbox: 1 entry, 2 KiB of 1 GiB" in texts(seen, "p", id="outbox-label")
    (meter,) = elements(seen, "meter")
    assert meter.attributes == {
        "min": "0",
        "max": str(limit),
        "high": str(int(limit * 0.8)),
        "value": "2048",
        "aria-labelledby": "outbox-label",
    }
    assert [found.text for found in elements(seen, "span", cls=f"word {word[0]}")][-1:] == [word[1]]
    full = view(state(outbox=Size(1, 2 * limit)))
    assert elements(full, "meter")[0].attributes["value"] == str(limit)


def cells(seen: View, name: str) -> tuple[list[str], list[list[str]], str, str]:
    """The headings, rows, style and title of a table."""
    document = render(seen)
    part = re.search(rf'<section class="card" aria-labelledby="{name}">.*?</section>', document, re.DOTALL)
    assert part is not None
    found = Elements(part[0]).found
    headings = [cell.text for cell in found if cell.tag == "th"]
    values = [cell.text for cell in found if cell.tag == "td"]
    rows = [values[at : at + len(headings)] for at in range(0, len(values), len(headings))]
    (table,) = [cell for cell in found if cell.tag == "table"]
    (title,) = [cell.text for cell in found if cell.tag == "h2"]
    assert all(cell.attributes["scope"] == "col" for cell in found if cell.tag == "th")
    (region,) = [cell for cell in found if cell.attributes.get("role") == "region"]
    assert region.attributes["aria-label"] == f"{title}, the table"
    return headings, rows, table.attributes["class"], title


def test_gaps_are_listed_those_first_that_are_open_and_new() -> None:
    gaps = [
        gap(1, is_accepted=True, first_seen=NOW),
        gap(2, first_seen=NOW - 9),
        gap(3, first_seen=NOW - 5, seconds=90, start=TOP - 30 * HOUR),
    ]
    reason = "dense: more entries than the API serves"
    assert cells(view(state(gaps=gaps)), "gaps") == (
        ["No.", "Contract", "From, length", "State", "Reason"],
        [
            ["3", FIRST, "2026-04-30 08:00:00, 1 min", "next try in 40 s", reason],
            ["2", FIRST, "09:00:00, 1 s", "next try in 40 s", reason],
            ["1", FIRST, "09:00:00, 1 s", "accepted", reason],
        ],
        "wide",
        "Gaps",
    )


def test_replicas_and_other_uses_are_listed() -> None:
    seen = view(state(replicas=[replica(contracts=1234), replica("b", seen_at=NOW - 65)]))
    assert cells(seen, "replicas") == (
        ["Host", "Process", "Version", "Contracts", "Last sign of life"],
        [["poller-0", "12", "0.1.0", "1,234", "2 s ago"], ["b", "12", "0.1.0", "3", "1 min ago"]],
        "",
        "Replicas",
    )
    use = seen.seen.uses[0]
    others: list[Any] = [use._replace(name="fetch", process=7), use._replace(name="backfill-1", process=None)]
    seen.seen.uses.extend(others)
    assert cells(seen, "uses") == (
        ["Use", "State", "Entries", "Waiting"],
        [["fetch", "process 7", "2,010", "0"], ["backfill-1", "not running", "2,010", "0"]],
        "",
        "Other uses of this state directory",
    )
    assert [found.attributes["id"] for found in elements(GOOD, "h2")] == ["contracts", "sinks", "books"]


def test_on_a_good_day_there_is_nothing_else() -> None:
    two = view(state([contract(), contract("2")], [sink("a"), sink("b")]), config=config_of(["a", "b"]))
    scale = "15:0021:0003:0009:00now"
    expected = (
        f"Contracts, the last 24 hours comparedcollectednot yet {FIRST}2,010 entries · 3 s behind {scale}"
        f"22,010 entries · 3 s behind {scale} Sinks a file up to date 2,010 delivered 0 waiting"
        "b file up to date 2,010 delivered 0 waiting Books balanced"
        " New4,020Seen before666Filtered0Fetched4,686 Outbox: 0 entries, 0 bytes of 1 GiB"
    )
    (found,) = texts(two, "div", cls="columns")
    assert "".join(found.split()) == "".join(expected.split())


@pytest.mark.parametrize(("count", "more"), [(10, []), (11, ["and 1 more"])])
def test_of_many_rows_ten_are_shown(count: int, more: list[str]) -> None:
    seen = view(state(gaps=[gap(number) for number in range(count)]))
    assert (len(cells(seen, "gaps")[1]), texts(seen, "p", cls="more-rows")) == (10, more)
    told = view(reasons=[f"reason {number}" for number in range(count)])
    assert len(texts(told, "li", cls=BAD)) == 10
    assert texts(told, "li", cls=WARN) == [
        words.replace("and 1 more", "and 1 more: ionos-poller status has all") for words in more
    ]
