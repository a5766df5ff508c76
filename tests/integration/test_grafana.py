"""The files in grafana/: they are up to date with their source, and their queries use existing names and valid syntax.

Grafana's own grammar (npm) checks LogQL. promtool checks PromQL, and makes every alert fire. No Grafana and no Loki run here:
the look of a panel, and the answers of Loki, are not checked.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from grafana.__main__ import files
from grafana.activity import FIELDS
from grafana.alerts import ALERTS
from poller.config.model import Poll
from poller.config.values import parse_duration
from poller.service.metrics import Metrics
from poller.simulator import Simulator, SimulatorSettings
from poller.store.sqlite import State
from tests import views
from tests.debian import program
from tests.support import TOP

HERE = TOP / "grafana"
DASHBOARDS = ("activity.json", "poller.json")
GRAMMAR = "@grafana/lezer-logql@0.3.0"
INSTALL_SECONDS = 300

# Values that Grafana puts in for its variables.
VARIABLES = {
    "$__auto": "1m",
    "$__range": "6h",
    "$__rate_interval": "5m",
    "$tag": "activityLog",
    "$contract": "(31960001|31960002)",
    "${user:regex}": r"anna\.becker\+x\"",  # as Grafana escapes the typed text
    "$instance": "localhost:9464",
    "$sink": ".*",
}


def text_of(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def filled(expr: str) -> str:
    for name in sorted(VARIABLES, key=len, reverse=True):
        expr = expr.replace(name, VARIABLES[name])
    return expr


def panels(name: str) -> list[dict[str, Any]]:
    return [panel for panel in json.loads(text_of(name))["panels"] if panel["type"] != "row"]


def rules(name: str) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(text_of(name))["groups"] for rule in group["rules"]]


def queries(kind: str) -> Iterator[tuple[str, str]]:
    """Every expression in this language: (its place, the expression)."""
    for name in DASHBOARDS:
        for panel in panels(name):
            if panel["datasource"]["type"] == kind:
                for target in panel["targets"]:
                    yield f"{name}: {panel['title']}", target["expr"]
    for rule in rules(f"alerts-{kind}.yaml"):
        yield f"alerts-{kind}.yaml: {rule['alert']}", rule["expr"]
    for rule in rules("alerts-grafana.yaml"):
        asked = rule["data"][0]
        if asked["datasourceUid"] == kind:
            yield f"alerts-grafana.yaml: {rule['title']}", asked["model"]["expr"]


# Up to date and consistent


def test_every_file_is_what_its_source_makes() -> None:
    made = files()
    kept = {path.name for path in HERE.iterdir() if path.suffix in (".json", ".yaml")}
    assert kept == set(made)
    assert [name for name, text in made.items() if text_of(name) != text] == [], "run `make grafana`"


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_uses_only_what_it_declares(name: str) -> None:
    board = json.loads(text_of(name))
    declared = {variable["name"] for variable in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", text_of(name)))
    built_in = {variable.removeprefix("$") for variable in VARIABLES if variable.startswith("$__")} | {"__all"}
    assert used - built_in == declared
    assert [panel["title"] for panel in panels(name) if panel["datasource"]["uid"] != "${datasource}"] == []
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_no_two_panels_overlap(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(text_of(name))["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert max(x for x, _ in cells) < 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_activity_can_be_chosen_by_tag_contract_and_user() -> None:
    board = json.loads(text_of("activity.json"))
    assert {"tag", "contract", "user"} <= {variable["name"] for variable in board["templating"]["list"]}
    for panel in panels("activity.json"):
        for target in panel["targets"]:
            assert all(name in target["expr"] for name in ("$tag", "$contract", "${user:regex}")), panel["title"]
            assert '{tag_name=~"$tag", contract=~"$contract|"}' in target["expr"]
            assert "| json " in target["expr"]


def test_what_is_typed_for_a_user_is_no_regular_expression_and_ends_no_string() -> None:
    for panel in panels("activity.json"):
        for target in panel["targets"]:
            assert re.findall(r"[^ ]*user:regex[^ ]*", target["expr"]) == ["user=~`(?i).*${user:regex}.*`"], panel[
                "title"
            ]


@pytest.mark.parametrize("title", ["Who did what to which resource", "Errors with their messages", "Latest entries"])
def test_a_table_of_entries_says_when_who_and_in_which_contract(title: str) -> None:
    (panel,) = [panel for panel in panels("activity.json") if panel["title"] == title]
    assert panel["type"] == "table"
    organize = panel["transformations"][-1]["options"]
    headings = sorted(organize["renameByName"], key=organize["indexByName"].__getitem__)
    assert [organize["renameByName"][name] for name in headings[:3]] == ["Time", "User", "Contract"]
    assert not set(headings) & set(organize["excludeByName"])


def test_the_panel_of_the_clock_keeps_its_sign() -> None:
    (panel,) = [panel for panel in panels("poller.json") if "clock_skew_seconds" in json.dumps(panel["targets"])]
    assert "abs" not in panel["targets"][0]["expr"]
    assert "min" not in panel["fieldConfig"]["defaults"]


def test_a_panel_that_counts_entries_says_that_a_repeat_may_count_twice() -> None:
    """Loki merges equal lines, but counts both.  Source: docs/facts.md, "Loki push API"."""
    counting = [panel for panel in panels("activity.json") if "count_over_time" in json.dumps(panel["targets"])]
    # The number of users does not change if an entry counts twice.
    assert [panel["title"] for panel in counting if "may count twice" not in panel.get("description", "")] == ["Users"]
    assert len(counting) >= 10
    # An alert must not depend on how often an entry counts.
    assert [(rule["alert"], rule["expr"][-4:]) for rule in rules("alerts-loki.yaml")] == [
        ("IonosActivityLogErrors", " > 0")
    ]


def test_every_alert_is_in_grafana_and_in_one_ruler() -> None:
    in_grafana = {rule["title"]: rule for rule in rules("alerts-grafana.yaml")}
    in_rulers = {rule["alert"]: rule for kind in ("loki", "prometheus") for rule in rules(f"alerts-{kind}.yaml")}
    assert set(in_grafana) == set(in_rulers) == {f"Ionos{alert.name}" for alert in ALERTS}
    assert len({rule["uid"] for rule in in_grafana.values()}) == len(ALERTS)
    for name, rule in in_grafana.items():
        asked, limit = rule["data"]
        evaluator = limit["model"]["conditions"][0]["evaluator"]
        operator = {"gt": ">", "lt": "<"}[evaluator["type"]]
        assert in_rulers[name]["expr"] == f"{asked['model']['expr']} {operator} {evaluator['params'][0]}"
        assert in_rulers[name]["for"] == rule["for"]
        # In a file, Grafana reads a single dollar sign as an environment variable.
        assert "$" not in json.dumps(rule).replace("$$", "")
        assert rule["annotations"]["summary"].replace("$$", "$") == in_rulers[name]["annotations"]["summary"]


# Do the names exist?


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Name -> labels of every metric that a real `/metrics` has, with a contract and a sink in the state."""
    state = State.open(tmp_path_factory.mktemp("state"), "run")
    state.contracts.enrol(["31960001"], "default", 1_777_593_600, 1_777_593_600)
    state.outbox.register("logging", "logging-service")
    made = Metrics(state.overview)
    made.observe_request("200", 0.1)
    made.batches_failed.labels("logging", "HTTP 503")
    made.token_expires_at.labels("default").set(1)
    made.clock_skew.labels("default").set(0)
    made.account_unread.labels("default").set(0)
    made.audit_missing.labels("31960001").set(0)
    text = made.render().decode()
    state.close()
    found: dict[str, set[str]] = {}
    for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE):
        for suffix in ("_bucket", "_sum", "_count") if kind == "histogram" else ("",):
            found[name + suffix] = set()
    for name, labels in re.findall(r"^(\w+)\{(.*)} ", text, re.MULTILINE):
        if name in found:
            found[name] |= set(re.findall(r'(\w+)="', labels))
    # These have samples only after an event.
    found["ionos_poller_events_filtered_total"] |= {"reason"}
    found["ionos_poller_archive_digests_total"] |= {"sink"}
    found["ionos_poller_gaps"] |= {"contract", "reason"}
    found["ionos_poller_gap_seconds"] |= {"contract"}
    found["ionos_poller_last_poll_success_at_seconds"] |= {"contract"}
    return found


def is_asked_for_what_is_there(where: str, expr: str, metrics: Mapping[str, set[str]]) -> None:
    """Check that a query uses only metrics and labels of the poller."""
    for name, _, selector in re.findall(r"(ionos_poller_\w+)(\{([^}]*)})?", expr):
        assert name in metrics, where
        chosen = set(re.findall(r"(\w+)=~?\"", selector)) - {"instance"}
        assert chosen <= metrics[name], where
    (group,) = re.findall(r" by \(([^)]*)\)", expr) or [""]
    names = re.findall(r"ionos_poller_\w+", expr)
    assert {label for label in group.split(", ") if label} <= metrics[names[0]] | {"instance"}, where


def test_every_metric_and_label_in_a_query_is_one_that_the_poller_has(metrics: Mapping[str, set[str]]) -> None:
    asked = list(queries("prometheus"))
    board = text_of("poller.json")
    asked += [("a variable", query) for query in re.findall(r"label_values\([^)]*\)", board)]
    assert len(asked) > 30
    for where, expr in asked:
        is_asked_for_what_is_there(where, expr, metrics)


def test_what_replicas_read_from_one_state_is_not_added_up() -> None:
    """Each replica shows the whole state: the sum of two would be twice the number of `status`."""
    by_process = {"lease_lost", "log_lines_dropped", "state_available"}
    made = Metrics(lambda: views.state(gaps=[views.gap(1)]))
    shared = {family.name for family in made.collect()} - {f"ionos_poller_{name}" for name in by_process}
    assert len(shared) > 15
    for panel in panels("poller.json"):
        for target in panel["targets"]:
            (name, *_) = re.findall(r"ionos_poller_\w+?(?=_total|\{)", target["expr"])
            if name in shared and "sum" in target["expr"]:
                assert "max by (" in target["expr"], panel["title"]


def test_the_dashboard_and_the_alerts_of_0_1_0_still_find_what_they_ask_for(metrics: Mapping[str, set[str]]) -> None:
    asked = (TOP / "tests" / "data" / "0.1.0" / "queries.txt").read_text().splitlines()
    assert len(asked) > 30
    for expr in asked:
        is_asked_for_what_is_there(f"0.1.0: {expr}", expr, metrics)


def test_every_metric_of_the_poller_is_on_its_dashboard(metrics: Mapping[str, set[str]]) -> None:
    shown = set(re.findall(r"ionos_poller_\w+", text_of("poller.json")))
    left_out = {name for name in metrics if name.endswith(("_sum", "_count", "_created"))}
    assert set(metrics) - left_out - shown == set()


def test_an_alert_names_only_labels_that_its_series_have(metrics: Mapping[str, set[str]]) -> None:
    for alert in ALERTS:
        (group,) = re.findall(r"^sum by \(([^)]*)\)", alert.expr) or [""]
        names = re.findall(r"ionos_poller_\w+", alert.expr)
        has = set(group.split(", ")).union(*(metrics[name] for name in names))
        assert set(re.findall(r"\$labels\.(\w+)", alert.summary + alert.remedy)) <= has, alert.name


def test_what_an_audit_finds_missing_is_within_reach_of_the_command_that_its_alert_names() -> None:
    (alert,) = [alert for alert in ALERTS if alert.name == "AuditFindsMissing"]
    (reach,) = re.findall(r"audit --from (\w+) --repair", alert.remedy)
    poll = Poll()
    assert parse_duration(reach) >= poll.audit_span_seconds + poll.audit_interval_seconds


def test_every_field_in_a_query_is_where_entries_have_it() -> None:
    simulator = Simulator(SimulatorSettings(contracts=1, events=400))
    entries = [json.loads(line) for line in simulator.oracle(simulator.contracts[0])]
    for name, path in FIELDS.items():
        assert any(found_at(entry, path) is not None for entry in entries), f"{name}: nothing at {path}"
    for _, expr in queries("loki"):
        for name, path in re.findall(r'[ ,](\w+)="([a-zA-Z]+\.[\w.\[\]]+)"', expr):
            assert FIELDS[name] == path


def found_at(entry: Any, path: str) -> Any:
    for key in re.findall(r"\w+", path):
        try:
            entry = entry[int(key) if isinstance(entry, list) else key]
        except (KeyError, IndexError):
            return None
    return entry


# Do the tools of the languages accept it?


@pytest.fixture(scope="module")
def grammar() -> Path:
    """A directory with Loki's grammar in its node_modules; kept in build/ for later runs."""
    for tool in ("npm", "node"):
        if shutil.which(tool) is None:
            pytest.skip(f"NOT CHECKED: whether the LogQL parses; there is no {tool}")
    directory = TOP / "build" / "logql"
    stamp = directory / "node_modules" / ".grammar"
    if not stamp.exists() or stamp.read_text() != GRAMMAR:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "package.json").write_text('{"private": true}')
        command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", GRAMMAR]
        done = subprocess.run(
            command, cwd=directory, capture_output=True, encoding="utf-8", timeout=INSTALL_SECONDS, check=False
        )
        if done.returncode:
            pytest.skip(f"NOT CHECKED: whether the LogQL parses; npm cannot fetch {GRAMMAR}: {done.stderr[-300:]}")
        stamp.write_text(GRAMMAR)
    return directory


SYNTAX_ERRORS = """
import { parser } from '@grafana/lezer-logql';
import { readFileSync } from 'node:fs';
const found = JSON.parse(readFileSync(0)).map(query => {
  const places = [];
  parser.parse(query).iterate({ enter(node) { if (node.type.isError) places.push(node.from); } });
  return places;
});
console.log(JSON.stringify(found));
"""


def syntax_errors(directory: Path, logql: list[str]) -> list[list[int]]:
    """For each query, the positions of its syntax errors."""
    script = directory / "syntax_errors.mjs"
    script.write_text(SYNTAX_ERRORS)
    done = subprocess.run(
        ["node", script.name], cwd=directory, input=json.dumps(logql), capture_output=True, encoding="utf-8", check=True
    )
    return list(json.loads(done.stdout))


def test_every_logql_parses(grammar: Path) -> None:
    asked = list(queries("loki"))
    assert len(asked) >= 16
    wrong = syntax_errors(grammar, [filled(expr) for _, expr in asked])
    assert [(where, expr, places) for (where, expr), places in zip(asked, wrong, strict=True) if places] == []


def test_a_planted_mistake_in_logql_is_found(grammar: Path) -> None:
    right = '{tag_name="activityLog"} | json type="event.type" | type="Error"'
    wrong = [right.replace("}", ""), right.replace("=", "~", 1), f"sum(count_over_time({right}))", right + " |"]
    assert [bool(places) for places in syntax_errors(grammar, [right, *wrong])] == [False, True, True, True, True]


@pytest.fixture(scope="module")
def promtool() -> str:
    return program("promtool", "prometheus", "whether the PromQL parses and the alerts fire")


def run_promtool(promtool: str, *args: str, cwd: Path) -> None:
    done = subprocess.run([promtool, *args], cwd=cwd, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_promql_passes_promtool(promtool: str, tmp_path: Path) -> None:
    run_promtool(promtool, "check", "rules", str(HERE / "alerts-prometheus.yaml"), cwd=tmp_path)
    asked = [filled(expr) for _, expr in queries("prometheus")]
    recorded = [{"record": f"query:{number}", "expr": expr} for number, expr in enumerate(asked)]
    (tmp_path / "all.yaml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": recorded}]}))
    run_promtool(promtool, "check", "rules", "all.yaml", cwd=tmp_path)


# Alert -> a series that makes it fire within two hours (one value a minute), and its labels. `a+bxn`: from a, n steps of b.
FIRING = {
    "WorkersStuck": ("workers_stuck", "1x120", {}),
    "StateReplaced": ("state_created_at_seconds", "5x60 9x60", {}),
    "StateUnavailable": ("state_available", "0x120", {}),
    "LeasesLost": ("lease_lost_total", "0+1x120", {}),
    "LogLinesDropped": ("log_lines_dropped_total", "0+1x120", {}),
    "PollStale": ('last_poll_success_at_seconds{contract="1"}', "0x120", {"contract": "1"}),
    "AccountUnread": ('account_unread{account="a"}', "1x120", {"account": "a"}),
    "CollectingBehind": (
        'collect_lag_seconds{account="a",contract="1"}',
        "1900x120",
        {"account": "a", "contract": "1"},
    ),
    "DeliveryStale": ('deliver_lag_seconds{sink="s"}', "901x120", {"sink": "s"}),
    "ArchiveStale": ('deliver_lag_seconds{sink="archive"}', "10801x120", {"sink": "archive"}),
    "SinkParked": ('sink_parked{sink="s"}', "1x120", {"sink": "s"}),
    "ContractPostponed": ('contracts_postponed{sink="s"}', "1x120", {"sink": "s"}),
    "Gaps": ('gaps{contract="1",reason="dense"}', "1x120", {"contract": "1", "reason": "dense"}),
    "DeadLetters": ('dead_letters{sink="s"}', "1x120", {"sink": "s"}),
    "AuditFindsMissing": ('audit_missing_events{contract="1"}', "3x120", {"contract": "1"}),
    "AuditRepairs": ('events_repaired_total{contract="1"}', "0+1x120", {"contract": "1"}),
    "TokenExpiring": ('token_expires_at_seconds{account="a"}', f"{10 * 86_400}x120", {"account": "a"}),
    "TokenExpiringSoon": ('token_expires_at_seconds{account="a"}', f"{86_400}x120", {"account": "a"}),
    "PollerDown": None,  # fires without any series
}
WELL = {
    'last_poll_success_at_seconds{contract="1"}': "0+60x120",
    'account_unread{account="a"}': "0x120",
    'collect_lag_seconds{account="a",contract="1"}': "60x120",
    'deliver_lag_seconds{sink="s"}': "2x120",
    'sink_parked{sink="s"}': "0x120",
    'contracts_postponed{sink="s"}': "0x120",
    'events_delivered_total{sink="s"}': "0+5x120",
    'deliver_lag_seconds{sink="archive"}': "3600x120",
    'archive_digests_total{sink="archive"}': "0+1x120",
    'dead_letters{sink="s"}': "0x120",
    'gap_seconds{contract="1"}': "0x120",
    'audit_missing_events{contract="1"}': "0x120",
    'events_repaired_total{contract="1"}': "5x120",
    "log_lines_dropped_total": "5x120",
    "workers_stuck": "0x120",
    "state_created_at_seconds": "5x120",
    "state_available": "1x120",
    "lease_lost_total": "1x120",
    'token_expires_at_seconds{account="a"}': f"{30 * 86_400}x120",
    'build_info{version="1"}': "1x120",
    'up{instance="a",job="ionos-poller"}': "1x120",
    'up{instance="b",job="another"}': "0x120",
}


def test_every_alert_fires_when_it_should_and_none_when_all_is_well(promtool: str, tmp_path: Path) -> None:
    in_prometheus = {alert.name: alert for alert in ALERTS if alert.kind == "prometheus"}
    assert set(FIRING) == set(in_prometheus)
    tests = [scenario(WELL, dict.fromkeys(FIRING))]
    for name, cause in FIRING.items():
        if cause is None:
            tests.append(scenario({}, {name: {}}))
            continue
        series, values, labels = cause
        expected: dict[str, dict[str, str] | None] = dict.fromkeys(FIRING)
        expected[name] = labels
        if name == "TokenExpiringSoon":
            expected["TokenExpiring"] = labels
        tests.append(scenario({**WELL, series: values}, expected))
    fire(promtool, tmp_path, tests)


def test_one_of_several_pollers_that_is_down_fires_with_its_name(promtool: str, tmp_path: Path) -> None:
    down = {**WELL, 'up{instance="c",job="ionos-poller"}': "1x60 0x60"}
    expected: dict[str, dict[str, str] | None] = dict.fromkeys(FIRING)
    expected["PollerDown"] = {"instance": "c", "job": "ionos-poller"}
    fire(promtool, tmp_path, [scenario(down, expected)])


def test_a_sink_that_takes_nothing_is_no_alert_of_its_contracts_too(promtool: str, tmp_path: Path) -> None:
    # The daemon's metrics while a sink is down: each contract is postponed.
    down = {
        'contracts_postponed{sink="s"}': "0x39 3x80",
        'events_delivered_total{sink="s"}': "0+5x39 195x80",
        'deliver_lag_seconds{sink="s"}': "2x39 0+60x80",
    }
    expected: dict[str, dict[str, str] | None] = dict.fromkeys(FIRING)
    expected["DeliveryStale"] = {"sink": "s"}
    fire(promtool, tmp_path, [scenario({**WELL, **down}, expected)])


def test_what_an_audit_finds_and_has_collected_at_once_wakes_nobody(promtool: str, tmp_path: Path) -> None:
    # The daemon's metrics: entries count as missing until the next audit, but are repaired within seconds.
    found = {
        'audit_missing_events{contract="1"}': "0x59 3x60",
        'events_repaired_total{contract="1"}': "5x59 8x60",
    }
    expected: dict[str, dict[str, str] | None] = dict.fromkeys(FIRING)
    expected["AuditRepairs"] = {"contract": "1"}
    fire(promtool, tmp_path, [scenario({**WELL, **found}, expected)])


def fire(promtool: str, directory: Path, tests: Sequence[dict[str, Any]]) -> None:
    """Run promtool on these scenarios of our rules."""
    document = {"rule_files": [str(HERE / "alerts-prometheus.yaml")], "evaluation_interval": "1m", "tests": [*tests]}
    (directory / "tests.yaml").write_text(yaml.safe_dump(document))
    run_promtool(promtool, "test", "rules", "tests.yaml", cwd=directory)


def scenario(series: Mapping[str, str], expected: Mapping[str, dict[str, str] | None]) -> dict[str, Any]:
    """One test of promtool: series, and alert -> its labels after two hours. None: it must not fire."""
    by_name = {f"Ionos{alert.name}": alert for alert in ALERTS}
    tests = []
    for name, labels in expected.items():
        alert = by_name[f"Ionos{name}"]
        fired = []
        if labels is not None:
            summary, remedy = alert.summary, alert.remedy
            for label, value in labels.items():
                name_of_label = f"{{{{ $labels.{label} }}}}"
                summary, remedy = summary.replace(name_of_label, value), remedy.replace(name_of_label, value)
            fired = [
                {
                    "exp_labels": {**labels, "severity": alert.severity},
                    "exp_annotations": {"summary": summary, "description": remedy},
                }
            ]
        tests.append({"eval_time": "2h", "alertname": f"Ionos{name}", "exp_alerts": fired})
    inputs = [
        {"series": name if name.startswith("up{") else f"ionos_poller_{name}", "values": values}
        for name, values in series.items()
    ]
    return {"interval": "1m", "input_series": inputs, "alert_rule_test": tests}
