"""`run` is killed again and again at random moments, while sinks and API also fail: nothing is lost or invented."""

from __future__ import annotations

import os
import random
import sqlite3
import time

from poller.simulator.faults import API_FAILURES
from tests.daemon import CONTRACTS, LOGGING, LOKI, MakeDaemon
from tests.support import wait_until

# IONOS_POLLER_TEST_KILLS=100 runs all kills of issue 3. Read at import: the environment is cleaned before each test.
KILLS = int(os.environ.get("IONOS_POLLER_TEST_KILLS", "12"))
BATCH_EVENTS = 100


def test_kills_at_random_moments_lose_nothing_and_repeat_at_most_a_batch_each(daemon_of: MakeDaemon) -> None:
    rng = random.Random(20261121)
    # Without 429: its pause and the slow restart would take most of the time. `tests/faults` has it.
    api = [f"{kind}:{'300ms:' if kind in ('hang', 'drip') else ''}1%" for kind in API_FAILURES if kind != "429"]
    daemon = daemon_of(contracts=2, events=1500, faults=(*api, "sink=*:mixed:300ms:20%", "late:5%:2s"))
    # Small windows and batches, so that one is always in flight. Some lives may end in the same second.
    daemon.configure(
        # A long timeout for sinks: late answers of a busy machine would cause repeats that the test does not count.
        each={"batch_events": str(BATCH_EVENTS), "read_timeout": '"10s"'},
        api={"page_size": "100", "result_window": "2000", "read_timeout": '"250ms"'},
    )
    killed_at_work = 0
    for _ in range(KILLS):
        before = daemon.simulator.intakes[LOGGING].accepted
        daemon.start(is_awaited=False)
        for contract in CONTRACTS:
            daemon.simulator.add_entries(contract, count=rng.randrange(100, 400), span_seconds=0)
        # The kill comes after the start of the process in half of the lives, after the first delivery in the others.
        if rng.random() < 0.5:
            wait_until(lambda before=before: daemon.simulator.intakes[LOGGING].accepted > before, what="work")
            time.sleep(rng.uniform(0, 0.2))  # the random moment of the kill
        else:
            time.sleep(rng.uniform(0.1, 0.9))  # the same
        daemon.kill()
        killed_at_work += daemon.simulator.intakes[LOGGING].accepted > before
    assert killed_at_work > KILLS / 4
    daemon.start()
    daemon.await_delivery(timeout=60)
    wait_until(lambda: all(daemon.metric("outbox_events", sink=name) == 0 for name in (LOGGING, LOKI)))
    daemon.stop()
    books = daemon.simulator.books(LOGGING)
    lost_acks = daemon.simulator.sink_traffic[LOGGING].counts[LOGGING].get("lost-ack", 0)
    print(f"{KILLS} kills, {killed_at_work} of them at work, {lost_acks} acknowledgements lost: {books}")
    assert (books.lost, books.invented) == (0, 0)
    assert books.repeated <= (KILLS + lost_acks) * BATCH_EVENTS
    daemon.assert_once(LOKI)
    daemon.assert_clean()
    state = daemon.state()
    assert state["outbox"] == {"events": 0, "bytes": 0, "letter_bytes": 0}
    assert sum(row["new"] for row in state["contracts"]) == books.expected
    with sqlite3.connect(daemon.state_dir / "run.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
