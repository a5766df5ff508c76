"""The simulator: a world, and the server in front of it."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from poller.simulator.server import SimulatorServer
from poller.simulator.settings import SimulatorSettings
from poller.simulator.world import World


class Simulator(World):
    """The Activity Log API and a set of intakes on 127.0.0.1; a context manager.

    It can be started again after `stop`, on the same port and with all its data.
    """

    def __init__(self, settings: SimulatorSettings | None = None) -> None:
        super().__init__(settings)
        self._server: SimulatorServer | None = None
        self._port = self.settings.port

    def start(self) -> Self:
        """Start to serve, in threads of its own. Raises: OSError if the port is in use."""
        self._server = SimulatorServer(self, self._port)
        self._port = self._server.server_port
        self._server.start()
        return self

    def stop(self) -> None:
        """Stop serving and cut all connections. The logs and the record of the intakes stay."""
        if self._server:
            self._server.stop()
            self._server = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The value for `api.url`; an intake is at `{url}/sink/{name}`."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def token(self) -> str:
        return self.settings.token
