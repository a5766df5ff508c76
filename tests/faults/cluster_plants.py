"""Mistakes in the code for clusters, put into the program on purpose as in `plants`: each must be found.

A plant changes attributes through `patch`: `setattr` in a process of its own, or pytest's, which restores them after the test.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

Patch = Callable[[Any, str, Any], None]

_FENCE = ("AND holder = %s FOR UPDATE", "AND (holder = %s OR true) FOR UPDATE")
_PAUSE_SECONDS = 0.3  # time in which a fault may stop the replica


def unlooked_fence(patch: Patch = setattr) -> None:
    """Nothing checks who commits or settles, and from which position."""
    from poller.store.postgres import places

    _rewrite(patch, _FENCE, ("(%s OR holder = %s)", "(%s OR holder = %s OR true)"))
    patch(
        places,
        "waiting_there",
        lambda connection, use, moves, found: [contract for contract in sorted(moves) if contract in found],
    )


def cursor_over_sequence(patch: Patch = setattr) -> None:
    """Segments have numbers of one sequence, and a sink remembers the highest one that it has seen."""
    from poller.store.postgres import outbox

    real = outbox.put

    def put(connection: Any, use: int, contract: str, last: int, *rest: Any, **options: Any) -> Any:
        connection.execute("CREATE SEQUENCE IF NOT EXISTS planted")
        (number,) = connection.execute("SELECT nextval('planted')").fetchone()
        size = real(connection, use, contract, number - 1, *rest, **options)
        return size._replace(segments=number - 1 + size.segments - last)

    patch(outbox, "put", put)
    seen = "(SELECT max(g.segment) FROM places g WHERE g.use_id = c.use_id AND g.sink = %(sink)s)"
    for sign in ("s.number", "c.segment"):
        _rewrite(patch, (f"{sign} > coalesce(p.segment, 0)", f"{sign} > coalesce({seen}, 0)"), only="%(token)s")


def counter_as_token(patch: Patch = setattr) -> None:
    """A replica's token is the next number that the database counts."""
    from poller.store.postgres.replicas import Replica

    def register(self: Any) -> None:
        def work(connection: Any) -> UUID:
            (number,) = connection.execute(
                "INSERT INTO facts VALUES (%s, 'planted', '1') ON CONFLICT (use_id, name) DO UPDATE"
                " SET value = (facts.value::bigint + 1)::text RETURNING value",
                (self._use,),
            ).fetchone()
            token = UUID(int=int(number))
            self._insert(connection, token)
            return token

        asked_at = time.monotonic()
        token = self._database.write(work)
        with self._lock:
            self.token = token
            self._held.clear()
            self._deadline = self._deadline_from(asked_at)

    patch(Replica, "_register", register)


def unseen_before_lock(
    patch: Patch = setattr, between: Callable[[], None] = lambda: time.sleep(_PAUSE_SECONDS)
) -> None:
    """The checks whether the contract is held, and which entries are new, run in a transaction before the one that commits."""
    from poller.store.postgres import ledger
    from poller.store.postgres.contracts import Claim

    decide, real = ledger.unseen, Claim.commit

    def commit(self: Any, read: Any, prepare: Any) -> Any:
        def look(connection: Any) -> Any:
            query = "SELECT 1 FROM contracts WHERE use_id = %s AND contract = %s AND holder = %s"
            held = connection.execute(query, (self._use, self.row.contract, self._token)).fetchone()
            return held, decide(connection, self._use, self.row.contract, read.events) if read.events else []

        held, new = self._database.read(look)
        if held is None:
            raise self._lost()
        if new:
            between()
        decided[self.row.contract] = new
        return real(self, read, prepare)

    decided: dict[str, Any] = {}
    patch(Claim, "commit", commit)
    patch(ledger, "unseen", lambda connection, use, contract, events, **options: decided[contract])
    _rewrite(patch, _FENCE)


def _rewrite(patch: Patch, *changes: tuple[str, str], only: str = "") -> None:
    """Replace words in all queries that contain `only`."""
    from poller.store.postgres.database import Connection

    real = Connection.execute

    def execute(self: Any, query: str, *args: Any, **options: Any) -> Any:
        if only in query:
            for old, new in changes:
                query = query.replace(old, new)
        return real(self, query, *args, **options)

    patch(Connection, "execute", execute)


CLUSTER_PLANTS: dict[str, Callable[[], None]] = {
    plant.__name__.replace("_", "-"): plant
    for plant in (unlooked_fence, cursor_over_sequence, counter_as_token, unseen_before_lock)
}
