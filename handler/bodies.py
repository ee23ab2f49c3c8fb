"""What a client sent becomes text: compression, charsets, forms.

Three things decide: the body's own type, the request's ``Content-Encoding``, and a byte order mark. Nothing is guessed
that would change a text in silence; what cannot be read for certain is refused with a line that says what to send.
"""

from __future__ import annotations

import codecs
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from email.message import Message
from functools import lru_cache
from typing import Any, Final
from urllib.parse import parse_qsl, quote, quote_plus

from handler.errors import RequestError

FORM: Final = "application/x-www-form-urlencoded"
RAW_FORM: Final = "application/vnd.efft.form"
"""What a proxy before TorchServe may call a form, so that the server leaves its bytes alone."""
_NO_JSON: Final = (FORM, RAW_FORM, "text/plain")
_NOT_WHOLE: Final = (
    "the body was sent as a form, which curl -d does by itself, and is no form of this task's fields; "
    "add -H 'Content-Type: application/json' (or text/plain)"
)
_CODINGS: Final = 2
"""Most compressions on top of each other."""
_BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16's, which it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_BOM_STARTS: Final = {mark[:1] for mark, _ in _BOMS}
_ENCODERS: Final = ((quote_plus, ""), (quote, ""), (quote, "/"), (quote_plus, "*"), (quote, "!*'()"), (quote, " "))
"""How Python, curl's --data-urlencode and JavaScript encode a form: what a space becomes, and what is left as it is."""
_CHARSETS: Final = re.compile(
    r"utf-8(-sig)?|utf-16(-[lb]e)?|utf-32(-[lb]e)?|ascii|iso8859-\d+|cp\d+|koi8-[rtu]|mac-\w+|tis-620|hz|johab"
    r"|gb2312|gbk|gb18030|big5(hkscs)?|euc_\w+|shift_jis\w*|iso2022_\w+"
)
"""Python's names of charsets; its other codecs (zlib, rot13, idna ...) are no charsets."""


class Headers:
    """A request's headers, by names of any case, and the media type they state.

    ``type``: the body's own type where the server states one (of a part of a form, say).
    """

    def __init__(self, headers: Mapping[str, Any] | None = None, type: str | None = None) -> None:
        given = headers.items() if headers else ()
        self._values = {name.lower(): value for name, value in given if isinstance(value, str)}
        whole = self._values.get("content-type", "")
        # The server cuts a body's own type before the charset; the request's has it.
        stated = whole if type is None or media_type(whole) == media_type(type) else type
        self.request_type = media_type(whole)
        self.type = media_type(stated)
        self._stated = stated

    def get(self, name: str) -> str:
        """A header's value, empty where there is none."""
        return self._values.get(name, "").strip()

    @property
    def charset(self) -> str | None:
        """The charset that the type declares, as Python calls it. Raises RequestError where nobody knows it."""
        if "charset" not in self._stated.lower():
            return None
        message = Message()
        message["content-type"] = self._stated
        declared = message.get_param("charset")
        if not isinstance(declared, str) or not declared.strip():
            return None
        try:
            name = codecs.lookup(declared.strip("'\" ")).name
        except (LookupError, ValueError):
            name = ""
        if not _CHARSETS.fullmatch(name):
            raise RequestError("unsupported_media", "the charset in the content type is unknown; send UTF-8")
        return name

    @property
    def plain(self) -> bool:
        """Whether nothing is said of compression, a charset or a form, nor that the body is no JSON."""
        if self.type in _NO_JSON or self._values.get("content-encoding"):
            return False
        return "charset" not in self._stated.lower()

    @property
    def codings(self) -> list[str]:
        """What the body was compressed with, in the order it was applied."""
        if not (stated := self.get("content-encoding")):
            return []
        names = (name.strip().lower() for name in stated.split(","))
        return [name for name in names if name and name != "identity"]


def is_plain(headers: Mapping[str, Any] | None, type: str | None) -> bool:
    """As ``Headers(headers, type).plain``. Clients state the same again and again, so little of it is looked at."""
    whole, coding = "", ""
    if headers:
        content_type, encoding = _places(tuple(headers))
        whole = "" if content_type is None else headers[content_type]
        coding = "" if encoding is None else headers[encoding]
        if not (isinstance(whole, str) and isinstance(coding, str)):  # a part of a form: there may be others
            return Headers(headers, type).plain
    return _plain(whole, coding, type)


@lru_cache(256)
def _places(names: tuple[str, ...]) -> tuple[str | None, str | None]:
    """Of a request's header names those under which its content type and its coding stand."""
    known = {name.lower(): name for name in names}
    return known.get("content-type"), known.get("content-encoding")


@lru_cache(256)
def _plain(whole: str, coding: str, type: str | None) -> bool:
    return Headers({"content-type": whole, "content-encoding": coding}, type).plain


@lru_cache(256)
def media_type(value: str) -> str:
    """A content type without its parameters, in lower case."""
    return value.partition(";")[0].strip().lower()


def is_json(type: str) -> bool:
    """Whether a media type is JSON: its own, or one built on it (RFC 6839)."""
    return type in ("application/json", "text/json") or (type.startswith("application/") and type.endswith("+json"))


def decompressed(raw: bytes, headers: Headers, limit: int) -> bytes:
    """The body as it was before compression (gzip and deflate), at most ``limit`` bytes.

    Raises RequestError: unsupported_media for other codings, too_large beyond the limit, invalid_encoding for data
    that is damaged, cut off, or not compressed at all.
    """
    codings = headers.codings
    if len(codings) > _CODINGS:
        raise RequestError("unsupported_media", f"the body is compressed more than {_CODINGS} times; send it plain")
    for coding in reversed(codings):
        if coding in ("gzip", "x-gzip"):
            raw = _inflated(raw, 16 + zlib.MAX_WBITS, limit)
        elif coding == "deflate":
            # By RFC 9110 with zlib's header; some clients leave that out.
            wrapped = len(raw) > 1 and raw[0] & 15 == 8 and (raw[0] << 8 | raw[1]) % 31 == 0
            raw = _inflated(raw, zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS, limit)
        else:
            raise RequestError("unsupported_media", "this content encoding is not read; send gzip, deflate or none")
    return raw


def _inflated(raw: bytes, window: int, limit: int) -> bytes:
    """Of one or more compressed members behind each other, as gzip allows; never more than the limit in memory."""
    parts: list[bytes] = []
    size = 0
    while raw or not parts:
        stream = zlib.decompressobj(window)
        try:
            parts.append(stream.decompress(raw, limit - size + 1))
        except zlib.error:
            raise RequestError("invalid_encoding", "the body is not in the compression its header states") from None
        size += len(parts[-1])
        if size > limit:
            raise RequestError("too_large", f"the body is more than {limit} bytes once decompressed")
        if not stream.eof:
            raise RequestError("invalid_encoding", "the compressed body is cut off")
        raw = stream.unused_data.lstrip(b"\0")  # gzip files may be padded with zeros
    return b"".join(parts)


def text_of(raw: bytes, headers: Headers) -> str:
    """The characters: by a byte order mark, else the declared charset, else UTF-8 (JSON: any UTF, RFC 8259's annexes).

    Raises RequestError (invalid_encoding) with the place of the first byte that does not fit.
    """
    charset = headers.charset
    if raw[:1] in _BOM_STARTS and (charset is None or charset.startswith("utf")):
        for mark, name in _BOMS:
            if raw.startswith(mark) and (len(raw) > len(mark) or name == "utf-8"):
                return _decoded(raw[len(mark) :], name)
    if charset is None:
        charset = json.detect_encoding(raw) if raw[:4].count(0) and headers.type != "text/plain" else "utf-8"
    elif charset in ("utf-16", "utf-32"):
        charset += "-be" if _is_big_endian(raw) else "-le"
    return _decoded(raw, charset)


def _is_big_endian(raw: bytes) -> bool:
    """Of UTF-16 or UTF-32 without a mark: which byte of an ASCII character (any JSON has some) is zero.

    Where no byte is, big-endian, as RFC 2781 says.
    """
    return raw[::2].count(0) >= raw[1::2].count(0)


def _decoded(raw: bytes, charset: str) -> str:
    try:
        return raw.decode(charset)
    except UnicodeDecodeError as error:
        if raw[:2] == b"\x1f\x8b":
            remedy = "; it looks like gzip, which the header Content-Encoding must say"
        else:
            remedy = "" if charset != "utf-8" else "; send UTF-8 or name the charset in the content type"
        name = charset.upper()
        raise RequestError("invalid_encoding", f"the body is not {name} (byte {error.start}){remedy}") from None


def check_form(parameters: Mapping[str, Any], fields: Mapping[str, Any], headers: Headers) -> None:
    """A form's fields as the server has read them; it drops what does not look like one, without a word.

    Raises RequestError (unsupported_media) where fields are no input's, or do not account for the whole body: a client
    that sends JSON or text under this type, as ``curl -d`` does unless told otherwise.
    """
    length = headers.get("content-length")
    if headers.request_type != FORM or length == "0":
        return
    known = bool(parameters) and all(name in fields for name in parameters)
    if not known or (length.isdigit() and not _accounts_for(parameters, int(length))):
        raise RequestError("unsupported_media", _NOT_WHOLE)


def form_fields(text: str, fields: Mapping[str, Any]) -> dict[str, str] | None:
    """The fields of a form whose bytes are at hand; None where it is none, but JSON or text sent under its type.

    Raises RequestError (unsupported_media) for what begins as a form of these fields and does not go on as one.
    """
    name, equals, _ = text.partition("=")
    if not equals or name not in fields:
        return None
    try:
        pairs = parse_qsl(text.rstrip("\r\n"), keep_blank_values=True, strict_parsing=True, max_num_fields=len(fields))
    except ValueError:
        pairs = []
    found = dict(pairs)
    if not found or len(found) < len(pairs) or not found.keys() <= fields.keys():
        raise RequestError("unsupported_media", _NOT_WHOLE)
    return found


def _accounts_for(parameters: Mapping[str, Any], length: int) -> bool:
    """Whether one of the usual encoders makes so many bytes of the fields; an end of line may stand behind them."""
    return any(length - 2 <= size <= length for size in _encoded_sizes(parameters))


def _encoded_sizes(parameters: Mapping[str, Any]) -> Iterator[int]:
    """Raw, as curl's -d leaves it; Python's and a browser's encoders, which differ in what they escape."""
    texts = [text for item in parameters.items() for text in map(_as_bytes, item)]
    joints = len(texts) - 1
    yield sum(map(len, texts)) + joints
    for encode, safe in _ENCODERS:
        yield sum(len(encode(text, safe)) for text in texts) + joints
    yield sum(len(quote_plus(text, "*").replace("~", "%7E")) for text in texts) + joints


def _as_bytes(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)
