"""`run` in operation: reloads, a second instance, health and metrics, tokens, clocks, a full disk."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from poller import __version__
from tests.daemon import CONTRACTS, FIRST, LOGGING, LOKI, SECOND, Daemon, MakeDaemon
from tests.support import wait_until

DAY_SECONDS = 86_400
# IONOS_POLLER_TEST_REST_SECONDS=70 is longer than a poll interval. Read at import: tests have a clean environment.
REST_SECONDS = float(os.environ.get("IONOS_POLLER_TEST_REST_SECONDS", "6"))

# The public metrics and their labels (docs/metrics.md), as a scrape shows them.
METRICS = {
    "events_collected_total": {"account", "contract"},
    "events_filtered_total": {"reason"},
    "events_duplicate_total": {"contract"},
    "events_late_total": {"contract"},
    "events_repaired_total": {"contract"},
    "events_delivered_total": {"sink"},
    "batches_failed_total": {"sink", "reason"},
    "dead_letters": {"sink"},
    "outbox_events": {"sink"},
    "outbox_bytes": set(),
    "state_created_at_seconds": set(),
    "collect_lag_seconds": {"account", "contract"},
    "deliver_lag_seconds": {"sink"},
    "api_requests_total": {"code"},
    "api_request_seconds_bucket": {"le"},
    "api_request_seconds_count": set(),
    "token_expires_at_seconds": {"account"},
    "account_unread": {"account"},
    "last_poll_success_at_seconds": {"contract"},
    "build_info": {"version"},
}


def jwt(expires_at: float) -> str:
    parts = ({"alg": "RS256"}, {"exp": int(expires_at), "iss": "ionoscloud"}, {"signature": "none"})
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)


def add(daemon: Daemon, count: int = 5) -> None:
    for contract in daemon.simulator.contracts:
        daemon.simulator.add_entries(contract, count=count)


def await_ready(daemon: Daemon) -> None:
    wait_until(lambda: not daemon.troubles(), what="ready")


# Health and metrics


def test_every_metric_is_there_with_its_labels_and_agrees_with_what_happened(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=2, events=500, token=jwt(time.time() + 90 * DAY_SECONDS), faults=("sink=*:503:x1",))
    daemon.start()
    daemon.await_delivery()
    wait_until(lambda: daemon.metric("outbox_events", sink=LOKI) + daemon.metric("outbox_events", sink=LOGGING) == 0)
    # Wait until a poll has read the overlap again.
    wait_until(lambda: daemon.metric("events_duplicate_total", contract=str(FIRST)) > 0)
    samples = daemon.metrics()
    found: dict[str, set[str]] = {}
    for name, labels in samples:
        found.setdefault(name, set()).update(label for label, _ in labels)
    for name, labels in METRICS.items():
        assert found.get(name) == labels, name
    assert daemon.metric("build_info", version=__version__) == 1
    for contract in map(str, CONTRACTS):
        assert daemon.metric("audit_missing_events", contract=contract) == 0, "before the first audit, too"
        assert daemon.metric("events_collected_total", account="default", contract=contract) == 500
        assert 0 <= daemon.metric("collect_lag_seconds", account="default", contract=contract) < 30
        assert time.time() - daemon.metric("last_poll_success_at_seconds", contract=contract) < 30
    for sink in (LOGGING, LOKI):
        assert daemon.metric("events_delivered_total", sink=sink) == 1000
        assert daemon.metric("batches_failed_total", sink=sink, reason="unavailable") >= 0
    assert daemon.metric("outbox_bytes") == 0
    # Both from one scrape: a request may end between two scrapes.
    wait_until(
        lambda: (
            (found := daemon.metrics())[("api_requests_total", (("code", "200"),))]
            == found[("api_request_seconds_count", ())]
        ),
        what="they agree",
    )
    assert daemon.get("/metrics")[1].endswith("\n")
    assert daemon.get("/nothing")[0] == 404
    assert "/metrics" in daemon.get("/nothing")[1]
    for path in ("/metrics", "/healthz", "/readyz", "/", "/status.json"):
        assert daemon.get(path, "HEAD") == (200, ""), "some look no further"
    daemon.stop()
    daemon.assert_once()
    daemon.assert_clean()


def test_readyz_and_status_tell_of_a_contract_that_fails_and_healthz_does_not(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=2, events=10, forbidden=(SECOND,))
    daemon.start()
    reason = wait_until(lambda: daemon.trouble(f"contract {SECOND}", "403"), what="/readyz says so")
    assert "ACCESS_ACTIVITY_LOG" in reason
    assert daemon.get("/healthz")[0] == 200
    wait_until(lambda: not daemon.trouble(str(FIRST)), what="the other one is polled, and no trouble")
    assert daemon.metric("last_poll_success_at_seconds", contract=str(FIRST)) > 0
    rows = {row["contract"]: row for row in daemon.state()["contracts"]}
    assert "403" in rows[str(SECOND)]["failure"]
    assert rows[str(FIRST)]["failure"] == ""
    assert f"contract {SECOND}: contract" not in reason + daemon.command("status"), "said once"
    assert str(SECOND) in daemon.command("status")
    daemon.simulator.change_settings(forbidden=())
    daemon.await_delivery()
    await_ready(daemon)
    daemon.stop()
    daemon.assert_once()
    daemon.assert_clean()


def test_a_contract_that_was_excluded_is_no_alarm_for_ever(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=2, events=10)
    daemon.start()
    daemon.await_delivery()
    both = {(FIRST, "collect_lag_seconds"), (SECOND, "collect_lag_seconds")}
    both |= {(contract, "last_poll_success_at_seconds") for contract in (FIRST, SECOND)}
    both |= {(contract, "gap_seconds") for contract in (FIRST, SECOND)}

    def ageing() -> set[tuple[int, str]]:
        return {
            (contract, name)
            for name, labels in daemon.metrics()
            for contract in (FIRST, SECOND)
            if ("contract", str(contract)) in labels and "seconds" in name
        }

    assert ageing() == both
    daemon.configure(poll={"interval": '"1s"', "exclude_contracts": f"[{SECOND}]"})
    daemon.reload()
    assert ageing() == {pair for pair in both if pair[0] == FIRST}
    assert daemon.metric("events_collected_total", account="default", contract=str(SECOND)) == 10
    lines = daemon.command("status").splitlines()
    assert [line.split()[-1] for line in lines if line.startswith(f" {SECOND} ")] == ["excluded"]
    daemon.stop()
    daemon.assert_clean()


def test_a_poll_that_takes_longer_than_the_interval_is_told_in_our_own_words_and_only_for_debugging(
    daemon_of: MakeDaemon,
) -> None:
    daemon = daemon_of(contracts=1, events=10, latency_seconds=2.5)
    daemon.start("--log-level", "debug")
    wait_until(lambda: daemon.logged("job.skipped", level="DEBUG"), what="a poll is skipped")
    assert daemon.logged("job.skipped")[0]["job"] == f"poll-{FIRST}"
    daemon.stop()
    assert "Execution of job" not in daemon.stderr


# Credentials of the API


def test_an_expired_token_is_told_and_its_successor_is_used_without_a_restart(daemon_of: MakeDaemon) -> None:
    expired, fresh = jwt(time.time() - 60), jwt(time.time() + 5 * DAY_SECONDS)
    daemon = daemon_of(contracts=2, events=50, token=fresh)
    daemon.token_file.write_text(expired)
    daemon.start()
    wait_until(lambda: daemon.trouble("account default", "token expired"), what="/readyz says so")
    wait_until(lambda: daemon.trouble("401"), what="so does the discovery")
    assert daemon.logged("token.expired")
    assert daemon.metric("account_unread", account="default") == 1
    assert daemon.metric("token_expires_at_seconds", account="default") == pytest.approx(time.time() - 60, abs=30)
    daemon.token_file.write_text(fresh)
    daemon.await_delivery()
    # The reason goes away when the file is read again: every minute, or at once with a reload.
    daemon.reload()
    await_ready(daemon)
    assert daemon.metric("account_unread", account="default") == 0
    (soon,) = daemon.logged("token.expires_soon")
    assert soon["level"] == "WARNING"
    assert soon["account"] == "default"
    assert daemon.metric("token_expires_at_seconds", account="default") == pytest.approx(
        time.time() + 5 * DAY_SECONDS, abs=30
    )
    assert expired not in daemon.stderr
    assert fresh not in daemon.stderr
    daemon.stop()
    daemon.assert_once()
    daemon.assert_clean()


# Clocks


def test_with_clocks_apart_a_warning_is_given_and_nothing_is_lost_or_held_back(
    daemon_of: MakeDaemon,
) -> None:
    skew_seconds = 120
    daemon = daemon_of(contracts=2, date_skew_seconds=skew_seconds)
    daemon.configure(poll={"interval": '"1s"'})
    daemon.start()
    await_ready(daemon)
    for _ in range(2):
        add(daemon)
        # Usually within a few polls. If the slower clock held entries back, they would come `skew_seconds` later.
        daemon.await_delivery(timeout=skew_seconds / 2)
        time.sleep(0.37)
    (warning,) = daemon.logged("clock.skewed")
    assert warning["level"] == "WARNING"
    assert warning["seconds_ahead"] == pytest.approx(-skew_seconds, abs=3)
    assert daemon.metric("clock_skew_seconds", account="default") == pytest.approx(-skew_seconds, abs=3)
    # The clock is corrected while it runs, then wrong in the other direction.
    daemon.simulator.change_settings(date_skew_seconds=0)
    add(daemon)
    daemon.await_delivery(timeout=skew_seconds / 2)
    wait_until(lambda: daemon.logged("clock.agreed"), what="the end of the skew is told")
    daemon.simulator.change_settings(date_skew_seconds=-skew_seconds)
    add(daemon)
    daemon.await_delivery(timeout=skew_seconds / 2)
    daemon.stop()
    daemon.assert_once()
    daemon.assert_clean()


# Starting and reloading


def test_a_second_instance_on_the_same_state_ends_with_4_and_disturbs_nothing(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=2, events=50)
    daemon.start()
    assert daemon.process is not None
    told = daemon.command("run", code=4)
    assert f"process {daemon.process.pid}" in told
    daemon.await_delivery()
    daemon.stop()
    daemon.assert_once()
    daemon.assert_clean()


def test_a_port_that_is_taken_holds_up_neither_the_start_nor_a_reload(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=1, events=50)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", daemon.port))
        taken.listen()
        daemon.start(is_awaited=False)
        daemon.await_delivery()
        (told,) = daemon.logged("endpoint.unavailable")
        assert "http.listen" in told["why"]
        assert str(daemon.port) in told["why"]
    wait_until(daemon.is_up, what="it listens as soon as it can")
    assert len(daemon.logged("endpoint.unavailable")) == len(daemon.logged("endpoint.opened")) == 1
    daemon.configure(port=int(daemon.simulator.url.rpartition(":")[2]))
    daemon.reload()
    (failed,) = daemon.logged("config.reload_failed")
    assert "http.listen" in failed["why"]
    add(daemon)
    daemon.await_delivery()
    assert daemon.get("/healthz")[0] == 200
    daemon.stop()
    daemon.assert_once()
    daemon.assert_clean()


def test_a_reload_moves_the_listener_between_the_addresses_of_one_port(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=1, events=10)
    daemon.start()
    for count, host in enumerate(("0.0.0.0", "127.0.0.1", "[::]", "127.0.0.1"), 1):
        daemon.configure(host=host)
        daemon.reload()
        assert len(daemon.logged("config.reloaded")) == count, daemon.logged("config.reload_failed")
        assert daemon.get("/healthz")[0] == 200
    daemon.stop()
    daemon.assert_clean()


def test_reloads_leave_no_connections_behind(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=2, events=10)
    daemon.start()
    daemon.await_delivery()
    counts = []
    for _ in range(15):
        daemon.reload()
        counts.append(daemon.descriptor_count())
    assert counts[-1] <= counts[0] + 2, counts
    daemon.stop()
    daemon.assert_clean()


def test_a_key_file_that_is_not_there_yet_ends_the_start_with_1(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=1, events=10)
    key = daemon.key_file.read_text()
    for spoil in (daemon.key_file.unlink, lambda: daemon.key_file.write_text("\n")):
        spoil()
        assert str(daemon.key_file) in daemon.command("run", code=1)
        daemon.key_file.write_text(key)
    daemon.configure(sinks={LOGGING: {"batch_events": "0"}})
    daemon.key_file.unlink()
    daemon.command("run", code=2)  # the missing key file does not hide the wrong value


def test_a_reload_that_names_another_state_says_that_it_needs_a_restart(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=1, events=10)
    daemon.start()
    old = daemon.state_dir
    daemon.state_dir = daemon.directory / "another"
    daemon.configure()
    daemon.reload()
    (told,) = daemon.logged("config.restart_needed", level="WARNING")
    assert (told["key"], told["in_use"], told["configured"]) == ("state_dir", str(old), str(daemon.state_dir))
    daemon.state_dir = old
    daemon.configure()
    daemon.reload()
    assert len(daemon.logged("config.restart_needed")) == 1
    add(daemon)
    daemon.await_delivery()
    daemon.stop()
    daemon.assert_clean()


def test_a_bad_config_leaves_the_old_one_in_force_and_a_good_one_replaces_it(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=1, events=50)
    daemon.start()
    good = daemon.config_file.read_text()
    for bad in ("[poll\n", good.replace('"1s"', '"1 parsec"'), "", good.replace("[poll]", "[pole]")):
        daemon.config_file.write_text(bad)
        daemon.reload()
    assert len(daemon.logged("config.reload_failed")) == 4
    assert not daemon.logged("config.reloaded")
    assert daemon.logged("config.reload_failed")[1]["why"].count("poll.interval") == 1
    add(daemon)
    daemon.await_delivery()
    daemon.configure(sinks={LOKI: {}, LOGGING: {}}, poll={"interval": '"2s"'})
    for _ in range(3):
        daemon.reload()
    assert len(daemon.logged("config.reloaded")) == 3
    add(daemon)
    daemon.await_delivery()
    await_ready(daemon)
    daemon.stop()
    daemon.assert_once()
    daemon.assert_clean()


def test_a_sink_that_left_the_config_holds_the_outbox_until_it_is_forgotten(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=1, events=200, faults=("sink=loki:503",))
    daemon.start()
    daemon.await_delivery(LOGGING)
    daemon.configure(sinks={LOGGING: {}})
    daemon.reload()
    assert daemon.logged("sink.unknown", sink=LOKI)
    assert "left the config" in daemon.command("sinks", "list")
    assert daemon.metric("outbox_events", sink=LOKI) == 200
    wait_until(lambda: daemon.metric("outbox_events", sink=LOGGING) == 0)
    assert daemon.metric("outbox_bytes") > 0
    assert "configured sink" in daemon.command("sinks", "forget", LOGGING, code=2)
    assert "200 entries" in daemon.command("sinks", "forget", LOKI)
    assert daemon.metric("outbox_bytes") == 0
    add(daemon)
    daemon.await_delivery(LOGGING)
    daemon.stop()
    daemon.assert_once(LOGGING)
    daemon.assert_clean()
    assert daemon.simulator.intakes[LOKI].stored == 0
    assert "loki" not in daemon.command("sinks", "list")


def test_a_sink_forgotten_while_its_batch_is_on_the_way_does_no_harm(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=1, events=200, faults=("sink=loki:latency:1s",))
    daemon.configure(each={"read_timeout": '"10s"'})
    daemon.start()
    wait_until(lambda: daemon.simulator.sink_traffic[LOKI].max_per_second, what="a batch on the way")
    # Removed from the file, but not yet reloaded.
    daemon.configure(sinks={LOGGING: {}})
    daemon.command("sinks", "forget", LOKI)
    wait_until(lambda: daemon.simulator.intakes[LOKI].stored, what="the batch arrives")
    add(daemon)
    daemon.await_delivery(LOGGING)
    daemon.reload()
    add(daemon)
    daemon.await_delivery(LOGGING)
    daemon.stop()
    daemon.assert_once(LOGGING)
    daemon.assert_clean()
    assert not daemon.logged("sink.crashed")


def test_a_sink_that_is_added_gets_what_is_collected_from_then_on(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=1, events=200)
    daemon.configure(sinks={LOGGING: {}})
    daemon.start()
    daemon.await_delivery(LOGGING)
    daemon.configure()
    daemon.reload()
    add(daemon, 7)
    daemon.await_delivery(LOGGING)
    wait_until(lambda: daemon.simulator.intakes[LOKI].stored == 7)
    daemon.stop()
    assert daemon.simulator.books(LOKI).invented == 0
    assert daemon.sink(LOKI)["assigned"] == 7
    daemon.assert_once(LOGGING)
    daemon.assert_clean()


# The disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Mounts 3 MiB at a path."""
    mounted: list[Path] = []

    def mount(path: Path) -> None:
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(path)]
        if shutil.which("mount") is None or subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("only root can mount a disk of 3 MiB")
        mounted.append(path)

    yield mount
    for path in mounted:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_a_full_disk_pauses_and_collecting_goes_on_when_there_is_room(
    daemon_of: MakeDaemon, small_disk: Callable[[Path], None]
) -> None:
    daemon = daemon_of(contracts=2, events=4000, faults=("sink=logging:503",))
    small_disk(daemon.state_dir)
    daemon.configure(api={"window_bytes": '"1MiB"', "result_window": "500", "page_size": "500"})
    daemon.start()
    wait_until(lambda: daemon.logged("state.full"), what="the disk is full")
    assert daemon.logged("state.full")[0]["level"] == "ERROR"
    wait_until(lambda: daemon.trouble("last successful poll"), what="/readyz says so")
    assert daemon.get("/healthz")[0] == 200
    subprocess.run(["mount", "-o", "remount,size=64m", str(daemon.state_dir)], check=True)
    daemon.simulator.set_faults([])
    daemon.await_delivery(timeout=30)
    await_ready(daemon)
    daemon.stop()
    daemon.assert_once()
    daemon.assert_clean()


# At rest


def test_at_rest_it_takes_little_memory_and_next_to_no_processor(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=10, events=100)
    daemon.configure(poll={"interval": '"60s"'})
    daemon.start()
    daemon.await_delivery()
    time.sleep(1)
    before, wakeups, started = daemon.cpu_seconds(), daemon.wakeups(), time.monotonic()
    time.sleep(REST_SECONDS)
    seconds = time.monotonic() - started
    share = (daemon.cpu_seconds() - before) / seconds
    wakeups = daemon.wakeups() - wakeups
    memory = daemon.memory_bytes()
    print(
        f"{datetime.now(UTC):%H:%M} at rest: {memory / 1e6:.1f} MB, {share:.2%} of a core, {wakeups} wake-ups in {seconds:.0f} s"
    )
    assert memory < 70_000_000
    # Usually four a second, also on a busy machine. A thread that polls for work would wake up far more often.
    assert wakeups < 12 * seconds
    assert share < 0.1  # usually 0.001; almost 1 with a thread that never waits
    daemon.stop()
    daemon.assert_clean()
