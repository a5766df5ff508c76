"""What the tests of `run` share: the daemon as a process, a simulator as its only peer, and checks of the result."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from poller.simulator import Simulator
from poller.store.sqlite.overview import overview_of
from tests.commands import start_process
from tests.in_process import run_here
from tests.support import COMMAND, clean_environment, free_port, wait_until

LOGGING, LOKI, MOESIF, OPENSEARCH, OTLP, HTTP = "logging", "loki", "moesif", "opensearch", "otlp", "http"
FIRST, SECOND = 31960001, 31960002
CONTRACTS = (FIRST, SECOND)
STOPS_WITHIN_SECONDS = 10.0

# Waits and rates for tests: short, unless a test is about them. Only `read_timeout` is long: a busy machine may answer late,
# and a batch that is then sent again is a repeat that the test does not expect.
QUICK = {
    "retry_initial": '"50ms"',
    "retry_max": '"200ms"',
    "read_timeout": '"10s"',
    "batch_age": '"100ms"',
    "requests_per_second": "1000",
}

MakeDaemon = Callable[..., "Daemon"]
Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


class Daemon:
    """`run` in a directory with its config, key files and state, in front of a simulator.

    `sinks`: sink name to the additional keys of its table; values are TOML text.
    """

    def __init__(self, directory: Path, simulator: Simulator) -> None:
        self.directory = directory
        self.simulator = simulator
        self.state_dir = directory / "state"
        self.told = ""  # stderr of the last other command
        self.config_file = directory / "ionos-poller.toml"
        self.key_file = directory / "logging.key"
        self.token_file = directory / "token"
        self.stderr_file = directory / "stderr"
        self.key_file.write_text(simulator.settings.api_key)
        self.token_file.write_text(simulator.token)
        self.application_id_file = directory / "moesif.id"
        self.application_id_file.write_text(simulator.settings.application_id)
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.configure()

    def configure(
        self,
        *,
        sinks: Mapping[str, Mapping[str, str]] | None = None,
        each: Mapping[str, str] | None = None,
        api: Mapping[str, str] | None = None,
        poll: Mapping[str, str] | None = None,
        outbox: Mapping[str, str] | None = None,
        port: int | None = None,
        host: str = "127.0.0.1",
        more: str = "",
    ) -> None:
        """Write the config. `each` is for every sink; `sinks` defaults to one for logging and one Loki; `more` is TOML."""
        port = self.port if port is None else port
        tables = [
            f'state_dir = "{self.state_dir}"\n',
            _table(
                "[api]",
                {
                    "url": f'"{self.simulator.url}"',
                    "token_file": f'"{self.token_file}"',
                    "requests_per_second": "1000",
                    **(api or {}),
                },
            ),
            _table("[poll]", {"interval": '"1s"', "initial_lookback": '"2h"', **(poll or {})}),
            _table("[http]", {"listen": f'"{host}:{port}"'}),
            _table("[outbox]", outbox or {}),
            more,
        ]
        for name, keys in (sinks if sinks is not None else {LOGGING: {}, LOKI: {}}).items():
            tables.append(_table("[[sinks]]", {**self._sink(name), **QUICK, **(each or {}), **keys}))
        self.config_file.write_text("\n".join(tables))

    def _sink(self, name: str) -> dict[str, str]:
        """The table of a sink. Its type is the first word of its name: `loki-2` is another Loki."""
        kind = name.partition("-")[0]
        usual = {"name": f'"{name}"', "url": f'"{self.simulator.url}/sink/{kind}"'}
        if kind == LOKI:
            return {"type": '"loki"', **usual}
        if kind == MOESIF:
            return {"type": '"moesif"', "application_id_file": f'"{self.application_id_file}"', **usual}
        if kind in (OPENSEARCH, OTLP, HTTP):
            return {"type": f'"{kind}"', **usual}
        return {"type": '"logging-service"', "tag": '"activityLog"', "api_key_file": f'"{self.key_file}"', **usual}

    # The process

    def start(
        self,
        *args: str,
        is_awaited: bool = True,
        stdout: str = "",
        stderr: int | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Daemon:
        """Start it, and wait until its endpoint answers (it need not be ready).

        `stdout`: a shell's redirection; `stderr`: a descriptor in place of the file.
        """
        with self.stderr_file.open("ab") as file:
            command = [*COMMAND, "run", *args]
            if stdout:
                command = ["sh", "-c", f'exec "$@" {stdout}', "sh", *command]
            self.process = start_process(
                command,
                cwd=self.directory,
                env=clean_environment(env),
                stdout=file,
                stderr=file if stderr is None else stderr,
            )
        if is_awaited:
            wait_until(self.is_up, what="the daemon answers")
        return self

    def is_up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.stderr
        try:
            return self.get("/healthz")[0] == 200
        except OSError:
            return False

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def reload(self) -> None:
        """SIGHUP, and wait until the outcome is logged."""
        before = len(self.logged("config.reloaded")) + len(self.logged("config.reload_failed"))
        self.signal(signal.SIGHUP)
        wait_until(
            lambda: len(self.logged("config.reloaded")) + len(self.logged("config.reload_failed")) > before,
            STOPS_WITHIN_SECONDS + 5,
            what="the reload is over",
        )

    def stop(self) -> float:
        """Send SIGTERM. Returns the seconds until it ended; it must end without an error."""
        assert self.process is not None
        started = time.monotonic()
        self.signal(signal.SIGTERM)
        code = self.process.wait(STOPS_WITHIN_SECONDS + 5)
        seconds = time.monotonic() - started
        assert code == 0, self.stderr[-2000:]
        assert seconds < STOPS_WITHIN_SECONDS
        return seconds

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def command(self, *args: str, code: int = 0) -> str:
        """Run another command on the same config to its end. Returns its stdout, or its stderr if it must fail."""
        got, stdout, stderr = run_here(*args, cwd=self.directory, env=clean_environment())
        self.told = stderr.decode()
        assert "Traceback" not in self.told
        assert got == code, (args, got, stdout, self.told)
        return self.told if code else stdout.decode()

    # What it says

    @property
    def stderr(self) -> str:
        return self.stderr_file.read_text() if self.stderr_file.exists() else ""

    def log(self) -> Iterator[dict[str, Any]]:
        for line in self.stderr.splitlines():
            if line.startswith("{") and line.endswith("}"):
                yield json.loads(line)

    def logged(self, message: str, **fields: Any) -> list[dict[str, Any]]:
        """The lines of the log with this message and these fields."""
        return [
            line
            for line in self.log()
            if line["message"] == message and all(line.get(name) == value for name, value in fields.items())
        ]

    def get(self, path: str, method: str = "GET") -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def troubles(self) -> list[str]:
        """The reasons in `/readyz`; its status must agree."""
        status, body = self.get("/readyz")
        answer = json.loads(body)
        assert (status, answer["status"]) == ((503, "failing") if answer["reasons"] else (200, "ok"))
        return list(answer["reasons"])

    def trouble(self, *words: str) -> str:
        """The reason in `/readyz` that has these words, or ""."""
        return next((reason for reason in self.troubles() if all(word in reason for word in words)), "")

    def metrics(self) -> Samples:
        return {
            (sample.name.removeprefix("ionos_poller_"), tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(self.get("/metrics")[1])
            for sample in family.samples
        }

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric, 0 if it does not exist yet."""
        return self.metrics().get((name, tuple(sorted(labels.items()))), 0.0)

    def state(self) -> dict[str, Any]:
        """What `status --json` says of this use."""
        return dict(json.loads(self.command("status", "--json"))["uses"]["run"])

    def sink(self, name: str) -> dict[str, Any]:
        """The part of `state` for a sink. It exists once the daemon has registered the sink."""
        return wait_until(
            lambda: next((sink for sink in self.state()["sinks"] if sink["name"] == name), {}), what=f"{name} is known"
        )

    # What came of it

    def lost(self, *intakes: str) -> int:
        return sum(self.simulator.books(name).lost for name in intakes or (LOGGING, LOKI))

    def await_delivery(self, *intakes: str, timeout: float = 45) -> float:
        """Wait until every entry of the simulator is at the intakes. Returns the seconds that it took."""
        started = time.monotonic()
        wanted = sum(log.counts()[0] for log in self.simulator.logs.values())
        names = intakes or (LOGGING, LOKI)

        def is_delivered() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.stderr[-2000:]
            # Counting is cheap, comparing is not.
            return all(self.simulator.intakes[name].distinct >= wanted for name in names)

        try:
            wait_until(is_delivered, timeout, what=f"all {wanted} entries are delivered")
        except AssertionError:
            raise AssertionError([self.simulator.books(name) for name in names], self.stderr[-2000:]) from None
        for name in names:
            books = self.simulator.books(name)
            assert (books.lost, books.invented) == (0, 0), (name, books)
        return time.monotonic() - started

    def polls(self) -> int:
        """The requests for entries so far. A poll of a contract without new entries is one request."""
        return sum(self.simulator.traffic.counts.get("entries", {}).values())

    def assert_once(self, *intakes: str) -> None:
        """Check that every entry of the simulator is at the intakes exactly once."""
        for name in intakes or (LOGGING, LOKI):
            books = self.simulator.books(name)
            assert (books.lost, books.repeated, books.invented) == (0, 0, 0), (name, books)

    def assert_clean(self) -> None:
        """Check that its output has no Python traceback and that the books balance."""
        assert "Traceback" not in self.stderr, self.stderr
        assert 'File "' not in self.stderr, self.stderr
        # The scheduler logs this for an exception that our code did not handle.
        assert not [line for line in self.log() if "raised an exception" in line["message"]], self.stderr
        assert not overview_of(self.state_dir / "run.db").imbalances()

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()

    # What it takes

    def memory_bytes(self, field: str = "VmRSS") -> int:
        assert self.process is not None
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
        raise AssertionError(field)

    def descriptor_count(self) -> int:
        assert self.process is not None
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def cpu_seconds(self) -> float:
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wakeups(self) -> int:
        """How often its threads went to sleep so far. Each time, they were woken again."""
        assert self.process is not None
        count = 0
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # a thread may end as we look
                count += int((task / "status").read_text().partition("\nvoluntary_ctxt_switches:")[2].split()[0])
        return count

    def disk_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.state_dir.iterdir())


def _table(head: str, keys: Mapping[str, str]) -> str:
    return "\n".join([head, *(f"{name} = {value}" for name, value in keys.items()), ""])
