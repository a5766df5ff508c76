"""Archives are written by one machine: a state in a database has none, and says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

from poller.core.errors import StateError
from poller.core.evidence.batches import Head, Packed, PreparedBatch
from poller.store.protocols import Seal


class Archives:
    """No archive: none can be begun, and what was never begun has no head."""

    def head(self, sink: str) -> Head | None:
        return None

    def begin(self, sink: str, now: int) -> Head:
        _refuse(sink)

    def adopt(self, sink: str, head: Head, held: Mapping[tuple[str, int], int]) -> None:
        _refuse(sink)

    def prepared(self, sink: str) -> PreparedBatch | None:
        return None

    def prepare(
        self,
        sink: str,
        events: int,
        objects: Sequence[Packed],
        seal: Seal,
        now: int,
        *,
        writer: str = "",
    ) -> PreparedBatch | None:
        _refuse(sink)

    def complete(self, sink: str, number: int, now: float) -> bool:
        _refuse(sink)

    def archived(self, sink: str, writer: str) -> int:
        return 0

    def close_hours(self, sink: str, contract: str, counted: Mapping[int, int | None]) -> None:
        """Nothing states them."""

    def has_to_state(self, sink: str) -> bool:
        return False


def _refuse(sink: str) -> NoReturn:
    raise StateError(
        "an archive needs a state in files", sink=sink, hint="run it with a state_dir of its own, without state.url"
    )
