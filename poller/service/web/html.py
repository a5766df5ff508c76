"""The page as HTML: one document with its style and script inside. Decides nothing; every text in it is escaped."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from poller import __version__
from poller.core import hours
from poller.core.amounts import duration, plural, size
from poller.core.windows import format_time
from poller.pipeline.status import hours_of
from poller.service.web.tiles import tiles
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
from poller.store.overview import Overview, SinkOverview
from poller.store.rows import Contract

T = TypeVar("T")

_CONTRACTS_AT_A_GLANCE = 50
_ROWS_AT_A_GLANCE = 10
_STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
_SCRIPT = Path(__file__).with_name("page.js").read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# Only this style, this script, and requests to the origin of the page are allowed.
HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src {_hash(_STYLE)}; script-src {_hash(_SCRIPT)}; connect-src 'self'; img-src data:;"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}

_BADGES = {OK: "All is well", WARN: "Worth a look", BAD: "Needs attention"}
_COLOURS = {OK: "#0b7a6f", WARN: "#b26a00", BAD: "#c0362c"}
_SIGNS = {OK: "M4.5 10.5l3.5 3.5 7.5-8", WARN: "M10 5v6.5M10 14.7v.3", BAD: "M6 6l8 8M14 6l-8 8"}
_HOUR_CLASSES = {
    hours.COMPARED: "compared",
    hours.COLLECTED: "collected",
    hours.GAP: "gap",
    hours.NOT_YET: "not-yet",
    hours.BEFORE: "before",
}
_HOUR_WORDS = {
    hours.COMPARED: "compared with the API's own count",
    hours.COLLECTED: "collected, not compared yet",
    hours.GAP: "has a gap",
    hours.NOT_YET: "not yet complete",
    hours.BEFORE: "before collecting began",
}


def render(view: View, *, is_whole: bool = False) -> str:
    """The document. Unless `is_whole`, it shows only some of many contracts, those with problems first."""
    how = level(view)
    state = view.state
    left: list[str] = []
    right: list[str] = []
    if state is not None:
        left = [_contracts(view, state, is_whole=is_whole), _gaps(view, state), _chart(view)]
        right = [_sinks(view, state), _books(view, state), _replicas(view, state), _other_uses(view)]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{_BADGES[how]} · ionos-poller</title>
<link rel="icon" href="{_icon(how)}">
<noscript><meta http-equiv="refresh" content="10"></noscript>
<style>{_STYLE}</style>
</head>
<body>
<header><div class="frame">
<span><strong>ionos-poller</strong> {escape(__version__)}</span>
<span id="clock">Updated {_time(view.now, view.now)} UTC</span>
</div></header>
<div id="stale" role="alert" hidden><div class="frame">No answer from ionos-poller. \
Everything below is as it was at the time above.</div></div>
<p id="announcement" class="hidden" role="status">{_BADGES[how]}</p>
<main id="main" class="frame">
{_verdict(view, how)}
{tiles(view) if state is not None else "<div></div>"}
<div class="columns"><div>{"".join(left)}</div><div>{"".join(right)}</div></div>
</main>
<footer><div class="frame">
<span>All times in UTC.</span>
<a id="link-json" href="status.json">The same as JSON</a>
<a id="link-metrics" href="metrics">Metrics</a>
<a id="link-ready" href="readyz">Ready?</a>
<a id="link-health" href="healthz">Alive?</a>
</div></footer>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _icon(how: str) -> str:
    colour = _COLOURS[how].replace("#", "%23")
    return (
        "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 20 20'%3E"
        f"%3Ccircle cx='10' cy='10' r='9.5' fill='{colour}'/%3E%3Cpath d='{_SIGNS[how]}' fill='none' stroke='white'"
        " stroke-width='2.4' stroke-linecap='round' stroke-linejoin='round'/%3E%3C/svg%3E"
    )


def _verdict(view: View, how: str) -> str:
    sign = (
        '<svg viewBox="0 0 20 20" aria-hidden="true"><circle cx="10" cy="10" r="9" fill="none" stroke="currentColor"'
        f' stroke-width="2"/><path d="{_SIGNS[how]}" fill="none" stroke="currentColor" stroke-width="2"'
        ' stroke-linecap="round" stroke-linejoin="round"/></svg>'
    )
    found = problems(view)
    rows = "".join(f'<li class="{word.level}">{_code(word.text)}</li>' for word in _first(found))
    if len(found) > _ROWS_AT_A_GLANCE:
        rest = f"and {len(found) - _ROWS_AT_A_GLANCE:,} more: `ionos-poller status` has all"
        rows += f'<li class="{WARN}">{_code(rest)}</li>'
    reasons = f'<ul class="reasons">{rows}</ul>' if rows else ""
    return f"""<section class="verdict {how}" aria-labelledby="headline">
<p class="badge" id="badge">{sign}{_BADGES[how]}</p>
<h1 id="headline">{escape(headline(view))}</h1>
<p class="sub">{escape(subline(view))}</p>
{reasons}</section>"""


def _contracts(view: View, state: Overview, *, is_whole: bool) -> str:
    rows = sorted(state.contracts, key=lambda row: contract_word(view, row).level == OK)
    shown = rows if is_whole else rows[:_CONTRACTS_AT_A_GLANCE]
    present = {name for row in shown for name in hours_of(row, state, view.now)}
    legend = "".join(
        f'<li><i class="{_HOUR_CLASSES[name]}"></i>{escape(name)}</li>' for name in hours.STATES if name in present
    )
    start = hours.first_hour(view.now)
    scale = "".join(f"<span>{_hour(start + at * 3600)}</span>" for at in (0, 6, 12, 18)) + "<span>now</span>"
    more = ""
    if len(shown) < len(rows):
        link = '<a id="link-all" href="?all">show all</a>'
        more = f'<p class="more-rows">and {len(rows) - len(shown):,} more, none worse: {link}</p>'
    elif not rows:
        more = '<p class="small">No contract is known yet.</p>'
    return f"""<section class="card" aria-labelledby="contracts">
<div class="head"><h2 id="contracts">Contracts, the last 24 hours</h2><ul class="legend">{legend}</ul></div>
<div>{"".join(_contract(view, state, row, scale) for row in shown)}</div>{more}</section>"""


def _contract(view: View, state: Overview, row: Contract, scale: str) -> str:
    word = contract_word(view, row)
    account = f' <span class="dim">{escape(row.account)}</span>' if len(view.config.accounts) > 1 else ""
    more = f'<p class="small">{_code(word.more)}</p>' if word.more else ""
    return f"""<div class="contract">
<p class="what"><span class="name">{escape(row.contract)}{account}</span>\
<span class="small">{plural(row.new, "entry")} · <span class="word {word.level}">{escape(word.text)}</span></span></p>
{_band(hours.first_hour(view.now), hours_of(row, state, view.now))}
<p class="scale" aria-hidden="true">{scale}</p>{more}</div>"""


def _band(start: int, states: Sequence[str]) -> str:
    cells = "".join(
        f'<i class="{_HOUR_CLASSES[name]}" title="{_hour(start + at * 3600)} to {_hour(start + (at + 1) * 3600)}:'
        f' {escape(_HOUR_WORDS[name])}"></i>'
        for at, name in enumerate(states)
    )
    return f'<div class="band" role="img" aria-label="{escape(_band_words(start, states))}">{cells}</div>'


def _band_words(start: int, states: Sequence[str]) -> str:
    """The text of the band for screen readers: how many hours of each kind, and which ones have a gap."""
    counts = Counter(states)
    words = [f"{plural(counts[name], 'hour')} {name}" for name in hours.STATES if name in counts and name != hours.GAP]
    at = 0
    for name, group in groupby(states):
        length = len(list(group))
        if name == hours.GAP:
            words.append(f"gap between {_hour(start + at * 3600)} and {_hour(start + (at + length) * 3600)}")
        at += length
    return f"Last 24 hours: {', '.join(words)}"


def _chart(view: View) -> str:
    counts = view.per_minute
    known = [(at, count) for at, count in enumerate(counts) if count is not None]
    if not known:
        return ""
    highest = max(count for _, count in known)
    top = max(highest, 1)
    width, height = 10, 100
    bars = []
    for at, count in enumerate(counts):
        if count is None:
            bars.append(f'<rect class="unknown" x="{at * width + 1}" y="0" width="{width - 2}" height="{height}"/>')
        elif count:
            tall = max(2.0, count / top * height)
            name = "now" if at == len(counts) - 1 else "bar"
            bars.append(
                f'<rect class="{name}" x="{at * width + 1}" y="{height - tall:.1f}" width="{width - 2}" height="{tall:.1f}"/>'
            )
    end = int(view.now) // 60 * 60
    total = sum(count for _, count in known)
    since = ""
    if len(known) < len(counts):
        since = f"since {_hour(end - (len(counts) - 1 - known[0][0]) * 60)}, when this process began to count"
    words = f"Entries collected per minute in the last hour: {total:,} in all, at most {highest:,} in a minute {since}".rstrip()
    right = f"at most {highest:,}" if highest else "none in this time"
    return f"""<section class="card" aria-labelledby="rate">
<div class="head"><h2 id="rate">Entries per minute</h2><span class="small">{right}</span></div>
<div class="chart" role="img" aria-label="{escape(words)}">
<svg viewBox="0 0 {len(counts) * width} {height}" preserveAspectRatio="none" aria-hidden="true">
<line class="grid" x1="0" y1="0" x2="{len(counts) * width}" y2="0"/>{"".join(bars)}
<line class="base" x1="0" y1="{height}" x2="{len(counts) * width}" y2="{height}"/></svg></div>
<p class="scale" aria-hidden="true"><span>{_hour(end - 59 * 60)}</span><span>{_hour(end - 29 * 60)}</span><span>now</span></p>
{f'<p class="small">Counted {escape(since)}.</p>' if since else ""}</section>"""


def _sinks(view: View, state: Overview) -> str:
    rows = "".join(_sink(view, row) for row in state.sinks)
    return f"""<section class="card" aria-labelledby="sinks"><h2 id="sinks">Sinks</h2>
<div>{rows or '<p class="small">No sink is known yet.</p>'}</div></section>"""


def _sink(view: View, row: SinkOverview) -> str:
    word = sink_word(view, row)
    dead = f" <span><b>{row.dead_letters:,}</b> dead letters</span>" if row.dead_letters else ""
    since = f" for {duration(view.now - row.waiting_since)}" if row.waiting and row.waiting_since is not None else ""
    more = f'<p class="fine">{_code(word.more)}</p>' if word.more else ""
    waiting = f"<span><b>{row.waiting:,}</b> waiting{since}</span>"
    return f"""<div class="sink"><p class="what"><span class="name">{escape(row.sink.name)} \
<span class="dim">{escape(row.sink.type) if row.sink.type != row.sink.name else ""}</span></span>\
<span class="word {word.level}">{escape(word.text)}</span></p>
<p class="counts"><span><b>{row.sink.delivered:,}</b> delivered</span> {waiting}{dead}</p>\
{more}</div>"""


def _books(view: View, state: Overview) -> str:
    fetched, new, seen, filtered = (
        sum(getattr(row, name) for row in state.contracts) for name in ("fetched", "new", "seen", "filtered")
    )
    rows = (("New", new), ("Seen before", seen), ("Filtered", filtered))
    told = "".join(f"<dt>{name}</dt><dd>{count:,}</dd>" for name, count in rows)
    how, balance = (BAD, "do not balance") if state.imbalances() else (OK, "balanced")
    events = plural(state.outbox.events, "entry")
    used = state.outbox.used_bytes
    most = view.config.outbox.max_bytes
    return f"""<section class="card" aria-labelledby="books">
<div class="head"><h2 id="books">Books</h2><span class="word {how}">{balance}</span></div>
<dl class="books">{told}<dt class="sum">Fetched</dt><dd class="sum">{fetched:,}</dd></dl>
<p class="small" id="outbox-label">Outbox: {events}, {size(used)} of {size(most)}</p>
<meter min="0" max="{most}" high="{int(most * 0.8)}" value="{min(used, most)}" aria-labelledby="outbox-label">\
</meter></section>"""


def _gaps(view: View, state: Overview) -> str:
    gaps = sorted(state.gaps, key=lambda gap: (gap.is_accepted, -gap.first_seen))
    if not gaps:
        return ""
    rows = [
        (
            str(gap.id),
            gap.contract,
            f"{clock(gap.start, view.now)}, {duration(gap.window.seconds)}",
            "accepted" if gap.is_accepted else f"next try in {duration(gap.next_try_at - view.now)}",
            f"{gap.kind}: {gap.reason}",
        )
        for gap in _first(gaps)
    ]
    return _table("gaps", "Gaps", ("No.", "Contract", "From, length", "State", "Reason"), rows, len(gaps), "wide")


def _replicas(view: View, state: Overview) -> str:
    if not state.replicas:
        return ""
    rows = [
        (row.host, str(row.pid), row.version, f"{row.contracts:,}", f"{duration(view.now - row.seen_at)} ago")
        for row in _first(state.replicas)
    ]
    headings = ("Host", "Process", "Version", "Contracts", "Last sign of life")
    return _table("replicas", "Replicas", headings, rows, len(state.replicas))


def _other_uses(view: View) -> str:
    others = [use for use in view.seen.uses if use.name != "run"]
    if not others:
        return ""
    rows = [
        (
            use.name,
            f"process {use.process}" if use.process else "not running",
            f"{sum(row.new for row in use.state.contracts):,}",
            f"{sum(row.waiting for row in use.state.sinks):,}",
        )
        for use in _first(others)
    ]
    return _table(
        "uses", "Other uses of this state directory", ("Use", "State", "Entries", "Waiting"), rows, len(others)
    )


def _table(
    id_: str, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], count: int, look: str = ""
) -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{_code(cell)}</td>' for cell in row)}</tr>" for row in rows)
    more = f'<p class="more-rows">and {count - len(rows):,} more</p>' if count > len(rows) else ""
    return f"""<section class="card" aria-labelledby="{id_}"><h2 id="{id_}">{escape(title)}</h2>
<div class="scroll" id="{id_}-table" tabindex="0" role="region" aria-label="{escape(title)}, the table"><table class="{look}">\
<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{more}</section>"""


def _first(rows: Sequence[T]) -> Sequence[T]:
    return rows[:_ROWS_AT_A_GLANCE]


def _code(text: str) -> str:
    """The escaped text; text in backquotes becomes code."""
    parts = escape(text).split("`")
    if len(parts) % 2 == 0:
        return escape(text)
    return "".join(f"<code>{part}</code>" if at % 2 else part for at, part in enumerate(parts))


def _time(at: float, now: float) -> str:
    return f'<time datetime="{format_time(int(at))}">{clock(at, now)}</time>'


def _hour(at: int) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%H:%M}"
