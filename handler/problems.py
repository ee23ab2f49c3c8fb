"""What is said of a body that is no JSON or has not the task's fields: one line, without the client's words.

A misspelt field's name is the exception: it is repeated where there is a field that it was probably meant to be.
"""

from __future__ import annotations

import difflib
import json
import re

from pydantic import ValidationError

from handler.config import first_problem
from handler.errors import RequestError
from handler.schemas import Request

MESSAGE_LENGTH = 300
ELSEWHERE = {
    "content": "text", "document": "text", "input": "text", "sentence": "text", "documents": "texts",
    "passages": "texts", "sentences": "texts", "labels": "candidate_labels",
}  # fmt: skip
"""What other interfaces call a field."""


def json_problem(text: str, error: ValueError) -> str:
    """What is wrong with JSON and where, without the client's words."""
    if not isinstance(error, json.JSONDecodeError):
        return "a number is out of range"
    where = f" at line {error.lineno}, column {error.colno}"
    if text[error.pos : error.pos + 1] == "'":
        return f"names and texts stand in double quotes, not in single ones,{where}"
    if error.msg == "Extra data":
        return f"more follows the first value{where}; send several inputs as a list"
    return f"{error.msg}{where}"


def schema_error(error: ValidationError, schema: type[Request], texts: set[str]) -> RequestError:
    """The error of an input that is none of the schema's. ``texts``: the fields that hold texts."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    problem, fields = problems[0], list(schema.model_fields)
    # Below the field's own name only places in a list: pydantic also names the branch of a union.
    places = [str(part) for i, part in enumerate(problem["loc"]) if i == 0 or isinstance(part, int)]
    field_name = ".".join(places)[:80] or None
    if problem["type"] in ("string_too_short", "too_short"):
        return RequestError("empty", f"{field_name} is empty", field_name)
    if problem["type"] == "string_unicode":
        return RequestError("invalid_encoding", f"{field_name} holds half of a surrogate pair", field_name)
    send = f"send {schema.taken} or a list of these"
    unknown = [_Unknown(other["loc"][0], fields, texts) for other in problems if other["type"] == "extra_forbidden"]
    if problem["type"] == "extra_forbidden":
        known = send if unknown[0].near in texts else f"known are {', '.join(fields)}"
        parts = [unknown[0].says, *([] if unknown[0].near in set(fields) - texts else [known])]
        return RequestError("invalid_request", "; ".join(parts), None)
    parts = [first_problem(error)[:MESSAGE_LENGTH]]
    if problem["type"] == "missing":
        parts += [one.says for one in unknown[:1]]
    if field_name is None or places[0] in texts:
        parts.append(send)
    return RequestError("invalid_request", "; ".join(parts), field_name)


class _Unknown:
    """A key that is no field, and the field it was probably meant to be: a text's rather than an option's.

    It is named only where there is one. Any other key may be the client's own words, which no message repeats.
    """

    def __init__(self, key: object, fields: list[str], texts: set[str]) -> None:
        word = str(key)[:32].lower().replace("-", "_")
        near = [name for name in (ELSEWHERE.get(word),) if name in fields]
        near += difflib.get_close_matches(word, [*sorted(texts), *fields], n=1)
        self.near = near[0] if near and re.fullmatch("[a-z0-9_]+", word) else None
        self.says = f"{word} is no field of this task (did you mean {self.near}?)" if self.near else _UNKNOWN


_UNKNOWN = "a field is unknown to this task"
