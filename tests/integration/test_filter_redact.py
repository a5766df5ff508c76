"""`[filter]` and `[redact]` with the real command: the right entries arrive, the books add up, and no name gets out."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import FIRST, LOGGING, LOKI, MOESIF, Daemon, MakeDaemon
from tests.integration.fetching import SECOND, Bench, Starter, failed, same
from tests.support import wait_until

USER, ADDRESS = "canary-user-7f3a@example.org", "203.0.113.254"
CANARIES = (USER, ADDRESS, "canary-user")
RULES = '[filter]\nexclude = [{ type = "RequestStatusUpdate" }, { action = "GET" }]\n'
STATUS_UPDATES, GETS = "exclude[0] type=RequestStatusUpdate", "exclude[1] action=GET"


def redact(directory: Path, key: str = "a-key-of-this-installation-that-is-long") -> str:
    (directory / "hash.key").write_text(f"{key}\n")
    return (
        '[redact]\nmask = ["principal.sourceIP"]\nhash = ["principal.identity.username"]\n'
        f'hash_key_file = "{directory / "hash.key"}"\n'
    )


def reason_of(line: bytes) -> str:
    event = json.loads(line)["event"]
    is_get = event["param"].get("action") == "GET"
    return STATUS_UPDATES if event["type"] == "RequestStatusUpdate" else GETS if is_get else ""


def expected(lines: list[bytes]) -> tuple[list[bytes], dict[str, int]]:
    """The lines that must arrive, and rule -> how many it removes."""
    reasons = [reason_of(line) for line in lines]
    counts = {reason: reasons.count(reason) for reason in (STATUS_UPDATES, GETS)}
    assert all(counts.values())
    return [line for line, reason in zip(lines, reasons, strict=True) if not reason], counts


def config_of(place: Bench, text: str) -> None:
    (place.directory / "ionos-poller.toml").write_text(text)


# Filter


def test_the_right_entries_arrive_the_counts_add_up_and_audit_finds_no_difference(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=2, events=1500, span_seconds=4 * 3600, keep_lines=True)
    daemon.configure(more=RULES, poll={"initial_lookback": '"5h"'})
    daemon.start()
    oracle = [line for number in daemon.simulator.contracts for line in daemon.simulator.oracle(number)]
    kept, counts = expected(oracle)
    for name in (LOGGING, LOKI):
        wait_until(lambda name=name: daemon.metric("events_delivered_total", sink=name) == len(kept))
    same(daemon.simulator.intakes[LOGGING].lines, kept)
    for reason, count in counts.items():
        assert daemon.metric("events_filtered_total", reason=reason) == count
    daemon.kill()
    # The ledger has filtered entries, too: after a restart they count as seen before, not as filtered again.
    daemon.start()
    wait_until(lambda: daemon.metric("events_duplicate_total", contract=str(FIRST)) > 0)
    state = daemon.state()
    assert state["filtered"] == counts
    assert sum(row["filtered"] for row in state["contracts"]) == sum(counts.values())
    assert sum(row["new"] for row in state["contracts"]) == len(kept)
    shown = daemon.command("status")
    for reason, count in counts.items():
        assert f"filtered {count:,} by {reason}" in " ".join(shown.split())
    assert "equal: 2 contracts" in daemon.command("audit", "--from", "5h", "--to", "0s")
    daemon.stop()
    daemon.assert_clean()


def test_a_reload_brings_new_rules_and_the_counts_of_the_old_ones_stay(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=1, events=300)
    daemon.configure(sinks={LOGGING: {}}, more='[filter]\nexclude = [{ type = "*" }]\n')
    daemon.start()
    wait_until(lambda: daemon.metric("events_filtered_total", reason="exclude[0] type=*") == 300)
    daemon.configure(sinks={LOGGING: {}}, more='[filter]\ninclude = [{ service = "NONE" }]\n')
    daemon.reload()
    daemon.simulator.add_entries(FIRST, count=5)
    wait_until(lambda: daemon.metric("events_filtered_total", reason="include") == 5)
    daemon.configure(sinks={LOGGING: {}})
    daemon.reload()
    daemon.simulator.add_entries(FIRST, count=7)
    wait_until(lambda: daemon.simulator.intakes[LOGGING].stored == 7)
    assert daemon.state()["filtered"] == {"exclude[0] type=*": 300, "include": 5}
    daemon.stop()
    daemon.assert_clean()


def test_fetch_and_backfill_leave_out_the_same(bench: Starter) -> None:
    place = bench()
    config_of(place, RULES)
    kept, counts = expected(place.oracle())
    same(place.fetch("--since", "1h").lines, kept)
    assert place.fetch("--since", "1h").lines == []
    done = place.run("backfill", "--from", "1h", "--to", "0s", "--output", "-")
    same(done.lines, kept)
    assert f"filtered {sum(counts.values())}" in done.stderr
    state = json.loads(b"\n".join(place.run("status", "--json").lines))["uses"]
    assert [use["filtered"] for use in state.values()] == [counts, counts]
    assert all(use["balanced"] for use in state.values())


def test_explain_filter_shows_what_each_rule_takes_and_touches_nothing(bench: Starter) -> None:
    place = bench(span_seconds=7000)
    config_of(place, RULES)
    oracle = place.oracle()
    kept, counts = expected(oracle)
    run = place.fetch("--explain-filter", "--since", "2h")
    assert run.code == 0
    text = b"\n".join(run.lines).decode()
    sizes = {reason: sum(len(line) for line in oracle if reason_of(line) == reason) for reason in (*counts, "")}
    for reason, count in counts.items():
        assert re.search(rf"{re.escape(reason)} +{count} +\d+\.\d +{sizes[reason]:,} +\d+\.\d", text), text
    assert re.search(rf"stays +{len(kept)} +\d+\.\d +{sizes['']:,} ", text), text
    assert re.search(rf"all +{len(oracle):,} +{sum(sizes.values()):,}", text), text
    assert not place.state_dir.exists()
    # Without --since, the last hour.
    lately = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    count = sum(json.loads(line)["meta"]["time"] >= lately[:19] for line in oracle)
    assert 0 < count < len(oracle)
    total = int(
        re.search(r"all +([\d,]+)", b"\n".join(place.fetch("--explain-filter").lines).decode())[1].replace(",", "")
    )  # type: ignore[index]
    assert abs(total - count) < 10
    one = place.fetch("--explain-filter", "--since", "2h", "--contract", str(FIRST))
    assert f"all {len(place.oracle(FIRST))}" in " ".join(b" ".join(one.lines).decode().split())


def test_explain_filter_without_rules_or_with_an_api_that_fails(bench: Starter) -> None:
    place = bench(forbidden=(FIRST,))
    run = place.fetch("--explain-filter", "--contract", "31960002")
    assert run.code == 0
    assert "everything stays" in run.stderr
    failing = place.fetch("--explain-filter")
    assert failing.code != 0
    assert "403" in failing.stderr
    assert place.fetch("--explain-filter", "--contract", "1").code == 2
    assert not place.state_dir.exists()


@pytest.mark.parametrize("fault", ["403", "500"])
def test_explain_filter_reads_the_others_where_a_contract_fails(bench: Starter, fault: str) -> None:
    place = bench(contracts=3, span_seconds=7000, faults=(f"contract={SECOND}:{fault}",))
    config_of(place, RULES)
    run = place.fetch("--explain-filter", "--since", "2h", env={"IONOS_POLLER_API__MAX_RETRIES": "0"})
    text = failed(run, 1, f"contract {SECOND}", fault)
    assert str(FIRST) not in text
    shown = " ".join(b" ".join(run.lines).decode().split())
    assert "contracts: 2" in shown
    assert f"all {len(place.oracle(FIRST)) + len(place.oracle(FIRST + 2)):,}" in shown


@pytest.mark.parametrize(
    ("fault", "words"),
    [("null:count=100", "no entry"), ("nan:count=100", "not valid JSON"), ("old:1h", "must not be older")],
)
def test_explain_filter_tells_what_cannot_be_read_and_counts_the_rest(bench: Starter, fault: str, words: str) -> None:
    place = bench(contracts=1, span_seconds=7000, faults=(fault,))
    config_of(place, RULES)
    run = place.fetch("--explain-filter", "--since", "2h")
    failed(run, 1, f"contract {FIRST}", "gap", "cannot be read", words)
    count = int(re.search(r"all +([\d,]+)", b"\n".join(run.lines).decode())[1].replace(",", ""))  # type: ignore[index]
    assert 0 < count < len(place.oracle(FIRST))
    assert "contracts: 1" in run.lines[0].decode()


def test_explain_filter_names_a_contract_that_no_account_sees(bench: Starter) -> None:
    place = bench()
    config_of(place, RULES)
    run = place.fetch("--explain-filter", "--contract", str(FIRST), "--contract", "5")
    failed(run, 1, "contract 5: no account sees this contract")
    assert "contracts: 1" in run.lines[0].decode()


def test_explain_filter_begins_in_1970_where_it_is_asked_to(bench: Starter) -> None:
    place = bench()
    run = place.fetch("--explain-filter", "--since", "1970-01-01", "--contract", str(FIRST))
    assert run.lines[0].startswith(b"1970-01-01T00:00:00Z/")


def test_explain_filter_counts_a_contract_of_two_accounts_once(bench: Starter) -> None:
    place = bench(contracts=1, span_seconds=7000)
    token = place.directory / "token"
    token.write_text(place.simulator.token)
    token.chmod(0o600)
    config_of(place, "".join(f'[[accounts]]\nname = "{name}"\ntoken_file = "{token}"\n' for name in ("one", "two")))
    run = place.fetch("--explain-filter", "--since", "2h", env={"IONOS_API_TOKEN": ""})
    assert run.code == 0, run.stderr
    assert f"all {len(place.oracle(FIRST)):,}" in " ".join(b" ".join(run.lines).decode().split())


# Redact


def canary_entries(count: int, minutes_ago: float = 20) -> list[dict[str, Any]]:
    """Different entries of one user. The logging sink refuses every third for good."""
    at = datetime.now(UTC) - timedelta(minutes=minutes_ago)
    return [
        {
            "meta": {"time": (at + timedelta(milliseconds=number)).isoformat(timespec="milliseconds")},
            "n": number,
            "principal": {"sourceIP": ADDRESS, "identity": {"username": USER, "contractNumber": 1}},
            "event": {"type": "T", "message": "poisonous" if number % 3 == 0 else "fine"},
        }
        for number in range(count)
    ]


def everything_on_disk(daemon: Daemon) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in daemon.directory.rglob("*") if path.is_file()}


def assert_no_canary(name: str, content: bytes | str) -> None:
    content = content.encode() if isinstance(content, str) else content
    for canary in CANARIES:
        # without backslashes: a quoted line may itself be quoted
        assert canary.encode() not in content.replace(b"\\", b""), (name, canary)


def test_no_name_and_no_address_gets_anywhere(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(
        contracts=1, keep_lines=True, poison="poisonous", faults=("sink=moesif:400:30%", "mixed:100ms:20%")
    )
    daemon.simulator.add_entries(FIRST, canary_entries(60))
    archive = f'[[sinks]]\nname = "archive"\ntype = "file"\npath = "{daemon.directory}/archive/{{date}}.ndjson"\n'
    rule = f'[filter]\nexclude = [{{ username = "{USER}", type = "U" }}]\n'
    daemon.configure(
        sinks={LOGGING: {}, LOKI: {}, MOESIF: {}},
        each={"batch_events": "20"},
        api={"read_timeout": '"300ms"'},
        more=redact(daemon.directory) + rule + archive,
    )
    daemon.start("--log-level", "debug")
    wait_until(lambda: daemon.metric("dead_letters", sink=LOGGING) == 20, 30)
    for name in (LOGGING, LOKI, MOESIF, "archive"):
        wait_until(lambda name=name: daemon.metric("outbox_events", sink=name) == 0, 30)
    scraped = daemon.get("/metrics")[1] + daemon.get("/readyz")[1] + daemon.get("/healthz")[1]
    # All files while it runs (with the write-ahead log), and below after it ended.
    before = everything_on_disk(daemon)
    letters = daemon.command("dead-letters", "list", "--json")
    told = daemon.command("status") + daemon.command("status", "--json") + daemon.command("dead-letters", "show", "1")
    daemon.stop()
    daemon.assert_clean()
    config = str(daemon.config_file)  # contains the user's name in a rule
    for path, content in (before | everything_on_disk(daemon)).items():
        if path != config:
            assert_no_canary(path, content)
    assert_no_canary("log", daemon.stderr)
    assert_no_canary("metrics", scraped)
    assert_no_canary("commands", letters + told)
    for name, intake in daemon.simulator.intakes.items():
        for item in intake.kept:
            assert_no_canary(name, item.line)
    # The names were there: their replacements are found.
    hashes = set(re.findall(r'"username":"([^"]+)"', letters))
    assert len(hashes) == 1
    assert hashes.pop().startswith("hmac:")
    assert all(json.loads(letter)["entry"]["principal"]["sourceIP"] == "***" for letter in letters.splitlines())
    assert daemon.simulator.intakes[LOGGING].distinct == 40


def test_the_same_user_has_the_same_hash_in_every_run_with_the_same_key(bench: Starter) -> None:
    place = bench(contracts=1, events=0)
    place.simulator.add_entries(FIRST, canary_entries(10))

    def users(name: str) -> set[str]:
        run = place.fetch("--since", "1h", "--state-dir", name)
        assert len(run.lines) == 10
        return {json.loads(line)["principal"]["identity"]["username"] for line in run.lines}

    config_of(place, redact(place.directory))
    first, again = users("a"), users("b")
    assert first == again
    assert len(first) == 1
    config_of(place, redact(place.directory, "another-key-of-another-installation"))
    assert users("c") != first


def test_what_a_repair_collects_is_redacted_and_filtered_too(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=1, events=50, span_seconds=4 * 3600)
    daemon.configure(
        sinks={LOGGING: {}}, more=redact(daemon.directory) + RULES, poll={"initial_lookback": '"5h"', "overlap": '"1m"'}
    )
    daemon.start()
    wait_until(lambda: daemon.metric("events_filtered_total", reason=GETS) > 0)
    daemon.stop()
    before = daemon.state()
    hidden = canary_entries(4)
    for number, entry in enumerate(hidden):
        entry["meta"]["time"] = (datetime.now(UTC) - timedelta(hours=3)).isoformat()
        entry["event"]["type"] = "RequestStatusUpdate" if number == 0 else "T"
    daemon.simulator.add_entries(FIRST, hidden)
    daemon.command("audit", "--from", "5h", "--to", "0s", "--repair")
    after = daemon.state()
    assert after["filtered"][STATUS_UPDATES] == before["filtered"][STATUS_UPDATES] + 1
    assert after["contracts"][0]["new"] == before["contracts"][0]["new"] + 3
    for path in daemon.state_dir.iterdir():
        assert_no_canary(str(path), path.read_bytes())


def test_a_redaction_of_one_sink_concerns_it_and_its_dead_letters_alone(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=1, keep_lines=True, poison="poisonous")
    daemon.simulator.add_entries(FIRST, canary_entries(9))
    (daemon.directory / "sink.key").write_text("a-key-of-one-sink-alone\n")
    paths = 'hash = ["principal.identity.username"], drop = ["principal.sourceIP"]'
    table = f'{{ {paths}, hash_key_file = "{daemon.directory}/sink.key" }}'
    daemon.configure(sinks={LOGGING: {"redact": table}, LOKI: {}})
    daemon.start()
    wait_until(lambda: daemon.metric("dead_letters", sink=LOGGING) == 3)
    wait_until(lambda: daemon.metric("events_delivered_total", sink=LOKI) == 9)
    assert all(USER.encode() in line and ADDRESS.encode() in line for line in daemon.simulator.intakes[LOKI].lines)
    for line in daemon.simulator.intakes[LOGGING].lines:
        assert_no_canary("line", line)
    letters = daemon.command("dead-letters", "list", "--json")
    assert_no_canary("dead letters", letters)
    # A replay redacts them again, which changes nothing.
    hashes = set(re.findall(r'"username":"(hmac:[0-9a-f]{32})"', letters))
    daemon.simulator.change_settings(poison="")
    daemon.command("dead-letters", "replay")
    wait_until(lambda: daemon.simulator.intakes[LOGGING].distinct == 9)
    users = {json.loads(line)["principal"]["identity"]["username"] for line in daemon.simulator.intakes[LOGGING].lines}
    assert users == hashes
    assert len(hashes) == 1
    assert_no_canary("log", daemon.stderr)
    daemon.stop()
    daemon.assert_clean()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[redact]\nmask = ["event..type"]\n', "redact.mask[0]"),
        ('[redact]\nhash = ["event.type"]\n', "redact.hash"),
        ('[redact]\nhash = ["a"]\nhash_key_file = "nowhere"\n', "unreadable key file"),
        ('[redact]\nmask = ["a.b"]\ndrop = ["a.b"]\n', "redact.mask: a.b is also in drop"),
        ('[[sinks]]\nname = "o"\ntype = "stdout"\nredact = { hash = ["a"] }\n', "sinks[0].redact.hash"),
        ('[[sinks]]\nname = "o"\ntype = "stdout"\nredact = { mask = ["a b"] }\n', "sinks[0].redact.mask[0]"),
        ('[[sinks]]\nname = "o"\ntype = "stdout"\nredact = { masks = ["a"] }\n', "sinks[0].redact.masks"),
        ('[[sinks]]\nname = "o"\ntype = "stdout"\naction_name = "{event.type"\n', "sinks[0].action_name"),
        ('[[sinks]]\nname = "o"\ntype = "stdout"\naction_name = "{event..type}"\n', "sinks[0].action_name"),
        ('[[sinks]]\nname = "o"\ntype = "stdout"\nuser_id = "a b"\n', "sinks[0].user_id"),
    ],
)
def test_a_mistake_in_the_tables_is_told_before_anything_is_done(bench: Starter, text: str, words: str) -> None:
    place = bench(contracts=1, events=1)
    config_of(place, text)
    run = place.fetch("--since", "1h")
    assert run.code == 2
    assert words in run.stderr
    assert run.lines == []


def test_a_key_of_redact_is_enough_for_the_sinks(bench: Starter) -> None:
    place = bench(contracts=1, events=1)
    (place.directory / "k").write_text("key\n")
    config_of(
        place,
        '[redact]\nhash_key_file = "k"\n[[sinks]]\nname = "o"\ntype = "stdout"\nredact = { hash = ["@uuid"] }\n',
    )
    run = place.run("backfill", "--from", "1h", "--to", "0s", "--sink", "o")
    assert [json.loads(line)["@uuid"][:5] for line in run.lines] == ["hmac:"]


def test_a_key_that_vanishes_keeps_the_old_configuration_in_force(daemon_of: MakeDaemon) -> None:
    daemon = daemon_of(contracts=1, keep_lines=True)
    daemon.configure(sinks={LOGGING: {}}, more=redact(daemon.directory))
    daemon.start()
    wait_until(lambda: not daemon.troubles(), what="ready")
    (daemon.directory / "hash.key").unlink()
    daemon.reload()
    assert daemon.logged("config.reload_failed")
    daemon.simulator.add_entries(FIRST, canary_entries(3, minutes_ago=1 / 60))
    wait_until(lambda: daemon.simulator.intakes[LOGGING].stored == 3)
    for line in daemon.simulator.intakes[LOGGING].lines:
        assert_no_canary("line", line)
    daemon.stop()
