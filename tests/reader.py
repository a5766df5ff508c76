"""A reader of the documentation, who types its commands into one shell, one at a time.

An unknown command, a failure, or a command that never becomes ready ends the reading.
"""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.support import free_port, wait_until

# Commands that run until they are stopped.
_LASTING = re.compile(r"^ionos-poller( --\S+ \S+)* (?P<what>run|simulate|status(?= --watch))\b")
_ANSWERS_WITHIN_SECONDS = 60


class Reader:
    """Works in `directory`, with exactly the given environment. `close` kills the commands that still run."""

    def __init__(self, directory: Path, environment: Mapping[str, str], edit: Callable[[str], str] = str) -> None:
        """`edit`: changes a printed command into the command to type, for example three dots into a token."""
        self.directory = directory
        self._edit = edit
        self._port = free_port()
        self.environment = {**environment, "IONOS_POLLER_HTTP__LISTEN": f"127.0.0.1:{self._port}"}
        self._variables = directory / ".variables"
        self._variables.touch()
        self._running: list[tuple[str, subprocess.Popen[str]]] = []

    def type(self, command: str, timeout: float = 300) -> list[str]:
        """Type a command.  Returns: the lines that it prints on stdout.  Raises: AssertionError if it fails."""
        command = self._edit(command)
        if match := _LASTING.match(command):
            return self._start(match["what"], command.removesuffix("&").strip())
        done = self._shell(f"{command}\nexport -p > {self._variables}", timeout=timeout)
        assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.splitlines()

    def _shell(self, script: str, timeout: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/bash", "-c", f"set -euo pipefail\n. {self._variables}\n{script}"],
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=timeout,
            check=False,
        )

    def _start(self, what: str, command: str) -> list[str]:
        if what == "simulate" and "--port" not in command:
            command += " --port 0"  # several of these tests may run at once
        log = self.directory / f".{what}-{len(self._running)}"
        with log.open("w") as output:
            process = subprocess.Popen(
                ["/bin/bash", "-c", f". {self._variables}; exec {command}"],
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
            )
        self._running.append((command, process))

        def works() -> bool:
            assert process.poll() is None, f"{command}: exit {process.returncode}\n{log.read_text()}"
            said = log.read_text()
            return "batch.sent" in said and self.is_ready() if what == "run" else bool(said)

        wait_until(works, _ANSWERS_WITHIN_SECONDS, what=f"{command} works: {log.read_text()}")
        if what == "status":
            self.stop()
        return log.read_text().splitlines()

    def is_ready(self) -> bool:
        """Whether a daemon says that it is ready."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def stop(self) -> None:
        """Send Ctrl-C to the command that was started last, and check that it ends with exit code 0."""
        command, process = self._running.pop()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, f"{command}: exit {process.returncode}"

    def stop_all(self) -> None:
        while self._running:
            self.stop()

    def close(self) -> None:
        """Kill all commands that still run."""
        for _, process in self._running:
            process.kill()
            process.wait()


def path_of(*directories: Path) -> str:
    return os.pathsep.join(map(str, directories))
