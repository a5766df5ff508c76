"""The files in fluent-bit/: they agree with each other, their commands work, and with Fluent Bit installed, everything works.

Without a `fluent-bit` (on the path, or in the directory of its packages) the last part is skipped. Then the keys are compared
with tables from its manual, but no Fluent Bit reads them.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from poller.config import LoggingServiceSink
from poller.config.load import load
from poller.simulator import Simulator, SimulatorSettings
from tests.fluent_bit import (
    REFUSED,
    REFUSED_AT_START,
    REFUSED_YAML,
    TAKEN,
    alike,
    read_classic,
    read_yaml,
    size_bytes,
)
from tests.integration.fetching import Bench, Starter
from tests.support import TOP, clean_environment, free_port, wait_until

FILES = TOP / "fluent-bit"
NAMES = ("logging-service", "moesif", "push")
LONGEST_LINE_BYTES = 1_000_000  # in the output of `fetch` for Moesif
MINIMAL_BUFFER_BYTES = 2_000_000

# Source: docs.fluentbit.io, manual, pages of the service, the exec and http inputs, the http output, and the parsers.
_INPUT = {"name", "tag", "storage.type", "threaded"}
_SERVICE = "flush log_level parsers_file grace scheduler.cap storage.path storage.sync storage.checksum"
KEYS = {
    "service": {*_SERVICE.split(), "storage.backlog.mem_limit", "json.escape_unicode"},
    "parser": {"name", "format", "time_key", "time_format", "time_keep"},
    "input exec": {*_INPUT, "command", "parser", "interval_sec", "interval_nsec", "buf_size", "oneshot"},
    "input http": {*_INPUT, "listen", "port", "tag_key", "buffer_max_size", "buffer_chunk_size"},
    "output http": {
        *("name", "match", "host", "port", "uri", "header", "format", "json_date_key", "compress"),
        *("tls", "tls.verify", "retry_limit"),
    },
}


PIPELINES = {f"{name}.conf": read_classic(FILES / f"{name}.conf") for name in NAMES} | {
    f"{name}.yaml": read_yaml(FILES / f"{name}.yaml") for name in NAMES
}
EACH = pytest.mark.parametrize("file", PIPELINES)


# The content of the files


def test_every_file_is_known_here_and_in_the_readme() -> None:
    names = {path.name for path in FILES.iterdir()}
    assert names == {*PIPELINES, "parsers.conf", "push.toml", "README.md"}
    readme = (FILES / "README.md").read_text(encoding="utf-8")
    assert [name for name in names - {"README.md"} if name not in readme] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_two_syntaxes_say_the_same(name: str) -> None:
    assert alike(PIPELINES[f"{name}.yaml"]) == alike(PIPELINES[f"{name}.conf"])


@EACH
def test_every_key_is_one_that_fluent_bit_knows(file: str) -> None:
    pipeline = PIPELINES[file]
    sections = [("service", pipeline.service), *(("parser", keys) for keys in pipeline.parsers)]
    sections += [(f"input {keys['name']}", keys) for keys in pipeline.inputs]
    sections += [(f"output {keys['name']}", keys) for keys in pipeline.outputs]
    assert [(kind, key) for kind, keys in sections for key in keys if key not in KEYS[kind]] == []


@EACH
def test_what_is_named_is_there_and_what_comes_in_goes_out(file: str) -> None:
    pipeline = PIPELINES[file]
    (source,), (target,) = pipeline.inputs, pipeline.outputs
    if source["name"] == "exec":
        assert source["parser"] in {keys["name"] for keys in pipeline.parsers}
        assert target["match"] == source["tag"]
    else:
        assert "tag" not in source  # the path of the request is the tag
    if target["uri"] != "/v1/actions/batch":
        assert target["uri"] == f"/{target['match']}" == "/activityLog"
    told = (FILES / file).read_text(encoding="utf-8")
    variables = set(re.findall(r"\$\{(\w+)}", told))
    comments = " ".join(line for line in told.splitlines() if line.startswith("#"))
    assert variables
    assert [name for name in variables if name not in comments] == []


@EACH
def test_nothing_is_dropped_that_a_setting_can_keep(file: str) -> None:
    """The traps of docs/facts.md, "Fluent Bit", and the settings that their remedies need."""
    pipeline = PIPELINES[file]
    (source,), (target,) = pipeline.inputs, pipeline.outputs
    assert pipeline.service["storage.path"]
    assert pipeline.service["storage.checksum"] == "off"  # otherwise a chunk that was open at a kill is never sent
    assert pipeline.service["json.escape_unicode"] == "off"  # otherwise a line may grow threefold, and be refused
    assert source["storage.type"] == "filesystem"
    assert "mem_buf_limit" not in source
    assert target["retry_limit"] == "no_limits"
    assert target["format"] == "json"
    assert target["json_date_key"].lower() in ("false", "off")
    assert (target["tls"].lower(), target["tls.verify"].lower()) == ("on", "on")
    assert "storage.total_limit_size" not in target  # it would drop the oldest chunks
    if source["name"] == "exec":
        assert source["threaded"].lower() == "on"
        assert size_bytes(source["buf_size"]) >= MINIMAL_BUFFER_BYTES


def test_each_goes_where_its_receiver_listens() -> None:
    for file, pipeline in PIPELINES.items():
        (target,) = pipeline.outputs
        header, _, secret = target["header"].partition(" ")
        if file.startswith("moesif"):
            assert "compress" not in target, "nothing says that Moesif takes gzip, and what it refuses is dropped"
            assert (target["host"], header) == ("api.moesif.net", "X-Moesif-Application-Id")
        else:
            assert (target["host"], header) == ("${IONOS_LOGGING_HOST}", "APIKEY")
        assert re.fullmatch(r"\$\{\w+}", secret), "a secret comes from the environment"


def test_the_config_of_run_pushes_where_fluent_bit_listens(tmp_path: Path) -> None:
    shutil.copy(FILES / "push.toml", tmp_path)
    config = load(tmp_path / "push.toml", {"FLUENT_BIT_KEY": "any"}, check_files=False)
    (sink,) = config.sinks
    (source,), (target,) = PIPELINES["push.conf"].inputs, PIPELINES["push.conf"].outputs
    assert isinstance(sink, LoggingServiceSink)
    assert sink.url == f"http://{source['listen']}:{source['port']}"
    assert sink.tag == target["match"]
    assert 2 * sink.batch_bytes <= size_bytes(source["buffer_max_size"])


# Their commands


@pytest.mark.parametrize("name", ["logging-service", "moesif"])
def test_the_command_prints_lines_that_the_parser_takes(name: str, bench: Starter, tmp_path: Path) -> None:
    pipeline = PIPELINES[f"{name}.conf"]
    (source,) = pipeline.inputs
    parser = next(keys for keys in pipeline.parsers if keys["name"] == source["parser"])
    place = bench(events=50, entry_bytes=6000)
    ago = datetime.now(UTC) - timedelta(minutes=5)
    place.simulator.add_entries(place.simulator.contracts[0], [{"event": {"message": "x" * 3_000_000}}], at=ago)
    lines = _first_lines(place, source["command"], tmp_path)
    assert len(lines) == 2 * 50 + 1
    assert max(len(line) for line in lines) + 1 < min(
        size_bytes(source["buf_size"]), 256 * 1024 if name != "moesif" else 10**6
    )
    assert parser["format"] == "json"
    for line in lines:
        record = json.loads(line)
        if "time_key" in parser:
            # strptime's %f is Fluent Bit's %L.
            datetime.strptime(record[parser["time_key"]], parser["time_format"].replace("%L", "%f"))  # noqa: DTZ007
        else:
            assert record["action_name"]


def _first_lines(place: Bench, command: str, directory: Path) -> list[bytes]:
    """The lines that the first run of a `Command` prints, with its state in `directory`."""
    program, *args = shlex.split(command.replace("/var/lib/ionos-poller", str(directory / "state")))
    assert program == "ionos-poller"
    run = place.run(*args, env={"IONOS_POLLER_POLL__INITIAL_LOOKBACK": "2h"})
    assert (run.code, run.told) == (0, []), run.stderr
    return run.lines


# With the real Fluent Bit


def _fluent_bit() -> tuple[str, tuple[int, ...]] | None:
    """The path of Fluent Bit, and its version; None if it is not installed."""
    program = shutil.which("fluent-bit") or shutil.which("fluent-bit", path="/opt/fluent-bit/bin")
    if program is None:
        return None
    said = subprocess.run([program, "--version"], capture_output=True, encoding="utf-8", check=True).stdout
    return program, tuple(int(number) for number in re.findall(r"\d+", said)[:3])


FLUENT_BIT = _fluent_bit()
# Only its vendor's package registry has the program, and a test machine may not reach it. Without it, parsers and `check` read
# the files, and the skipped tests say what was not checked.
REAL = pytest.mark.skipif(
    FLUENT_BIT is None, reason="no fluent-bit on this machine: no Fluent Bit has read the files in fluent-bit/"
)


def _said(tmp_path: Path, case: tuple[Any, ...], *options: str) -> tuple[int, str]:
    """The exit code and messages of Fluent Bit with a changed file. No variable names a host outside of this machine."""
    assert FLUENT_BIT is not None
    file, right, wrong, *_ = case
    text = (FILES / file).read_text(encoding="utf-8")
    assert right in text
    text = text.replace(right, wrong, 1)
    text = re.sub(r"/var/lib/[\w-]+/\w+", str(tmp_path / "storage"), text)
    (tmp_path / file).write_text(re.sub(r"(\bport:? +)9880\b", rf"\g<1>{free_port()}", text), encoding="utf-8")
    shutil.copy(FILES / "parsers.conf", tmp_path)
    environment = {"IONOS_LOGGING_HOST": "127.0.0.1", "IONOS_LOGGING_KEY": "any", "PORT": "9"}
    done = subprocess.run(
        [FLUENT_BIT[0], *options, "-c", str(tmp_path / file)],
        cwd=tmp_path,
        env=clean_environment(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=20,
        check=False,
    )
    return done.returncode, done.stderr.decode(errors="replace")[-2000:]


@REAL
@pytest.mark.parametrize("case", REFUSED + REFUSED_YAML, ids=lambda case: repr(case[2]))
def test_what_check_calls_refused_is_refused(tmp_path: Path, case: tuple[Any, ...]) -> None:
    code, said = _said(tmp_path, case, "--dry-run")
    assert code != 0, said


@REAL
@pytest.mark.parametrize("case", REFUSED_AT_START, ids=lambda case: repr(case[2]))
def test_what_check_calls_refused_at_the_start_is_refused_there(tmp_path: Path, case: tuple[Any, ...]) -> None:
    code, said = _said(tmp_path, case)
    assert code != 0, said


@REAL
@pytest.mark.parametrize("case", TAKEN, ids=lambda case: repr(case[2]))
def test_what_check_calls_good_is_taken(tmp_path: Path, case: tuple[Any, ...]) -> None:
    code, said = _said(tmp_path, case, "--dry-run")
    assert code == 0, said


class Rehearsal:
    """A configuration of fluent-bit/ in which a simulator replaces the outside world, and each wait is a second."""

    def __init__(self, directory: Path, simulator: Simulator, file: str) -> None:
        assert FLUENT_BIT is not None
        self.directory = directory
        self.simulator = simulator
        self.program, self.version = FLUENT_BIT
        self.input_port = free_port()
        self.config_file = directory / file
        self.config_file.write_text(self._rewritten((FILES / file).read_text(encoding="utf-8")), encoding="utf-8")
        shutil.copy(FILES / "parsers.conf", directory)
        bin_directory = directory / "bin"
        bin_directory.mkdir()
        command = bin_directory / "ionos-poller"
        command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m poller "$@"\n')
        command.chmod(0o755)

    def _rewritten(self, text: str) -> str:
        changes = [
            (r"/var/lib/[\w-]+/\w+", str(self.directory / "storage")),
            (r"(\bport:? +)443\b", rf"\g<1>{self.simulator.url.rpartition(':')[2]}"),
            (r"(\bport:? +)9880\b", rf"\g<1>{self.input_port}"),
            (r"(\btls:? +)on\b", r"\g<1>off"),
            (r"(\binterval_sec:? +)60\b", r"\g<1>1"),
            (r"(\bhost:? +)api\.moesif\.net", r"\g<1>127.0.0.1"),
            (r"(\buri:? +)/v1/", r"\g<1>/sink/moesif/v1/"),
            (r"(\buri:? +)/activityLog", r"\g<1>/sink/logging/activityLog"),
        ]
        if self.version < (2,):
            changes.append((r"\n *threaded:? +on\b", ""))
        for pattern, replacement in changes:
            text = re.sub(pattern, replacement, text, flags=re.IGNORECASE)
        return text

    @contextmanager
    def running(self) -> Iterator[None]:
        environment = clean_environment(
            {
                "PATH": f"{self.directory / 'bin'}:{os.environ['PATH']}",
                "IONOS_API_URL": self.simulator.url,
                "IONOS_API_TOKEN": self.simulator.token,
                "IONOS_POLLER_STATE_DIR": str(self.directory / "state"),
                "IONOS_POLLER_POLL__INITIAL_LOOKBACK": "2h",
                "IONOS_LOGGING_HOST": "127.0.0.1",
                "IONOS_LOGGING_KEY": self.simulator.settings.api_key,
                "MOESIF_APPLICATION_ID": self.simulator.settings.application_id,
            }
        )
        with (self.directory / "fluent-bit.log").open("w") as log:
            process = subprocess.Popen(
                [self.program, "-c", str(self.config_file)],
                cwd=self.directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            yield
            assert process.poll() is None, self.log
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    @property
    def log(self) -> str:
        return (self.directory / "fluent-bit.log").read_text(errors="replace")[-3000:]

    def await_lines(self, intake: str, count: int) -> list[dict[str, Any]]:
        taken = self.simulator.intakes[intake]
        try:
            wait_until(lambda: taken.accepted >= count, 60, what=f"{count} records at the {intake} intake")
        except AssertionError as error:
            raise AssertionError(f"{error}: {taken.state()}\n{self.log}") from None
        return [json.loads(line) for line in taken.lines]


Rehearse = Callable[..., Rehearsal]


@pytest.fixture
def rehearse(tmp_path: Path) -> Iterator[Rehearse]:
    """Makes rehearsals of a file: one contract with 500 entries of 6 kB, which the default buffer of 4 KiB would lose."""
    started: list[Simulator] = []

    def make(file: str) -> Rehearsal:
        version = FLUENT_BIT[1] if FLUENT_BIT else ()
        if file.endswith(".yaml") and version < (3, 2):
            pytest.skip("this Fluent Bit is older than 3.2: it reads no YAML of this kind")
        if file.startswith("push") and version < (2, 2):
            pytest.skip("this Fluent Bit is older than 2.2: its http input crashes on large requests")
        settings = SimulatorSettings(contracts=1, events=500, span_seconds=3000, entry_bytes=6000, keep_lines=True)
        started.append(Simulator(settings).start())
        return Rehearsal(tmp_path, started[-1], file)

    yield make
    for simulator in started:
        simulator.stop()


@REAL
@pytest.mark.parametrize("file", ["logging-service.conf", "logging-service.yaml"])
def test_500_lines_of_6_kb_go_through_exec_to_the_logging_service(file: str, rehearse: Rehearse) -> None:
    place = rehearse(file)
    with place.running():
        records = place.await_lines("logging", 500)
    entries = [json.loads(line) for number in place.simulator.contracts for line in place.simulator.oracle(number)]
    moments = (
        sorted(map(datetime.fromisoformat, times))
        for times in ([record["time"] for record in records], [entry["meta"]["time"] for entry in entries])
    )
    assert next(moments) == next(moments)
    for record in records:
        del record["time"]
    assert sorted(records, key=_identity) == sorted(entries, key=_identity)
    assert all('"type":"' in line.decode() for line in place.simulator.intakes["logging"].lines), "compact, for LogQL"


def _identity(entry: dict[str, Any]) -> str:
    return str(entry["@uuid"])


@REAL
@pytest.mark.parametrize("file", ["moesif.conf", "moesif.yaml"])
def test_500_actions_go_through_exec_to_moesif(file: str, rehearse: Rehearse) -> None:
    place = rehearse(file)
    with place.running():
        actions = place.await_lines("moesif", 500)
    assert len({action["transaction_id"] for action in actions}) == 500


@REAL
@pytest.mark.parametrize("file", ["push.conf", "push.yaml"])
def test_run_pushes_500_entries_through_the_http_input(
    file: str, rehearse: Rehearse, start: Callable[..., subprocess.Popen[str]]
) -> None:
    place = rehearse(file)
    config = (FILES / "push.toml").read_text(encoding="utf-8").replace(":9880", f":{place.input_port}")
    config = re.sub(r"(?m)^(state_dir|token_file) = .*\n", "", config)
    (place.directory / "ionos-poller.toml").write_text(
        config + '\n[poll]\ninitial_lookback = "2h"\n[http]\nlisten = ""\n'
    )
    environment = {
        "IONOS_API_URL": place.simulator.url,
        "IONOS_API_TOKEN": place.simulator.token,
        "FLUENT_BIT_KEY": "any",
    }
    with place.running(), (place.directory / "run.log").open("w") as log:
        start("run", cwd=place.directory, env=environment, stdout=log, stderr=log)
        records = place.await_lines("logging", 500)
    entries = [json.loads(line) for number in place.simulator.contracts for line in place.simulator.oracle(number)]
    assert sorted(records, key=_identity) == sorted(entries, key=_identity)
