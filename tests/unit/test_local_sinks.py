"""Sinks on a machine's own disk, where several machines share a state: who writes, and what of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from poller.config import load
from poller.config.sinks import FileSink, StdoutSink
from poller.core.errors import ConfigError
from poller.store.protocols import State
from tests.states import NOW, claimed, commit, enrolled, events, waiting

DATABASE = '[state]\nurl = "postgresql://poller@127.0.0.1/poller"\n'
FILE = '[[sinks]]\nname = "file"\ntype = "file"\npath = "out.ndjson"\n'


def loaded(tmp_path: Path, text: str) -> object:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return load(path, {"IONOS_API_TOKEN": "demo-token"})


@pytest.mark.parametrize("kind", [FILE, '[[sinks]]\nname = "out"\ntype = "stdout"\n'])
def test_a_sink_on_a_disk_says_whose_where_machines_share_a_state(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ConfigError) as raised:
        loaded(tmp_path, DATABASE + kind)
    (problem,) = raised.value.problems
    assert problem.path == "sinks[0].host"
    assert "shared = true" in problem.hint
    assert loaded(tmp_path, kind)
    assert loaded(tmp_path, DATABASE + kind + 'host = "collector-1"\n')
    assert loaded(tmp_path, DATABASE + kind + "shared = true\n")
    with pytest.raises(ConfigError, match="contradicts host"):
        loaded(tmp_path, DATABASE + kind + 'host = "collector-1"\nshared = true\n')


def test_an_archive_in_a_bucket_needs_no_machine_and_a_directory_may_be_the_same_everywhere(tmp_path: Path) -> None:
    archive = '[[sinks]]\nname = "proof"\ntype = "archive"\nurl = '
    assert loaded(tmp_path, DATABASE + archive + '"s3://audit/activity"\n')
    with pytest.raises(ConfigError, match="all machines have the same directory"):
        loaded(tmp_path, DATABASE + archive + '"file:///srv/audit"\n')
    assert loaded(tmp_path, DATABASE + archive + '"file:///srv/audit"\nshared = true\n')
    assert loaded(tmp_path, DATABASE + archive + '"file:///srv/audit"\nhost = "collector-1"\n')


def test_a_machine_writes_what_is_its_own_or_nobody_s() -> None:
    pinned = FileSink(name="file", path="x", host="collector-1")
    assert [pinned.is_here(host) for host in ("collector-1", "collector-2")] == [True, False]
    assert StdoutSink(name="out", shared=True).is_here("collector-2")


@pytest.mark.backends("postgres")
def test_the_machine_of_a_sink_delivers_what_the_others_collect(opened: Callable[[], State]) -> None:
    here, elsewhere = enrolled(opened()), opened()
    try:
        assert elsewhere.contracts.share(["1"]) == ["1"]
        with claimed(elsewhere) as claim:
            assert claim.row.contract == "1"
        commit(elsewhere, events(1, 2, 3))
        part = here.outbox.take("out")
        assert part is not None
        assert part.batch(9, 10**6) is None, "another replica holds the contract"
        part.release()
        whole = here.outbox.take("out", is_whole=True)
        assert whole is not None
        batch = whole.batch(2, 10**6)
        assert batch is not None
        assert len(batch.events) == 2
        whole.ensure_held()
        whole.settle(2, now=NOW)
        whole.release()
        assert waiting(elsewhere, "out") == [3]
        assert here.overview().imbalances() == []
    finally:
        elsewhere.close()
        here.close()
