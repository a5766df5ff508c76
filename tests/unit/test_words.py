"""What the other side says, as one line that is safe to show: cut, masked and without what was sent, to the character."""

from __future__ import annotations

import json

import pytest

from poller.net.transport import Response
from poller.net.words import api_words_of, error_words_of, said, words_of

MASK = "********"


def plain(body: bytes, *secrets: str, sent: bytes = b"", content_type: str = "text/plain") -> str:
    return words_of(Response(400, {"Content-Type": content_type}, body), secrets, sent)


def test_of_two_secrets_of_which_one_is_in_the_other_nothing_is_left() -> None:
    assert plain(b"a canary-long, a canary", "canary", "canary-long") == f"a {MASK}, a {MASK}"
    answer = Response(407, {}, b'Basic Q0FOQVJZ of "p\\"w"', secrets=("Q0FOQVJZ", 'p"w'))
    assert words_of(answer, ["other"], b"") == f'Basic {MASK} of "{MASK}"'


def test_what_a_library_says_is_a_line_as_well() -> None:
    assert said(ValueError("no <b> canary\n\ud800")) == "no <b> canary ?"
    assert said("a canary", ["canary"]) == f"a {MASK}"
    assert said(404) == "404"


def test_tags_are_taken_out_of_html_alone() -> None:
    assert plain(b"a<b>c<d", content_type="text/html") == "a c<d"
    assert plain(b"a<b>c<d") == "a<b>c<d"
    assert words_of(Response(400, {}, b"a<b>c"), [], b"") == "a<b>c"


def test_of_a_long_body_only_its_beginning_is_looked_at() -> None:
    assert plain(b" " * 3_999 + b"a" * 10) == "a"
    within = 64 * 1024 - 3
    page = b"<" + b"i" * (within - 2) + b">"
    assert plain(page + b"abcd", content_type="text/html") == "abc"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        # Each span of 32 characters is compared; where it is what was sent, the one before may have begun it.
        ("x" * 32 + "SENT" * 8, "..."),
        ("x" * 64 + "SENT" * 8, "x" * 32 + "..."),
        ("SENT" * 8 + "and more", "..."),
        ("SENT" * 7 + "SEN", "SENT" * 7 + "SEN"),
        ("x" + "SENT" * 8, "x" + "SENT" * 8),
        ("x" + "SENT" * 16, "..."),
        ("\\S\\ENT" * 8, "..."),
        ("short", "short"),
    ],
)
def test_words_end_where_they_repeat_what_was_sent(said: str, shown: str) -> None:
    assert plain(said.encode(), sent=b'{"a\\\\":"' + b"SENT" * 50 + b'"}') == shown


def test_what_was_sent_is_known_again_without_its_backslashes() -> None:
    sent = b'{"path":"' + b"C:\\\\users\\\\jane.doe" * 5 + b'"}'
    for echo in (sent, json.dumps(sent.decode()).encode()):
        assert plain(b"bad: " + echo, sent=sent).endswith("...")


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([{"errorCode": "100", "message": "no"}, {"message": "at all"}], "100: no; at all"),
        ([{"message": "no", "errorCode": 7, "more": "x"}], "7: no"),
        ([{"errorCode": "", "message": None}, {}, "bare", 9, None, ["x"]], "bare; 9; None; ['x']"),
        ([], ""),
        ("text", "t; e; x; t"),
        ([{"message": str(number)} for number in range(21)], "; ".join(map(str, range(20)))),
        ([{"message": "a <b>c</b> \ud800 canary"}], f"a <b>c</b> ? {MASK}"),
    ],
)
def test_the_messages_of_an_error_body_are_its_words(messages: object, words: str) -> None:
    body = json.dumps({"httpStatus": 422, "messages": messages}).encode()
    answer = Response(422, {"Content-Type": "text/html"}, body)
    assert error_words_of(answer, ["canary"]) == words == api_words_of(answer, ["canary"])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no JSON canary",
        b"[1]",
        b'{"message":"x"}',
        b'{"messages":7}',
        b'{"messages":{"a":1}}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_what_is_no_error_body_is_shown_as_it_is(body: bytes) -> None:
    answer = Response(500, {}, body)
    assert error_words_of(answer, ["canary"]) is None
    assert api_words_of(answer, ["canary"]) == words_of(answer, ["canary"], b"")
    assert "canary" not in api_words_of(answer, ["canary"])


@pytest.mark.parametrize("key", [b'"_source":', b'"_source" \n :', b'"@uuid":'])
def test_an_answer_that_shows_entries_has_no_words(key: bytes) -> None:
    assert api_words_of(Response(500, {}, b"{" + key + b' {"user": "jane"}}'), []) == ""
    far = b" " * (64 * 1024 - len(key))
    assert api_words_of(Response(500, {}, b"no" + far[2:] + key), []) == ""
    assert api_words_of(Response(500, {}, b"no" + far + key), []) == "no"
    assert api_words_of(Response(500, {}, key.replace(b":", b"")), []) != ""


def test_an_error_body_is_read_to_a_bound() -> None:
    def body(size: int) -> bytes:
        empty = b'{"messages":[],"x":""}'
        return empty.replace(b'""', b'"' + b"x" * (size - len(empty)) + b'"')

    assert error_words_of(Response(500, {}, body(64 * 1024)), []) == ""
    assert error_words_of(Response(500, {}, body(64 * 1024 + 1)), []) is None
