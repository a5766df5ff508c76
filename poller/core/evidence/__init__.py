"""The evidence of an archive, as pure functions of values: objects, digests, the chain, statements of completeness.

An archive is a set of objects (entries as JSON lines, gzip) and a chain of digests. A digest names the objects of one batch with
their hashes, the hash of the digest before it, and how many entries the API counted for each hour that an audit has closed.
docs/evidence.md describes the format for people who verify it with other tools.
"""
