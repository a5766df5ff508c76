"""The state in PostgreSQL: the one package that imports psycopg. Each machine that opens a use is a replica of it.

Safety comes from the data, leases only save work: every commit locks its contract's row, which must hold this replica's token,
and decides under that lock what is new. See docs/cluster.md for what is promised. What a method does is said in `store.protocols`
and `store.parts`; here stands what is different in a database.
"""

from poller.store.postgres.stores import Stores

__all__ = ["Stores"]
