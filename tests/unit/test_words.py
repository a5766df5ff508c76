"""The words of an answer as one line that is safe to show: cut, masked, and without the sent text, to the character."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable
from urllib.parse import quote, quote_plus

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


def as_json(text: str, *escaped: str) -> str:
    """The text as JSON, with unnecessary escapes for some characters."""
    written = json.dumps(text)
    for char in escaped:
        written = written.replace(char, f"\\u{ord(char):04X}")
    return written


SPELLINGS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "JSON": as_json,
    "JSON of PHP": lambda text: as_json(text).replace("/", r"\/"),
    "JSON of Go": lambda text: as_json(text, "&", "<", ">"),
    "JSON of Gson": lambda text: as_json(text, "=", "'", "&", "<", ">"),
    "JSON of .NET": lambda text: as_json(text, "+", "'", "&", "<", ">"),
    "JSON in JSON": lambda text: as_json(as_json(text).replace("/", r"\/")),
    "a URL": lambda text: quote(text, safe=""),
    "a form": quote_plus,
    "a URL twice": lambda text: quote(quote(text, safe="")),
    "HTML": html.escape,
    "HTML by number": lambda text: "".join(f"&#{ord(char)};" for char in text),
    "HTML by hexadecimal number": lambda text: "".join(f"&#x{ord(char):X};" for char in text),
    "JSON in HTML": lambda text: html.escape(as_json(text, "=")),
}
LOGINS = [
    base64.b64encode(b"poller:???>>>~~~").decode(),
    "aB3/xY9+zz==",
    "100%25 & <more> \"quoted\" 'too'",
    r"C:\users\u0041",
    "p\u00e4ss w\u00f6rd \U0001f511",
]


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("secret", LOGINS)
def test_a_secret_is_masked_however_an_answer_writes_it(secret: str, spell: Callable[[str], str]) -> None:
    for content_type in ("text/plain", "application/json", "text/html"):
        said = f"bad key {spell(secret)} of 7"
        for body in (said.encode(), said.encode("utf-16"), said.encode("utf-8-sig")):
            words = plain(body, "other", secret, content_type=content_type)
            assert words.replace("&quot;", '"').replace('"', "") == f"bad key {MASK} of 7"


def test_a_secret_that_is_not_ascii_is_masked_in_an_answer_that_is_not_unicode() -> None:
    assert plain("bad key p\u00e4ss w\u00f6rd".encode("latin-1"), "p\u00e4ss w\u00f6rd") == f"bad key {MASK}"


def test_an_answer_without_a_secret_is_shown_as_it_was_written() -> None:
    assert plain(rb'{"error":"a\/b + 100%25 &amp; \u003d"}', "canary", "") == r'{"error":"a\/b + 100%25 &amp; \u003d"}'


@pytest.mark.parametrize("said", ["%" + "25" * 32_000, "&" + "amp;" * 16_000, "\\" * 65_000, r"\u005c" * 10_000])
def test_what_is_nested_without_end_costs_no_time(said: str) -> None:
    assert len(plain(said.encode(), "canary")) <= 200


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
def test_what_was_sent_is_known_again_however_it_is_written(spell: Callable[[str], str]) -> None:
    sent = b'{"principal":{"identity":{"username":"jane.doe@example.com"},"sourceIP":"192.0.2.1"},"x":"/a/b?c=d&e=f"}'
    assert "jane" not in plain(b"cannot read " + spell(sent.decode()).encode(), sent=b"[" + sent + b"]")


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
        # Spans of 32 characters are compared. If one was sent, the span before may contain the beginning, so both are cut.
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


def test_an_error_like_one_in_an_entry_that_was_sent_is_no_echo_of_it() -> None:
    """The entry of a failed request contains the answer of an IONOS API. An answer of our sink has the same form."""
    error = b'{"httpStatus":403,"messages":[{"errorCode":"311","message":"%s"}]}'
    sent = b'[{"event":{"param":{"error":' + error % b"Forbidden" + b"}}}]"
    assert plain(error % b"the key is revoked", sent=sent) == "311: the key is revoked"
    assert plain(error % sent[:60].replace(b'"', b'\\"'), sent=sent) == "..."
    assert plain(b'{"messages":["a"],"why":"b"}', sent=sent) == '{"messages":["a"],"why":"b"}'


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


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("entry", ['{"hits":[{"_source": {"user":"jane"}}]}', '[{"user":"jane","@uuid":"1"}]'])
def test_entries_are_known_again_however_an_answer_writes_them(entry: str, spell: Callable[[str], str]) -> None:
    written = spell(entry)
    for body in (written, json.dumps({"error": written}), json.dumps({"messages": [{"message": written}]})):
        for encoding in ("utf-8", "utf-16"):
            assert api_words_of(Response(500, {}, body.encode(encoding)), []) == ""


def test_an_error_body_is_read_to_a_bound() -> None:
    def body(size: int) -> bytes:
        empty = b'{"messages":[],"x":""}'
        return empty.replace(b'""', b'"' + b"x" * (size - len(empty)) + b'"')

    assert error_words_of(Response(500, {}, body(64 * 1024)), []) == ""
    assert error_words_of(Response(500, {}, body(64 * 1024 + 1)), []) is None
