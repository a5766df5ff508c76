"""The state: collected entries, waiting events, and every transaction on them.

`protocols` and `parts` declare what a state can do. `sqlite` does it with one file for each use, `postgres` with a database.
`rows`, `gaps`, `letters`, `journal`, `overview` and `segments` are shared by the backends: rows, and rules without SQL. `opening`
chooses the backend of a configuration.

Invariants, of every backend:
1. New entries and the watermark that covers them are committed in one transaction. The same transaction decides which entries
   are new (`Claim.commit`).
2. The watermark never passes the window's end. It never goes back, except after a clock was ahead (`Contracts.take_back`).
3. An event leaves the outbox only when every sink has finished it: accepted, or in the transaction that writes its dead letter
   (`Place.settle`).
4. Counters are kept in the transaction that moves what they count, so the books balance at every commit.
5. A state that is not ours, is damaged, or is newer than this program is never written to.
6. Nothing outside this package knows a path, a lock file or SQL.
"""
