"""Entries as the API may give them in the future: entries of the simulator with random changes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from poller.core.answers import parse_page
from poller.core.events import OutboxEvent
from poller.simulator.entries import EntryMaker

CONTRACT = 31960001
AT_MS = 1_777_621_340_530

_KEY_TEXT = (
    "@uuid meta time requestId queueRefId transactionId auditVersion principal sourceIP sourceService serviceHost identity"
    " username contractNumber event type status message param action uri initiator errorCode error httpStatus messages"
    " resources id new a.b %b"
)
_WORD_TEXT = (
    "DONE done FAILED QUEUED SOMETHING RequestAccepted RequestFailed Error GenerateToken Provision GET post http /a/b /a/start"
    " /a?b=c /a? a#b https://h/x?y vr.server.create sec.user.read . 192.0.2.7 2001:DB8::1 fe80::1%eth0 999.1.1.1 *** hmac:00ff"
    " a@b.example a@b \U0001f600 ü“” % %b 12 422 1e5 text \u2028 2026-05-01T07:42:20.530Z 2026-05-01T07:42:20Z yesterday"
)
_KEYS, _WORDS = _KEY_TEXT.split(" "), _WORD_TEXT.split(" ")
_OTHERS: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        7,
        -1,
        422,
        0.1,
        1.10,
        1e300,
        2**70,
        1777621340,
        "",
        " ",
        " 192.0.2.7",
        "\u0000",
        "x" * 2000,
    ),
    *([], {}, ["vr.server.stop"], [""], [None], [{}], [{"id": 5}], [{"type": "t"}], {"username": 7}, [[["deep"]]]),
    *([{"id": "i", "action": "a.delete", "x": 1}], [{"errorCode": 1, "message": "m"}], {"a": {"b": [1, {"c": None}]}}),
]
_VALUES = [*_WORDS, *_OTHERS]


def mutants(count: int, seed: int) -> Iterator[OutboxEvent]:
    """`count` changed entries, the same ones for the same seed, each as an event of the outbox."""
    rng = random.Random(seed)
    makers = [EntryMaker(seed, CONTRACT), EntryMaker(seed + 1, CONTRACT, with_uuid=False)]
    for number in range(count):
        entry: Any = json.loads(rng.choice(makers).render(rng.randrange(100_000), AT_MS + number))
        for _ in range(rng.choice((0, 1, 1, 2, 3, 5, 9))):
            entry = changed(entry, rng)
        text = json.dumps(entry, ensure_ascii=rng.random() < 0.5)
        if rng.random() < 0.05:
            text = text.replace("text", rng.choice((r"\ud800", r"a\udfffb", r"\u0000", r"\ud83d\ude00")))
        body = f'{{"hits":{{"total":1,"hits":[{{"_source":{text}}}]}}}}'
        (event,) = parse_page(body.encode()).events
        time_us = event.time_us or (AT_MS + number) * 1000
        yield OutboxEvent(
            str(CONTRACT), time_us, AT_MS // 1000 + 60, event.identity, int(rng.random() < 0.05), event.line
        )


def changed(entry: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The entry with one thing changed in one of its objects."""
    target = rng.choice(list(_objects(entry)))
    key = rng.choice(list(target) or ["new"])
    match rng.randrange(5):
        case 0:
            target.pop(key, None)
        case 1:
            target[rng.choice(_KEYS)] = rng.choice(_VALUES)
        case 2 if key in target:
            target[key] = [target[key]]
        case 3 if key in target:
            target[rng.choice(_KEYS)] = target.pop(key)
        case _:
            target[key] = rng.choice(_VALUES)
    # All mutants share these values, so an inserted value must not be changed in place.
    return dict(json.loads(json.dumps(entry)))


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from _objects(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _objects(inner)
