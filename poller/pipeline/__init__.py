"""The use cases: collect, deliver, transfer (both at once), fetch, backfill, audit, repair, adopt. No scheduling, no printing.

Invariants:
1. New entries and the watermark that covers them are committed in one transaction. A failed page fails its window.
2. The watermark never passes the window's end, and that end is frozen before page one.
3. Windows of a contract may be read ahead of time, but are committed in order; a contract is collected by one thread at a time.
4. An event leaves the outbox only after a sink accepted it, or in the transaction that writes its dead letter.
5. Nothing is dropped because time passed, a queue filled up or a credential expired. The API is the buffer: we wait.
"""
