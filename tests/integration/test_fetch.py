"""`fetch` as a user runs it: it prints each entry once, in order, byte for byte; and its options."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poller.simulator.faults import API_FAILURES
from tests.integration.fetching import FIRST, SECOND, Starter, failed, is_oldest_first, same, times_by_contract
from tests.support import COMMAND


def ago(**span: float) -> datetime:
    return datetime.now(UTC) - timedelta(**span)


def entry(time: datetime, **more: Any) -> dict[str, Any]:
    return {
        "meta": {"time": f"{time:%Y-%m-%dT%H:%M:%S}.500Z"},
        "principal": {"identity": {"contractNumber": FIRST}},
        **more,
    }


# Completeness


def test_windows_are_split_and_24_000_entries_come_once_in_order_and_compact(bench: Starter) -> None:
    place = bench(events=12_000, span_seconds=7200)
    run = place.fetch("--since", "3h")
    assert run.code == 0
    assert run.told == []
    same(run.lines, place.oracle())
    assert run.rest == b""
    assert is_oldest_first(run.lines)
    assert len(times_by_contract(run.lines)) == 2
    windows = [line for line in run.log if line["message"] == "window.collected"]
    assert len(windows) >= 4, "12,000 entries do not fit in one window"
    second = place.fetch()
    assert (second.code, second.lines) == (0, [])


def test_indented_answers_and_other_shapes_are_printed_just_as_compact(bench: Starter) -> None:
    for settings in ({"indented": True}, {"shape": "items"}, {"shape": "list"}, {"oldest_first": True}):
        place = bench(**settings)
        run = place.fetch("--since", "1h")
        same(run.lines, place.oracle())
        assert is_oldest_first(run.lines)


def test_ten_percent_of_every_fault_cost_at_most_three_runs_and_repeat_nothing(bench: Starter) -> None:
    place = bench(events=12_000, span_seconds=7200, faults=("mixed:10%",))
    quick = {"IONOS_POLLER_API__READ_TIMEOUT": "1s", "IONOS_POLLER_API__PAGE_SIZE": "400"}
    lines: list[bytes] = []
    for _ in range(3):
        run = place.fetch("--since", "3h", env=quick)
        lines += run.lines
        assert run.code in (0, 1)
        if run.code == 0:
            break
    same(lines, place.oracle())
    assert is_oldest_first(lines)
    counts = place.simulator.traffic.counts["entries"]
    assert sum(count for outcome, count in counts.items() if outcome != "200") >= 3, counts


def test_each_kind_of_fault_is_survived_in_one_run(bench: Starter) -> None:
    kinds = [*API_FAILURES, "429:retry-after=1"]
    # The faults strike one after the other, at different requests.
    place = bench(events=600, faults=[f"path=entries:{kind}:x1:after={3 * n}" for n, kind in enumerate(kinds)])
    run = place.fetch(
        "--since",
        "1h",
        env={
            "IONOS_POLLER_API__READ_TIMEOUT": "500ms",
            "IONOS_POLLER_API__PAGE_SIZE": "40",
        },
    )
    assert run.code == 0, run.stderr
    same(run.lines, place.oracle())
    outcomes = place.simulator.traffic.counts["entries"]
    assert {"500", "503", "429", "hang", "reset", "cut"} <= set(outcomes), outcomes


def test_a_total_that_is_capped_or_a_window_that_is_refused_hides_nothing(bench: Starter) -> None:
    for settings in (
        {"total_cap": 1000, "result_window": 1000},
        {"result_window": 1000},
        {"result_window": 1000, "result_window_status": 500},
        {"max_limit": 70},
    ):
        place = bench(events=2500, **settings)
        own = settings.get("total_cap", 10_000)
        run = place.fetch(
            "--since",
            "1h",
            env={
                "IONOS_POLLER_API__RESULT_WINDOW": str(own),
                "IONOS_POLLER_API__MAX_RETRIES": "0",
            },
        )
        assert run.code == 0, (settings, run.told)
        same(run.lines, place.oracle())


def test_a_failing_contract_leaves_the_other_alone_and_catches_up_once_healed(bench: Starter) -> None:
    place = bench(faults=(f"contract={SECOND}:500",))
    impatient = {"IONOS_POLLER_API__MAX_RETRIES": "1"}
    run = place.fetch("--since", "1h", env=impatient)
    assert f"contract {SECOND}: the API answered 500" in "".join(run.told)
    assert (run.code, len(run.told)) == (1, 1)
    same(run.lines, place.oracle(FIRST))
    again = place.fetch(env=impatient)
    assert (again.code, again.lines) == (1, [])
    place.simulator.set_faults([])
    healed = place.fetch(env=impatient)
    assert healed.code == 0
    same(healed.lines, place.oracle(SECOND))
    assert place.fetch().lines == []


def test_a_contract_that_fails_in_the_middle_resumes_where_it_stopped(bench: Starter) -> None:
    place = bench(contracts=1, events=1000, faults=("path=entries:500:after=7",))
    small = {
        "IONOS_POLLER_API__RESULT_WINDOW": "200",
        "IONOS_POLLER_API__PAGE_SIZE": "100",
        "IONOS_POLLER_API__CONCURRENCY": "1",
        "IONOS_POLLER_API__MAX_RETRIES": "0",
    }
    first = place.fetch("--since", "1h", env=small)
    assert first.code == 1
    assert 0 < len(first.lines) < 1000
    place.simulator.set_faults([])
    second = place.fetch(env=small)
    assert second.code == 0
    same(first.lines + second.lines, place.oracle())
    assert is_oldest_first(first.lines + second.lines)


def test_entries_that_are_shown_late_come_once_with_and_without_ids(
    bench: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    places, early = [], []
    for ids in ("uuid", "hit", "none"):
        places.append(bench(ids=ids, span_seconds=200, faults=("late:30%:1h",)))
        early.append(places[-1].fetch("--since", "10m"))
        assert 0 < len(early[-1].lines) < 600
    # Only the simulator's clock moves on by an hour: it then shows all entries.
    monkeypatch.setattr("poller.simulator.log.time", SimpleNamespace(time=lambda: time.time() + 3600))
    for place, run in zip(places, early, strict=True):
        late = place.fetch()
        assert late.code == 0
        assert len(late.lines) >= 50
        same(run.lines + late.lines, place.oracle())
        assert place.fetch().lines == []
        # The last log line counts the late entries.
        assert late.log[-1]["late"] > 0


@pytest.mark.parametrize("ids", ["hit", "none"])
def test_entries_without_uuid_and_equal_duplicates_stay_what_they_are(bench: Starter, ids: str) -> None:
    place = bench(ids=ids, contracts=1)
    duplicate = entry(ago(minutes=3), event={"type": "Provision"})
    place.simulator.add_entries(FIRST, [duplicate, duplicate])
    run = place.fetch("--since", "1h")
    same(run.lines, place.oracle())
    assert len(run.lines) == 302
    assert place.fetch().lines == []
    assert place.fetch("--since", "2h").lines == []
    place.simulator.add_entries(FIRST, [duplicate])
    third = place.fetch()
    assert [json.loads(line) for line in third.lines] == [duplicate], "the third of them came late"
    assert place.fetch().lines == []


def test_entries_without_a_time_are_printed_once(bench: Starter) -> None:
    place = bench(contracts=1, events=5)
    place.simulator.add_entries(FIRST, [{"a": 1}, {"meta": None}, {"meta": {"time": "soon"}}, {}], at=ago(minutes=3))
    run = place.fetch("--since", "1h")
    assert run.code == 0
    same(run.lines, place.oracle())
    assert place.fetch().lines == []
    assert place.fetch("--since", "2h").lines == []


# Faithful to the byte


def test_values_come_out_digit_for_digit(bench: Starter) -> None:
    place = bench(contracts=1, events=0)
    at = f"{ago(minutes=2):%Y-%m-%dT%H:%M:%S}.123Z"
    values = [
        '"price":1.10,"zero":-0.0,"tiny":1.50e-7,"big":123456789012345678901234567890,"neg":-9223372036854775809',
        '"escaped":"\\u00e9\\n\\/\\"\\\\ \\ud83d\\ude00","raw":"é 😀 \u2028 \u0085 end"',
        '"z":1,"a":{"y":[1.0,2.50,[]],"x":{}},"null":null,"t":true,"empty":""',
    ]
    lines = [f'{{"@uuid":"id-{n}","meta":{{"time":"{at}"}},{text}}}' for n, text in enumerate(values)]
    spaced = [re.sub(r'([{,])(")', r"\1\n   \2", line, count=3) for line in lines]
    place.simulator.add_entries(FIRST, [line.encode() for line in spaced])
    run = place.fetch("--since", "1h")
    same(run.lines, [line.encode() for line in lines])


def test_two_thousand_entries_of_100_kb_are_complete_below_200_mb(bench: Starter, tmp_path: Path) -> None:
    place = bench(contracts=1, events=2000, span_seconds=3000, entry_bytes=100_000)
    # A small process in between: the peak memory of a child includes that of its parent at the fork.
    meter = (
        "import resource, subprocess, sys\n"
        "code = subprocess.run(sys.argv[2:], stdout=open(sys.argv[1], 'wb')).returncode\n"
        "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", meter, str(out), *COMMAND, "fetch", "--since", "1h"],
        cwd=place.directory,
        env=place.environment(),
        capture_output=True,
        timeout=60,
        check=True,
    )
    code, peak_kib = map(int, done.stdout.split())
    assert code == 0, done.stderr
    with out.open("rb") as file:
        got = [(len(line), line[:60]) for line in file]  # the UUID is in its first bytes
    same((head for _, head in got), (line[:60] for line in place.simulator.oracle(FIRST)))
    assert {length for length, _ in got} == {100_001}
    out.unlink()
    print(f"peak {peak_kib / 1024:.0f} MiB")
    assert peak_kib * 1024 < 200_000_000


# Options


def test_the_first_run_ever_looks_back_five_minutes_and_an_age_or_a_time_changes_that(bench: Starter) -> None:
    place = bench(contracts=1, events=0)
    for minutes in (2, 20, 100):
        place.simulator.add_entries(FIRST, [entry(ago(minutes=minutes), n=minutes)])
    for args, expected in (
        ((), [2]),
        (("--since", "30m"), [20, 2]),
        (("--since", f"{ago(minutes=30):%Y-%m-%dT%H:%M:%SZ}"), [20, 2]),
        (("--since", f"{ago(days=1):%Y-%m-%d}"), [100, 20, 2]),
    ):
        run = place.fetch(*args, "--state-dir", f"state-{len(args)}-{expected[0]}-{args[-1:]}")
        assert [json.loads(line)["n"] for line in run.lines] == expected


def test_since_widens_and_repeats_nothing(bench: Starter) -> None:
    place = bench()
    first = place.fetch("--since", "10m")
    wider = place.fetch("--since", "1h")
    assert first.lines
    assert wider.lines
    same(first.lines + wider.lines, place.oracle())
    assert is_oldest_first(wider.lines)
    assert place.fetch("--since", "3h").lines == []
    assert place.fetch().lines == []


def test_since_is_remembered_when_the_api_fails(bench: Starter) -> None:
    place = bench()
    impatient = {"IONOS_POLLER_API__MAX_RETRIES": "0"}
    lines = place.fetch("--since", "10m").lines
    place.simulator.set_faults(["path=entries:500"])
    assert place.fetch("--since", "1h", env=impatient).code == 1
    place.simulator.set_faults([])
    same(lines + place.fetch(env=impatient).lines, place.oracle())


def test_contracts_are_chosen_by_option_and_configuration(bench: Starter) -> None:
    place = bench(contracts=3, events=20)
    third = SECOND + 1

    def collected(*args: str, **env: str) -> set[str]:
        state_dir = f"state-{args}-{env}".replace("/", "")
        run = place.fetch("--since", "1h", *args, "--state-dir", state_dir, env=env)
        assert run.code == 0, run.stderr
        return set(times_by_contract(run.lines))

    assert collected("--contract", str(FIRST)) == {str(FIRST)}
    assert collected("--contract", str(FIRST), "--contract", str(third)) == {str(FIRST), str(third)}
    assert collected(IONOS_POLLER_POLL__CONTRACTS=f"{SECOND}") == {str(SECOND)}
    assert collected(IONOS_POLLER_POLL__EXCLUDE_CONTRACTS=f"{SECOND},{third}") == {str(FIRST)}


def test_a_contract_found_later_is_collected_from_the_initial_look_back(bench: Starter) -> None:
    place = bench()
    lines = place.fetch("--since", "1h", "--contract", str(FIRST)).lines
    run = place.fetch()
    assert set(times_by_contract(run.lines)) == {str(SECOND)}
    assert 0 < len(run.lines) < 300
    same(lines + run.lines + place.fetch("--since", "1h").lines, place.oracle())


def test_the_time_key_is_a_copy_of_the_events_time_in_front(bench: Starter) -> None:
    place = bench()
    run = place.fetch("--since", "1h", "--time-key", "time")
    for line in run.lines:
        fields = json.loads(line)
        whole, _, fraction = fields["meta"]["time"].removesuffix("Z").partition(".")
        assert fields["time"] == f"{whole}.{fraction or '000'}Z", "always in the form that the parser expects"
        assert line.startswith(b'{"time":"')
    assert any("." not in json.loads(line)["meta"]["time"] for line in run.lines)
    same((b"{" + line.split(b",", 1)[1] for line in run.lines), place.oracle())


def test_lines_are_shortened_to_max_line_bytes_and_say_so(bench: Starter) -> None:
    place = bench(contracts=1, events=20, entry_bytes=6000)
    long_text = entry(ago(minutes=1), texts=["é" * 900] * 9, **{"@uuid": "long"}, n=1.5)
    many_keys = entry(ago(minutes=1), **{f"key{n}": "x" for n in range(2000)}, **{"@uuid": "wide"})
    place.simulator.add_entries(FIRST, [long_text, many_keys, entry(ago(minutes=1), **{"@uuid": "short"})])
    for limit in (512, 2000, 4096):
        run = place.fetch(
            "--since",
            "1h",
            "--max-line-bytes",
            str(limit),
            "--time-key",
            "time",
            "--state-dir",
            f"s{limit}",
        )
        assert run.code == 0
        assert len(run.lines) == 23
        by_id = {json.loads(line)["@uuid"]: json.loads(line) for line in run.lines}
        assert len(by_id) == 23
        assert max(len(line) + 1 for line in run.lines) <= limit
        assert "_truncated" not in by_id.pop("short")
        for fields in by_id.values():
            assert fields["_truncated"]["original_bytes"] > 4096
            assert fields["time"] == fields["meta"]["time"], "Fluent Bit needs the time most of all"


def test_a_line_of_any_shape_can_be_shortened(bench: Starter) -> None:
    place = bench(contracts=1, events=0)
    at = f"{ago(minutes=2):%Y-%m-%dT%H:%M:%S}.123Z"
    nested = "[" * 700 + "]" * 700
    escapes = "\\u00e9" * 3000
    values = (f'"n":{"7" * 6000}', f'"deep":{nested}', f'"text":"{escapes}"')
    lines = [f'{{"@uuid":"id-{n}","meta":{{"time":"{at}"}},{text}}}' for n, text in enumerate(values)]
    # The time is given again, because the simulator cannot parse all of these lines.
    place.simulator.add_entries(FIRST, [line.encode() for line in lines], at=ago(minutes=2))
    run = place.fetch("--since", "1h", "--max-line-bytes", "1000")
    assert run.code == 0, run.stderr
    assert {json.loads(line)["@uuid"] for line in run.lines} == {"id-0", "id-1", "id-2"}
    assert all(len(line) < 1000 for line in run.lines)


def test_the_tutorials_state_is_adopted_once(bench: Starter, tmp_path: Path) -> None:
    place = bench(contracts=1, events=0)
    for minutes in (5, 30, 90):
        place.simulator.add_entries(FIRST, [entry(ago(minutes=minutes), n=minutes)])
    old = tmp_path / "last_run.json"
    old.write_text(json.dumps({"last_run": ago(minutes=60).isoformat()}))
    run = place.fetch("--adopt-state", str(old))
    assert [json.loads(line)["n"] for line in run.lines] == [30, 5]
    old.write_text(json.dumps({"last_run": ago(minutes=120).isoformat()}))
    again = place.fetch("--adopt-state", str(old))
    assert (again.code, again.lines) == (0, [])
    wider = place.fetch("--adopt-state", str(old), "--since", "10m", "--state-dir", "wider")
    assert [json.loads(line)["n"] for line in wider.lines] == [90, 30, 5], "since widens"
    for text in ("[]", '{"last_run": "yesterday"}', '{"last_run": "2099-01-01"}'):
        old.write_text(text)
        failed(place.fetch("--adopt-state", str(old), "--state-dir", "new"), 2, "--adopt-state", "last_run")
    failed(place.fetch("--adopt-state", "missing.json", "--state-dir", "new"), 2, "--adopt-state", "missing.json")


@pytest.mark.parametrize("trouble", ["503", "reset"])
def test_since_holds_until_the_contracts_could_be_found(bench: Starter, trouble: str) -> None:
    place = bench(faults=(f"path=contracts:{trouble}",))
    failed(place.fetch("--since", "1h", env={"IONOS_POLLER_API__MAX_RETRIES": "0"}), 1)
    place.simulator.set_faults([])
    run = place.fetch()
    assert run.code == 0
    same(run.lines, place.oracle())
    assert place.fetch().lines == []


def test_the_tutorials_state_holds_for_an_account_that_was_down(bench: Starter, tmp_path: Path) -> None:
    good, bad = bench(contracts=(1001,)), bench(contracts=(2001,))
    tables = (f'[[accounts]]\nname = "{one.simulator.url[-5:]}"\nurl = "{one.simulator.url}"\n' for one in (good, bad))
    token = f'token = "{good.simulator.token}"\n'
    config = good.directory / "ionos-poller.toml"
    config.write_text("".join(table + token for table in tables))
    config.chmod(0o600)
    old = tmp_path / "last_run.json"
    old.write_text(json.dumps({"last_run": ago(minutes=60).isoformat()}))
    env = {"IONOS_API_TOKEN": "", "IONOS_POLLER_API__MAX_RETRIES": "0"}
    bad.simulator.set_faults(["503"])
    run = good.fetch("--adopt-state", str(old), env=env)
    assert run.code == 1
    same(run.lines, good.oracle())
    bad.simulator.set_faults([])
    mended = good.fetch("--adopt-state", str(old), env=env)
    assert mended.code == 0
    same(mended.lines, bad.oracle())


def test_a_contract_that_is_not_listed_any_more_is_read_until_a_person_excludes_it(bench: Starter) -> None:
    place = bench()
    assert place.fetch("--since", "1h").code == 0
    place.simulator.change_settings(unlisted=(FIRST, SECOND))
    place.simulator.add_entries(SECOND, count=3, at=ago(minutes=1))
    run = place.fetch()
    assert (run.code, len(run.lines)) == (0, 3)
    (warning,) = [line for line in run.log if line["message"] == "contracts.unlisted"]
    assert warning["contracts"] == [str(FIRST), str(SECOND)]
    place.simulator.change_settings(forbidden=(SECOND,))
    failed(place.fetch(), 1, str(SECOND), "403")
    env = {"IONOS_POLLER_POLL__EXCLUDE_CONTRACTS": str(SECOND)}
    assert place.fetch(env=env).code == 0


# The edges


def test_never_more_requests_in_any_second_than_configured(bench: Starter) -> None:
    place = bench(events=500, faults=("latency:30%:80ms",))
    run = place.fetch(
        "--since",
        "1h",
        env={
            "IONOS_POLLER_API__REQUESTS_PER_SECOND": "20",
            "IONOS_POLLER_API__PAGE_SIZE": "20",
        },
    )
    assert run.code == 0
    same(run.lines, place.oracle())
    assert place.requests() >= 50
    assert place.simulator.traffic.max_per_second <= 20


def test_user_and_password_work_instead_of_a_token(bench: Starter) -> None:
    place = bench()
    env = {"IONOS_API_TOKEN": "", "IONOS_USERNAME": "demo", "IONOS_PASSWORD": "demo"}
    same(place.fetch("--since", "1h", env=env).lines, place.oracle())


def test_one_account_refused_leaves_the_other_complete(bench: Starter) -> None:
    good, bad = bench(contracts=(1001, 1002)), bench(contracts=(2001,))
    config = good.directory / "ionos-poller.toml"
    config.write_text(
        f"""
        [[accounts]]
        name = "good"
        url = "{good.simulator.url}"
        token_env = "GOOD_TOKEN"
        [[accounts]]
        name = "bad"
        url = "{bad.simulator.url}"
        token_env = "BAD_TOKEN"
        """
    )
    env = {"GOOD_TOKEN": good.simulator.token, "BAD_TOKEN": "wrong", "IONOS_API_TOKEN": ""}
    run = good.fetch("--since", "1h", env=env)
    failed(run, 1, "401", "bad")
    same(run.lines, good.oracle())
    mended = good.fetch("--since", "1h", env=env | {"BAD_TOKEN": bad.simulator.token})
    assert mended.code == 0
    same(mended.lines, bad.oracle())


def test_the_state_is_for_its_owner_alone_and_lies_in_state_by_default(bench: Starter) -> None:
    place = bench(events=5)
    assert place.fetch("--since", "1h").code == 0
    assert stat.S_IMODE(place.state_dir.stat().st_mode) == 0o700
    for path in place.state_dir.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    elsewhere = place.fetch("--since", "1h", env={"STATE_DIRECTORY": str(place.directory / "systemd")})
    assert len(elsewhere.lines) == 10
    assert (place.directory / "systemd" / "fetch.db").exists()


def test_a_small_outbox_only_slows_it_down(bench: Starter) -> None:
    place = bench(events=2000)
    run = place.fetch(
        "--since",
        "1h",
        env={
            "IONOS_POLLER_OUTBOX__MAX_BYTES": "64KiB",
            "IONOS_POLLER_API__RESULT_WINDOW": "200",
            "IONOS_POLLER_API__PAGE_SIZE": "100",
        },
    )
    assert run.code == 0
    same(run.lines, place.oracle())


def test_a_clock_that_disagrees_with_the_apis_loses_and_repeats_nothing(bench: Starter) -> None:
    for skew in (-600, 600):
        place = bench(
            events=100, span_seconds=900, end=ago(seconds=-skew).replace(microsecond=0), date_skew_seconds=skew
        )
        lines = place.fetch("--since", "1h").lines
        place.simulator.add_entries(FIRST, count=10, at=ago(seconds=5 - skew), span_seconds=4)
        lines += place.fetch().lines
        place.simulator.add_entries(SECOND, count=10, at=ago(seconds=5 - skew), span_seconds=4)
        lines += place.fetch().lines
        same(lines, place.oracle())
