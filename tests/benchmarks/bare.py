"""The baselines for ionos-poller: loops that keep no state and survive no failure. Run as a process of its own.

    python -m tests.benchmarks.bare collect|end-to-end|tutorial URL SPAN_SECONDS EVENTS [SINK_URL]
    python -m tests.benchmarks.bare deliver FILE SINK_URL
    python -m tests.benchmarks.bare kafka FILE BROKER TOPIC
    python -m tests.benchmarks.bare idle URL SPAN_SECONDS

`collect` requests pages, parses and prints them. `end-to-end` gzips and posts them instead. `tutorial` is a stand-in for the
vendor's tutorial script: one contract after the other, all in memory, a sleep between requests. `deliver` reads lines and posts
them, `kafka` gives them to an idempotent producer of librdkafka. `idle` makes the requests of a poll that finds nothing.
"""

from __future__ import annotations

import gzip
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests

TOKEN = {"Authorization": "Bearer demo-token"}
KEY = {"APIKEY": "demo-key", "Content-Type": "application/json", "Content-Encoding": "gzip"}
PAGE = 1000
# A loop that does not split must use windows below the API's limit of 10,000 entries.
WINDOW_EVENTS = 8000
GZIP_LEVEL = 3
TUTORIAL_SLEEP_SECONDS = 0.1


def main(arguments: list[str]) -> None:
    mode, *rest = arguments
    if mode == "deliver":
        deliver(*rest)
    elif mode == "kafka":
        kafka(*rest)
    elif mode == "idle":
        idle(rest[0], int(rest[1]))
    else:
        collect(mode, rest[0], int(rest[1]), int(rest[2]), *rest[3:])


def kafka(file: str, broker: str, topic: str) -> None:
    from confluent_kafka import Producer

    started = time.monotonic()
    producer = Producer(
        {
            "bootstrap.servers": broker,
            "acks": "all",
            "enable.idempotence": True,
            "compression.type": "lz4",
            "linger.ms": 5,
            "log_level": 0,
        }
    )
    with Path(file).open("rb") as lines:
        for line in lines:
            while True:
                try:
                    producer.produce(topic, line[:-1], key=b"1")
                    break
                except BufferError:
                    producer.poll(0.1)
            producer.poll(0)
    producer.flush()
    print(time.monotonic() - started)


def collect(mode: str, url: str, span: int, events: int, sink_url: str = "") -> None:
    import msgspec  # not at the top: `idle` imports only requests

    session = requests.Session()
    kept = []
    for contract in contracts(session, url):
        for entries in pages(session, url, contract, span, events):
            if mode == "collect":
                sys.stdout.write("".join([msgspec.json.encode(entry).decode() + "\n" for entry in entries]))
            elif mode == "end-to-end":
                post(session, sink_url, msgspec.json.encode(entries))
            else:
                kept += entries
                time.sleep(TUTORIAL_SLEEP_SECONDS)  # as the tutorial's script does: it is part of the measurement
    for entry in kept:
        print(msgspec.json.encode(entry).decode())


def contracts(session: requests.Session, url: str) -> list[int]:
    answer = session.get(f"{url}/activitylog/v1/contracts", headers=TOKEN, timeout=30)
    return [item["id"] for item in answer.json()]


def pages(session: requests.Session, url: str, contract: int, span: int, events: int) -> Iterator[list[Any]]:
    import msgspec

    now = int(time.time()) + 1
    step = max(1, int(span * WINDOW_EVENTS / max(1, events)))
    for start in range(now - span - 60, now, step):
        offset = 0
        while True:
            params: dict[str, str | int] = {
                "dateStart": stamp(start),
                "dateEnd": stamp(min(start + step, now)),
                "offset": offset,
                "limit": PAGE,
            }
            answer = session.get(f"{url}/activitylog/v1/contracts/{contract}", params=params, headers=TOKEN, timeout=30)
            hits = msgspec.json.decode(answer.content)["hits"]
            if not hits["hits"]:
                break
            yield [hit["_source"] for hit in hits["hits"]]
            offset += len(hits["hits"])
            if offset >= hits["total"]:
                break


def stamp(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def post(session: requests.Session, url: str, body: bytes) -> None:
    session.post(url, data=gzip.compress(body, GZIP_LEVEL), headers=KEY, timeout=30).raise_for_status()


def deliver(path: str, sink_url: str) -> None:
    session = requests.Session()
    lines: list[bytes] = []
    with open(path, "rb") as file:  # noqa: PTH123  # bare
        for line in file:
            lines.append(line.rstrip(b"\n"))
            if len(lines) == PAGE:
                post(session, sink_url, b"[" + b",".join(lines) + b"]")
                lines = []
    if lines:
        post(session, sink_url, b"[" + b",".join(lines) + b"]")


def idle(url: str, span: int) -> None:
    now = int(time.time())
    for item in requests.get(f"{url}/activitylog/v1/contracts", headers=TOKEN, timeout=30).json():
        window = {"dateStart": stamp(now - span), "dateEnd": stamp(now), "offset": "0", "limit": "1000"}
        url_of = f"{url}/activitylog/v1/contracts/{item['id']}"
        for hit in requests.get(url_of, params=window, headers=TOKEN, timeout=30).json()["hits"]["hits"]:
            print(hit["_source"])


if __name__ == "__main__":
    main(sys.argv[1:])
