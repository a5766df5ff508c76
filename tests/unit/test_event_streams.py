"""The client of Event Streams against a fake API: cluster, user, login, and every bad answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from poller.core.errors import AuthError, BodyTooLargeError, ConfigError, PollerError, RejectedError, TransientError
from poller.ionos.event_streams import Access, Cluster, EventStreams, User, region_url
from poller.net.transport import Response, Transport

URL = "https://kafka.example"
TOKEN = "canary-token"
CLUSTER = Cluster("c/1", "audit", "AVAILABLE", ("b1:9093", "b2:9093"))
USER = User("u 1", "poller")
CA, CERTIFICATE, KEY = (
    f"-----BEGIN {what}-----\nQUJD\n-----END {what}-----\n" for what in ("CERTIFICATE", "CERTIFICATE", "PRIVATE KEY")
)


class Answering(Transport):
    """Answers each path with a page of its list, or with its only answer. It keeps the requests."""

    def __init__(self, answers: Mapping[str, object]) -> None:
        super().__init__()
        self.answers = answers
        self.asked: list[tuple[str, Mapping[str, str | int]]] = []

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str | int] | None = None,
        body: bytes | None = None,
        max_bytes: int = 0,
    ) -> Response:
        assert (method, body, max_bytes) == ("GET", None, 4 * 1024 * 1024)
        assert headers == {"Authorization": f"Bearer {TOKEN}", "Accept": "application/json"}
        path = url.removeprefix(f"{URL}/")
        self.asked.append((path, params or {}))
        answer = self.answers[path]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Response):
            return answer
        if isinstance(answer, list):
            offset, limit = (int((params or {})[name]) for name in ("offset", "limit"))
            answer = {"items": answer[offset : offset + limit]}
        return Response(200, {}, json.dumps(answer).encode())


def asking(answers: Mapping[str, object]) -> tuple[EventStreams, Answering]:
    other = Answering(answers)
    return EventStreams(URL, f"Bearer {TOKEN}", other), other


def clusters(*names: str) -> list[dict[str, Any]]:
    return [{"id": f"id-{at}", "properties": {"name": name}} for at, name in enumerate(names)]


def problem(error: pytest.ExceptionInfo[ConfigError]) -> str:
    (found,) = error.value.problems
    return f"{found.path}: {found.message}; {found.hint}"


@pytest.mark.parametrize("wanted", ["audit", "c/1"])
def test_a_cluster_is_found_by_its_name_or_its_id(wanted: str) -> None:
    metadata = {"state": "Available", "brokerAddresses": ["b1:9093", "", 7, "b2:9093"]}
    one = {"id": "c/1", "properties": {"name": "audit"}, "metadata": metadata}
    api, _ = asking({"clusters": [*clusters("other"), "no cluster", {"id": 7, "properties": []}, one]})
    assert api.find(wanted) == CLUSTER


@pytest.mark.parametrize("addresses", [None, "b1:9093", {"b1": 1}])
def test_a_cluster_without_a_list_of_brokers_has_none_yet(addresses: object) -> None:
    one = {"id": "c", "properties": {"name": "audit"}, "metadata": {"state": None, "brokerAddresses": addresses}}
    api, _ = asking({"clusters": [one]})
    assert api.find("c") == Cluster("c", "audit", "", ())


def test_a_cluster_that_is_missing_or_not_the_only_one_of_its_name_is_told() -> None:
    api, _ = asking({"clusters": clusters("audit", "other", "audit")})
    with pytest.raises(ConfigError) as missing:
        api.find("Audit")
    assert problem(missing).startswith("--kafka: there is no cluster 'Audit'; give the name or the id")
    with pytest.raises(ConfigError) as several:
        api.find("audit")
    assert problem(several) == "--kafka: 2 are called 'audit'; give the id of one: id-0, id-2"


@pytest.mark.parametrize(
    ("count", "page_count"), [(0, 1), (99, 1), (100, 2), (101, 2), (250, 3), (10_000, 100), (10_100, 100)]
)
def test_a_list_is_read_page_by_page_to_its_end_and_not_for_ever(count: int, page_count: int) -> None:
    api, other = asking({"clusters": clusters(*(["other"] * (count - 1)), *(["audit"] * (count > 0)))})
    if 0 < count <= 10_000:
        assert api.find("audit").id == f"id-{count - 1}"
    else:
        with pytest.raises(ConfigError):
            api.find("audit")
    assert other.asked == [("clusters", {"offset": 100 * page, "limit": 100}) for page in range(page_count)]


def test_an_answer_without_a_list_has_no_clusters() -> None:
    for items in (None, "audit", {"id": "audit"}):
        api, _ = asking({"clusters": {"items": items}})
        with pytest.raises(ConfigError, match="there is no cluster"):
            api.find("audit")


USERS = "clusters/c%2F1/users"


def test_a_user_is_found_by_its_name_or_its_id_or_is_the_only_one() -> None:
    other = {"id": "u2", "properties": {"name": "other"}}
    one = {"id": "u 1", "properties": {"name": "poller"}}
    api, _ = asking({USERS: [other, one]})
    assert api.user(CLUSTER, "poller") == api.user(CLUSTER, "u 1") == USER
    assert asking({USERS: [one]})[0].user(CLUSTER, None) == USER


@pytest.mark.parametrize(
    ("users", "wanted", "hint"),
    [
        ([("u1", "a"), ("u2", "")], None, "there is a, u2"),
        ([("u1", "a"), ("u2", "b")], "c", "there is a, b"),
        ([("u1", "a"), ("u2", "a")], "a", "there is a, a"),
        ([], None, "there is none"),
    ],
)
def test_where_no_user_or_several_are_meant_those_there_are_are_named(
    users: list[tuple[str, str]], wanted: str | None, hint: str
) -> None:
    api, _ = asking({USERS: [{"id": id_, "properties": {"name": name}} for id_, name in users]})
    with pytest.raises(ConfigError) as error:
        api.user(CLUSTER, wanted)
    assert problem(error) == f"--kafka-user: does not name one user of the cluster; {hint}"


ACCESS = f"{USERS}/u%201/access"


def test_what_a_user_logs_in_with_ends_in_a_line_and_its_key_is_a_secret() -> None:
    metadata = {"certificateAuthority": CA.strip(), "certificate": CERTIFICATE + "\n \n", "privateKey": KEY}
    api, other = asking({ACCESS: {"metadata": metadata}})
    access = api.access(CLUSTER, USER)
    assert (access.ca, access.certificate, access.key.reveal()) == (CA, CERTIFICATE, KEY)
    assert isinstance(access, Access)
    assert KEY not in repr(access)
    assert other.asked == [(ACCESS, {})]


@pytest.mark.parametrize("name", ["certificateAuthority", "certificate", "privateKey"])
@pytest.mark.parametrize("part", [None, 7, "", "canary", f"x{KEY}", f"{KEY}x", "-----BEGIN X----------END X-----"])
def test_what_is_no_certificate_or_key_is_told_and_not_shown(name: str, part: object) -> None:
    metadata = {"certificateAuthority": CA, "certificate": CERTIFICATE, "privateKey": KEY, name: part}
    api, _ = asking({ACCESS: {"metadata": metadata}})
    with pytest.raises(TransientError, match="gave no certificates for this user") as error:
        api.access(CLUSTER, USER)
    assert "QUJD" not in repr(error.value)
    assert error.value.hint
    with pytest.raises(TransientError, match="gave no certificates for this user"):
        asking({ACCESS: {"metadata": [metadata]}})[0].access(CLUSTER, USER)


def said(status: int, words: str = "") -> Response:
    body = json.dumps({"messages": [{"message": words}]}).encode()
    return Response(status, {}, body)


@pytest.mark.parametrize(
    ("answer", "kind", "words", "status"),
    [
        (said(401, f"no {TOKEN}"), AuthError, "refused the token (401: no ********)", None),
        (said(403), AuthError, "denied access (403)", None),
        (said(408), TransientError, "answered 408", 408),
        (said(429, "slow down"), TransientError, "answered 429: slow down", 429),
        (said(500), TransientError, "answered 500", 500),
        (said(503), TransientError, "answered 503", 503),
        (said(302), RejectedError, "refused the request (302)", 302),
        (said(404, "no such"), RejectedError, "refused the request (404: no such)", 404),
        (said(499), RejectedError, "refused the request (499)", 499),
        (said(201), RejectedError, "refused the request (201)", 201),
        (Response(200, {}, b"no JSON"), TransientError, "the answer of Event Streams cannot be used", None),
        (Response(200, {}, b"[1]"), TransientError, "the answer of Event Streams cannot be used", None),
        (Response(200, {}, b"[" * 100_000), TransientError, "the answer of Event Streams cannot be used", None),
        (TransientError("it broke", hint="mend it"), TransientError, "cannot be asked: it broke", None),
        (TransientError("it broke"), TransientError, "cannot be asked: it broke", None),
        (BodyTooLargeError("too large"), TransientError, "cannot be asked: too large", None),
    ],
)
def test_every_bad_answer_is_an_error_of_ours_with_its_words_and_what_to_do(
    answer: object, kind: type[PollerError], words: str, status: int | None
) -> None:
    with pytest.raises(PollerError) as error:
        asking({"clusters": answer})[0].find("audit")
    assert type(error.value) is kind
    assert words in error.value.message
    assert error.value.hint
    assert getattr(error.value, "status", None) == status
    assert getattr(error.value, "is_denied", False) == ("403" in words)
    if isinstance(answer, PollerError) and answer.hint:
        assert error.value.hint == answer.hint


def test_a_region_has_its_own_api() -> None:
    assert region_url("de-txl") == "https://kafka.de-txl.ionos.com"
