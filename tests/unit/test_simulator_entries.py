"""The simulator's made-up entries, their log, and the grammar of faults."""

from __future__ import annotations

import ipaddress
import json
import re
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import chain

import pytest

from poller.core.errors import ConfigError
from poller.simulator import Simulator, SimulatorSettings
from poller.simulator.entries import EntryMaker
from poller.simulator.faults import FaultPlan, parse_fault, parse_faults
from poller.simulator.log import ContractLog

NOON_MS = 1_780_000_000_000
SERVICES = {"DCD", "PUBLIC_REST", "PUBLIC_REST_V6", "Provisioning", "Reseller_V1"}
DOCUMENTATION = [
    ipaddress.ip_network(text) for text in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
]


def entries(count=2000, **options):
    maker = EntryMaker(1, 31960001, **options)
    return [maker.render(index, NOON_MS + index) for index in range(count)]


def test_an_entry_is_a_function_of_seed_contract_and_index():
    one, other = EntryMaker(7, 31960001), EntryMaker(7, 31960001)
    assert [one.render(i, NOON_MS) for i in range(50)] == [other.render(i, NOON_MS) for i in range(50)]
    assert one.render(3, NOON_MS) != EntryMaker(8, 31960001).render(3, NOON_MS)
    assert one.render(3, NOON_MS) != EntryMaker(7, 31960002).render(3, NOON_MS)


def test_entries_are_compact_json_of_realistic_size_with_ids_of_their_own():
    lines = entries(5000)
    parsed = [json.loads(line) for line in lines]
    ids = {entry["@uuid"] for entry in parsed}
    assert len(ids) == 5000
    shape = r"[0-9a-f]{8}-[0-9a-f]{4}-([14])[0-9a-f]{3}-9[0-9a-f]{3}-[0-9a-f]{12}"
    versions = Counter(match[1] for one in ids if (match := re.fullmatch(shape, one)))
    assert versions.total() == 5000
    assert 100 < versions["1"] < 400
    assert 600 < sum(map(len, lines)) / len(lines) < 900
    assert all(b'": ' not in line and b"\n" not in line for line in lines)


def test_times_are_written_with_milliseconds_and_utc():
    parsed = json.loads(EntryMaker(1, 31960001).render(0, 1_777_621_340_530))
    assert parsed["meta"]["time"] == "2026-05-01T07:42:20.530Z"


def test_types_users_and_addresses_are_what_the_api_shows():
    parsed = [json.loads(line) for line in entries(5000)]
    types = Counter(entry["event"]["type"] for entry in parsed)
    assert 0.5 < types["RequestStatusUpdate"] / 5000 < 0.6
    assert set(types) == {
        *("RequestStatusUpdate", "RequestAccepted", "RequestFailed"),
        *("Provision", "Error", "GenerateToken", "DCDUserEvent"),
        "ContractNotice",  # a type that does not exist
    }
    principals = [entry["principal"] for entry in parsed if entry.get("principal")]
    identities = [principal["identity"] for principal in principals if principal["identity"]]
    assert len({identity["username"] for identity in identities}) == 8
    addresses = {principal.get("sourceIP", "192.0.2.1") for principal in principals}
    assert all(any(ipaddress.ip_address(one) in net for net in DOCUMENTATION) for one in addresses)
    assert {principal["sourceService"] for principal in principals} == SERVICES
    assert {type(identity["contractNumber"]) for identity in identities} == {int, str}
    assert {repr(entry["meta"]["auditVersion"]) for entry in parsed} == {"0.1", "'0.1'", "1"}
    failed = [entry for entry in parsed if entry["event"]["type"] == "RequestFailed"]
    assert all(entry["event"]["param"]["error"]["messages"][0]["message"] for entry in failed)


def test_the_entries_of_one_request_share_its_id_and_its_queue_number():
    """Source: docs/facts.md: `queueRefId` is an int32 that groups the events of one provisioning."""
    parsed = [json.loads(line) for line in entries(2000)]
    requests: dict[str, list[dict]] = {}
    for entry in parsed:
        if "requestId" in entry["meta"]:
            requests.setdefault(entry["meta"]["requestId"], []).append(entry)
    accepted = [group for group in requests.values() if group[0]["event"]["type"] == "RequestAccepted"]
    whole = [group for group in accepted[:100] if len(group) > 1]
    assert len(whole) > 95
    for group in whole:
        assert {entry["event"]["type"] for entry in group[1:]} <= {"RequestStatusUpdate", "Provision", "RequestFailed"}
        assert len({entry["meta"].get("queueRefId") for entry in group}) == 1
        targets = {entry["event"]["resources"][0]["id"] for entry in group}
        assert len(targets) == 1
    queues = [entry["meta"]["queueRefId"] for entry in parsed if "queueRefId" in entry["meta"]]
    assert all(type(queue) is int and 0 < queue < 1 << 31 for queue in queues)
    assert len(set(queues)) > 200


def test_anything_that_public_sources_say_may_be_missing_or_odd_is_so_in_some_entries():
    parsed = [json.loads(line) for line in entries(5000)]
    principals = [entry.get("principal") for entry in parsed]
    assert None in principals
    assert {} in principals
    assert {} in [principal["identity"] for principal in principals if principal]
    assert {"", None} < {principal.get("serviceHost") for principal in principals if principal}
    assert {"auditVersion", "time"} in [set(entry["meta"]) for entry in parsed]
    params = [entry["event"]["param"] for entry in parsed]
    assert {} in params
    assert "http" in {param.get("action") for param in params}
    assert {param["initiator"] for param in params if param} <= SERVICES
    assert any(param and param["initiator"] != param["sourceService"] for param in params)
    resources = [resource for entry in parsed for resource in entry["event"]["resources"]]
    assert [] in [entry["event"]["resources"] for entry in parsed]
    assert [] in [resource["action"] for resource in resources]
    assert any(len(resource["action"]) > 1 for resource in resources)
    actions = {action for resource in resources for action in resource["action"]}
    assert {"sec.user.create", "ip.ipblock.reserve", "vr.firewall.activate", "sn.snapshot.create"} <= actions
    assert all(re.fullmatch(r"[a-z0-9]+\.[a-z]+\.[a-z]+", action) for action in actions)
    assert {"user", "firewallrule", "backupUnit"} <= {resource["type"] for resource in resources}
    assert any(resource["id"].isdigit() for resource in resources)


def test_some_times_have_no_fraction_and_the_order_is_that_of_the_times():
    log = ContractLog(EntryMaker(1, 31960001))
    log.generate(3000, NOON_MS, 1_500_000, None)
    times = [json.loads(line)["meta"]["time"] for line in log.all()]
    assert 20 < sum("." not in time for time in times) < 150
    moments = [datetime.fromisoformat(time) for time in times]
    assert moments == sorted(moments)
    assert times != sorted(times), "as text they are in another order"


def test_an_entry_can_come_without_its_uuid_and_padded():
    maker = EntryMaker(1, 31960001, with_uuid=False, pad_to_bytes=5000)
    line, full = maker.render(5, NOON_MS), EntryMaker(1, 31960001).render(5, NOON_MS)
    assert len(line) == 5000
    assert "@uuid" not in json.loads(line)
    assert json.loads(line) == {
        **{key: value for key, value in json.loads(full).items() if key != "@uuid"},
        "padding": json.loads(line)["padding"],
    }
    assert maker.id_of(5).decode() == json.loads(full)["@uuid"]


def test_pages_newest_first_tile_the_log_and_are_the_reverse_of_oldest_first():
    log = ContractLog(EntryMaker(1, 31960001))
    log.generate(2503, NOON_MS, 3_600_000, None)
    end_ms = NOON_MS + 3_600_000
    newest = [log.page(NOON_MS, end_ms, offset, 1000).refs for offset in (0, 1000, 2000, 3000)]
    rising = [log.page(NOON_MS, end_ms, offset, 1000, oldest_first=True).refs for offset in (0, 1000, 2000)]
    assert [len(refs) for refs in newest] == [1000, 1000, 503, 0]
    oldest = list(chain.from_iterable(rising))
    assert list(chain.from_iterable(newest)) == oldest[::-1]
    times = [time_ms for _, time_ms in oldest]
    assert times == sorted(times)


def test_a_range_includes_its_start_and_excludes_its_end():
    log = ContractLog(EntryMaker(1, 31960001))
    log.give([(1000, b"1"), (2000, b"2"), (3000, b"3")], None)
    assert log.bodies(log.page(1000, 3000, 0, 10)) == [b"2", b"1"]
    assert log.page(3000, 1000, 0, 10).total == 0


@pytest.mark.parametrize("count", [3, 500])
def test_entries_added_in_the_past_take_their_place(count):
    log = ContractLog(EntryMaker(1, 31960001))
    log.generate(1000, NOON_MS, 1_000_000, None)
    log.generate(count, NOON_MS + 100_000, 50_000, None)
    times = [time_ms for _, time_ms in log.page(0, 1 << 53, 0, 5000, oldest_first=True).refs]
    assert len(times) == 1000 + count
    assert times == sorted(times)
    lines = list(log.all())
    assert len(set(lines)) == 1000 + count
    shown = [datetime.fromisoformat(json.loads(line)["meta"]["time"]) for line in lines]
    assert shown == sorted(shown)


def test_what_is_not_visible_yet_is_neither_shown_nor_counted_but_known_to_the_oracle():
    log = ContractLog(EntryMaker(1, 31960001))
    log.generate(10, NOON_MS, 10_000, lambda time_ms: time.time() + 3600 * (time_ms >= NOON_MS + 5000))
    assert log.page(0, 1 << 53, 0, 100).total == 5
    assert log.counts() == (10, 5)
    assert (len(list(log.all())), len(list(log.all(visible_only=True)))) == (10, 5)


def test_late_entries_are_young_ones_only_and_come_back_when_their_time_is_over():
    end = datetime.now(UTC)
    simulator = Simulator(SimulatorSettings(contracts=1, events=600, span_seconds=600, end=end))
    simulator.set_faults(["late:50%:1h:within=2m"])
    total, visible = simulator.logs[31960001].counts()
    assert total == 600
    assert 500 < visible < 580
    simulator.set_faults(["late:50%:1ms"])
    assert simulator.logs[31960001].counts()[0] == 600


def test_a_history_that_reaches_into_the_future_shows_only_its_past():
    end = datetime.now(UTC) + timedelta(minutes=30)
    simulator = Simulator(SimulatorSettings(contracts=1, events=1000, span_seconds=3600, end=end))
    total, visible = simulator.logs[31960001].counts()
    assert (total, 490 <= visible <= 510) == (1000, True)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("500:10%", {"kind": "500", "share": 0.1}),
        ("429:10%:retry-after=2", {"kind": "429", "retry_after": "2"}),
        ("503:retry-after=date+2", {"retry_after": "date+2"}),
        ("hang:5%:50ms", {"kind": "hang", "seconds": 0.05}),
        ("contract=31960002:500:x2:after=1", {"contract": "31960002", "remaining": 2, "skip": 1}),
        ("path=contracts:html", {"path": "contracts"}),
        ("late:5%:3s:within=1h", {"seconds": 3.0, "within_seconds": 3600.0}),
        ("sink=*:lost-ack:30%", {"sink": "*", "kind": "lost-ack"}),
        ("drip", {"seconds": 5.0}),
    ],
)
def test_a_fault_spec_reads(spec, expected):
    fault = parse_fault(spec)
    assert {name: getattr(fault, name) for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("spec", "allowed"),
    [
        ("", "truncate"),
        ("boom:10%", "missing-hits"),
        ("200", "a status 400..599"),
        ("500:110%", "N% (0 to 100)"),
        ("500:often", "N% (0 to 100)"),
        ("sink=nowhere:500", "logging, loki"),
        ("sink=loki:truncate", "lost-ack"),
        ("lost-ack", "truncate"),
        ("contract=abc:500", "a contract number"),
        ("path=pages:500", "entries"),
        ("sink=loki:contract=1:500", "contract="),
    ],
)
def test_a_bad_fault_spec_is_refused_with_what_is_allowed(spec, allowed):
    with pytest.raises(ConfigError) as caught:
        parse_fault(spec)
    assert allowed in str(caught.value)


def test_all_bad_specs_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        parse_faults(["boom", "500", "bang"])
    assert len(caught.value.problems) == 2


def kinds(plan, count, **target):
    return Counter(draw.failure.kind for _ in range(count) if (draw := plan.draw(**target)).failure)


def test_the_dice_fall_the_same_way_for_the_same_seed_and_about_as_often_as_asked():
    specs = ["mixed:30%", "sink=*:mixed:30%"]
    one, other = (
        kinds(FaultPlan(specs, 5), 3000, path="entries"),
        kinds(FaultPlan(specs, 5), 3000, path="entries"),
    )
    assert one == other
    assert 750 < sum(one.values()) < 1050
    assert set(one) >= {
        "500",
        "429",
        "hang",
        "reset",
        "truncate",
        "cut",
        "html",
        "missing-hits",
        "wrong-types",
    }
    assert "lost-ack" in kinds(FaultPlan(specs, 5), 3000, sink="loki")


def test_faults_hit_only_what_they_select_and_only_so_often():
    plan = FaultPlan(["contract=2:500", "path=contracts:503:after=1:x2", "sink=logging:400", "latency:50ms"])
    assert not kinds(plan, 5, path="entries", contract="1")
    assert kinds(plan, 5, path="entries", contract="2") == {"500": 5}
    assert kinds(plan, 5, path="contracts") == {"503": 2}
    assert not kinds(plan, 5, sink="loki")
    assert kinds(plan, 5, sink="logging") == {"400": 5}
    assert plan.draw(path="entries").latency_seconds == pytest.approx(0.05)
    assert plan.draw(sink="loki").latency_seconds == 0
