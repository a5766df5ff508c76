"""librdkafka's mock cluster in a separate process: its memory would count in the peak of every process that it starts.

    python -m tests.benchmarks.mock_kafka

It prints its address. Then it reads names of topics, one a line, and prints how many records each topic ever got. It creates a
topic that does not exist.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.support import TOP


@contextmanager
def cluster() -> Iterator[tuple[str, Callable[[str], int]]]:
    """The address of a cluster, and a function that counts the records of a topic, or creates it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.mock_kafka"],
        cwd=TOP,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    answers = process.stdout

    def count(topic: str) -> int:
        print(topic, file=process.stdin)
        return int(answers.readline())

    try:
        yield answers.readline().strip(), count
    finally:
        process.stdin.close()
        process.wait()


def main() -> None:
    from confluent_kafka import Consumer, Producer, TopicPartition

    server = Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 0})
    (broker,) = server.list_topics(timeout=10).brokers.values()
    address = f"{broker.host}:{broker.port}"
    print(address, flush=True)
    # Counts by offsets, not by reading: the cluster keeps only the last 5 MB of a topic.
    reader = Consumer({"bootstrap.servers": address, "group.id": "count", "log_level": 0})
    for line in sys.stdin:
        topic = line.strip()
        numbers = server.list_topics(topic, timeout=10).topics[topic].partitions
        ends = (reader.get_watermark_offsets(TopicPartition(topic, number), 10)[1] for number in numbers)
        print(sum(ends), flush=True)
    reader.close()
    server.flush()


if __name__ == "__main__":
    main()
