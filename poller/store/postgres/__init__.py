"""The state in PostgreSQL. Only this package imports psycopg. Each process that works on a use is a replica.

Correctness does not depend on leases; they only avoid double work. Every commit locks the row of its contract, checks that the
row has this replica's token, and decides under that lock which entries are new. docs/cluster.md lists the guarantees. Methods are
documented in `store.protocols` and `store.parts`. This package documents only the differences of a database.
"""

from poller.store.postgres.stores import Stores

__all__ = ["Stores"]
