"""The state: what was collected, what waits for a sink, and every transaction on it.

`protocols` and `parts` say what a state can do; `sqlite` does it with a file for each use. `rows`, `gaps`, `letters`, `journal`,
`overview` and `segments` hold what every backend shares: rows, and rules that know no SQL. `opening` picks the backend of a
configuration.

Invariants, of every backend:
1. New entries and the watermark that covers them are committed in one transaction, in which it is also decided which entries are
   new (`Claim.commit`).
2. The watermark never passes the window's end. It never goes back, except where a clock that was ahead had moved it
   (`Contracts.take_back`).
3. An event leaves the outbox only when every sink is done with it: accepted, or in the transaction that writes its dead letter
   (`Place.settle`).
4. Counters are kept in the transaction that moves what they count, so the books balance at every commit.
5. A state that is not ours, is damaged or is newer than this program is never written to.
6. Nothing outside this package knows a path, a lock file or SQL.
"""
