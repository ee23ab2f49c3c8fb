"""Bodies as clients send them: compressed, in other charsets, as forms, as text that looks like JSON."""

from __future__ import annotations

import gzip
import json
import zlib
from functools import partial
from typing import Any
from urllib.parse import quote, quote_plus, urlencode

import pytest

from handler import quick_json
from handler.predictor import Predictor
from tests.unit.handler_fakes import PooledLogits, predictor

TEXT = "the cat sat on a mat"
_gzip = partial(gzip.compress, mtime=0)
"""The same bytes in every process, so that test ids are the same."""
GOOD = json.dumps({"text": TEXT}).encode()
FORM = "application/x-www-form-urlencoded"
LIMIT = 20_000


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    config = {"limits": {"max_body_bytes": LIMIT}}
    return predictor(tmp_path_factory.mktemp("small"), PooledLogits(3), "sequence_classification", config)


def ask(own: Predictor, body: Any, type: str = "", **headers: str) -> tuple[int, Any]:
    """As TorchServe hands it over: the body's own type without parameters, the request's headers as they were sent."""
    stated = {"Content-Type": type, **{name.replace("_", "-"): value for name, value in headers.items()}}
    row = body if isinstance(body, dict) else {"body": body}
    (reply,) = own.predict([row], [type.partition(";")[0] or None], headers=[stated])
    return reply.status, reply.payload


def refused(own: Predictor, body: Any, type: str = "", **headers: str) -> tuple[int, str]:
    status, payload = ask(own, body, type, **headers)
    assert set(payload["error"]) == {"type", "message", "field"}, payload
    assert "\n" not in payload["error"]["message"]
    return status, payload["error"]["message"]


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        (_gzip(GOOD), "gzip"),
        (_gzip(GOOD), "X-GZIP"),
        (_gzip(GOOD[:9]) + _gzip(GOOD[9:]) + b"\0\0", "gzip"),
        (zlib.compress(GOOD), "deflate"),
        (raw_deflate(GOOD), "deflate"),
        (_gzip(zlib.compress(GOOD)), "deflate, gzip"),
        (GOOD, "identity"),
    ],
)
@pytest.mark.parametrize("header", ["Content-Encoding", "content-encoding"])
def test_compressed_bodies(small: Predictor, body: bytes, coding: str, header: str) -> None:
    assert ask(small, body, "application/json", **{header: coding}) == (200, small(TEXT))


@pytest.mark.parametrize(
    ("body", "coding", "status"),
    [
        (_gzip(b"a" * (LIMIT + 1)), "gzip", 413),
        (_gzip(b"a" * LIMIT) * 2, "gzip", 413),
        (_gzip(_gzip(b"\0" * 10_000_000)), "gzip, gzip", 413),
        (_gzip(GOOD)[:-4], "gzip", 400),
        (GOOD, "gzip", 400),
        (b"\xff" + GOOD, "deflate", 400),
        (GOOD, "br", 415),
        (GOOD, "gzip, gzip, gzip", 415),
    ],
)
def test_what_cannot_be_decompressed_is_refused(small: Predictor, body: bytes, coding: str, status: int) -> None:
    assert refused(small, body, "application/json", Content_Encoding=coding)[0] == status


def test_a_compressed_body_without_the_header_is_named(small: Predictor) -> None:
    status, message = refused(small, _gzip(GOOD), "application/json")
    assert status == 400
    assert "Content-Encoding" in message


@pytest.mark.parametrize(
    ("charset", "codec"),
    [
        ("utf-8", "utf-8"), ("UTF8", "utf-8-sig"), ("utf-16", "utf-16"), ("utf-16", "utf-16-le"),
        ("utf-16", "utf-16-be"),
        ("utf-16le", "utf-16-le"), ("utf-32", "utf-32"), ("utf-32", "utf-32-be"), ("iso-8859-1", "latin-1"),
        ("latin1", "latin-1"), ("windows-1252", "cp1252"), ('"iso-8859-15"', "iso-8859-15"), (None, "utf-8-sig"),
        (None, "utf-16"), (None, "utf-32"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/ld+json"])
def test_charsets(small: Predictor, charset: str | None, codec: str, kind: str) -> None:
    text = "the cat über Zoë"
    content = text if kind == "text/plain" else json.dumps({"text": text}, ensure_ascii=False)
    stated = kind if charset is None else f"{kind}; charset={charset}"
    expected = small({"text": text})
    assert ask(small, content.encode(codec), stated) == (200, expected)


def test_json_in_utf_16_needs_no_charset(small: Predictor) -> None:
    assert ask(small, GOOD.decode().encode("utf-16-le"), "application/json") == (200, small(TEXT))


def test_a_charset_counts_where_the_server_has_decoded_the_text_as_utf_8(small: Predictor) -> None:
    sent = TEXT.encode("utf-16-le")
    assert ask(small, sent.decode(), "text/plain; charset=utf-16le") == (200, small(TEXT))


@pytest.mark.parametrize("charset", ["klingon", "zlib", "rot13", "idna", "unicode_escape", "\0", "x" * 999])
def test_unknown_charsets_are_refused(small: Predictor, charset: str) -> None:
    status, message = refused(small, GOOD, f"text/plain; charset={charset}")
    assert status == 415
    assert "UTF-8" in message


def test_a_byte_that_does_not_fit_is_placed(small: Predictor) -> None:
    assert refused(small, b"ab\xff", "text/plain")[1].startswith("the body is not UTF-8 (byte 2)")
    assert refused(small, b"abc", "text/plain; charset=utf-16")[0] == 400
    assert refused(small, "ü".encode(), "text/plain; charset=us-ascii")[0] == 400


@pytest.mark.parametrize(
    "text", ["[urgent] where is it", "[1] where is it", "[] not done", "{cat} sat", "[null] and", "{"]
)
def test_what_begins_like_json_and_is_text(small: Predictor, text: str) -> None:
    assert ask(small, text.encode(), "text/plain") == (200, small({"text": text}))
    if text != "{":
        assert ask(small, text.encode()) == (200, small({"text": text}))


@pytest.mark.parametrize(
    "text", ["{", "[", '{"text": "a"', '["a", "b"', "[1, 2", '{"text": "a"}{"text": "b"}', "[[", "{}}"]
)
def test_what_is_meant_as_json_and_is_none(small: Predictor, text: str) -> None:
    for kind in ("", "application/octet-stream", "application/json"):
        status, message = refused(small, text.encode(), kind)
        assert status == 400
        assert "not valid JSON" in message


@pytest.mark.parametrize("kind", ["", "application/json", "application/octet-stream"])
def test_single_quotes_are_named_and_not_evaluated(small: Predictor, reader: Predictor, kind: str) -> None:
    body = b"{'question' : 'who is it?', 'context' : 'the cat'}"
    for own in (small, reader):
        status, message = refused(own, body, kind)
        assert status == 400
        assert "double quotes" in message
    assert "double quotes" in refused(reader, body, "text/plain")[1]


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        (text, encode(text))
        for text in ("the cat", "a+b & c=d", "50 % über ~*(')", "the cat's \n mat", "中文")
        for encode in (quote_plus, quote, lambda text: quote(text, safe=""), lambda text: quote_plus(text, safe="*"))
    ]
    + [("the cat sat, it did", "the cat sat, it did"), ("a; b", "a; b"), ("the cat", "the cat\r\n")],
)
def test_a_form_of_the_tasks_fields(small: Predictor, text: str, sent: str) -> None:
    """TorchServe hands over a form's fields decoded; whether they were all there only the length tells."""
    length = str(len(f"text={sent}".encode()))
    assert ask(small, {"text": bytearray(text.encode())}, FORM, Content_Length=length) == (200, small({"text": text}))


def test_a_form_of_several_fields(reader: Predictor) -> None:
    fields = {"question": b"who is it", "context": b"the cat sat", "n_best": b"2"}
    sent = urlencode({name: value.decode() for name, value in fields.items()})
    status, payload = ask(reader, fields, FORM, Content_Length=str(len(sent)))
    assert status == 200
    assert len(payload["answers"]) == 2


@pytest.mark.parametrize(
    ("row", "sent"),
    [
        ({}, '{"text": "the cat"}'),  # curl -d: the server finds no field in it
        ({'{"text": "cats ': b"", " dogs ": b' fun"}'}, '{"text": "cats & dogs = fun"}'),
        ({"text": b"cats "}, "text=cats & dogs"),
        ({"text": b"two"}, "text=one&text=two"),
        ({"text": b"first line"}, "text=first line\nand a second"),
        ({"a": b"b ", " c": b""}, "a=b & c"),
    ],
)
def test_a_form_that_was_not_read_whole_is_refused(small: Predictor, row: dict, sent: str) -> None:
    status, message = refused(small, row, FORM, content_length=str(len(sent)))
    assert status == 415
    assert "Content-Type: application/json" in message


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "application/vnd.efft.form"])
def test_a_form_whose_bytes_are_at_hand(small: Predictor, kind: str) -> None:
    """From other servers, or from TorchServe behind a proxy that gives forms another name: nothing is lost."""
    assert ask(small, GOOD, kind) == (200, small(TEXT))
    text = "cats & dogs = 100% fun + more"
    assert ask(small, json.dumps({"text": text}, indent=1).encode(), kind) == (200, small(text))
    assert ask(small, text.encode(), kind) == (200, small(text))
    assert ask(small, urlencode({"text": text, "top_k": 2}).encode(), kind) == (200, small({"text": text, "top_k": 2}))
    for sent in (b"text=cats & dogs", b"text=a&text=b", b"text=a&b=c"):
        assert refused(small, sent, kind)[0] == 415


def test_a_file_of_a_form_under_a_name_of_its_own(small: Predictor, reader: Predictor) -> None:
    type = "multipart/form-data; boundary=x"

    def post(own: Predictor, name: str, value: Any, part: str) -> tuple[int, Any]:
        headers = {"Content-Type": type, name: {"content-type": part}}
        (reply,) = own.predict([{name: value}], [None], headers=[headers])
        return reply.status, reply.payload

    assert post(small, "file", TEXT, "text/plain") == (200, small(TEXT))
    assert post(small, "upload", bytearray(GOOD), "application/octet-stream") == (200, small(TEXT))
    assert post(small, "text", bytearray(b"the cat"), "") == (200, small("the cat"))
    question = json.dumps({"question": "who", "context": "the cat"}).encode()
    assert post(reader, "file", bytearray(question), "application/json")[0] == 200


def test_explanations_read_the_same_bodies(small: Predictor) -> None:
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    reply = small.explain({"body": _gzip(GOOD)}, "application/json", headers=headers)
    assert reply.payload["error"]["type"] == "unsupported"  # read, and then there are no explanations here


SHORTCUT_BODIES = [
    GOOD, b"{}", b"", b" " + GOOD, b"\xef\xbb\xbf" + GOOD, GOOD[:-1], GOOD + b" x", GOOD.decode().encode("utf-16"),
    b'{"text": "caf\xe9"}', b'{"text": "\\ud800"}', b'{"text": ""}', b'{"text": " "}', b'{"text": "a", "text": "b"}',
    b'{"text": "a", "format": "raw"}', b'{"text": "a", "top_k": 1}', b'{"text": "a", "top_k": "2"}',
    b'{"data": "a cat"}', b'{"body": "a cat"}',
    b'{"inputs": "a cat"}', b'{"instances": "a cat"}', b'{"nobody": "knows"}', b'{"text": null}',
    b'{"text": "a", "truncation": "error"}', b'{"text": "[MASK] {[ 12345678901234567890"}', b"[" * 2000,
    b'{"text": ' * 500, b"{'text': 'a'}", b"{urgent} where is it?", b'{"text": "a\tb"}', b'{"text": "tab\there"}',
]  # fmt: skip


@pytest.mark.parametrize("overrides", [True, False])
@pytest.mark.parametrize(
    "type", ["", "application/json", "text/plain", FORM, "application/json; charset=latin-1", "application/x-other"]
)
def test_the_shortcut_of_plain_bodies_reads_what_the_long_way_reads(
    small: Predictor, monkeypatch: pytest.MonkeyPatch, type: str, overrides: bool
) -> None:
    monkeypatch.setattr(small._decoder, "_allow_overrides", overrides)
    quick = [ask(small, body, type) for body in SHORTCUT_BODIES]
    bare = [ask(small, bytearray(body), type, Content_Encoding="identity") for body in SHORTCUT_BODIES]
    monkeypatch.setattr(quick_json, "object_of_texts", lambda raw: None)
    assert quick == [ask(small, body, type) for body in SHORTCUT_BODIES]
    assert bare == quick


def test_the_shortcut_is_for_objects_of_texts() -> None:
    assert quick_json.object_of_texts(GOOD) == {"text": TEXT}
    for other in (
        b"",
        b"[]",
        b'"a"',
        b' {"a": "b"}',
        b'{"a": 1}',
        b'{"a": ["b"]}',
        b'{"a": null}',
        b'{"a"',
        b"{" * 2000,
    ):
        assert quick_json.object_of_texts(other) is None
