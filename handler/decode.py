"""Stage one: what a server hands over becomes requests of the task's schema.

A body may be plain text, one JSON object, a JSON list, ``{"inputs": ..., "parameters": {...}}``, or a KServe v1 or v2
body; forms, compression and charsets are ``handler.bodies``' matter, and ``handler.problems`` says what is wrong with
one. TorchServe passes JSON and text already decoded where it could and bytes where it could not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

from pydantic import ValidationError

from handler import quick_json
from handler.bodies import FORM, RAW_FORM, Headers, check_form, decompressed, form_fields, is_json, is_plain, text_of
from handler.config import Limits
from handler.errors import RequestError
from handler.problems import json_problem, schema_error
from handler.schemas import Request

BODY_KEYS = ("body", "data")
ID_LENGTH = 256


@dataclass(slots=True)
class Call:
    """One HTTP or gRPC request: its inputs in order, each valid or an error, and the shape of its answer."""

    items: list[Request | RequestError]
    wrap: Callable[[list[Any]], Any]
    many: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def one(answers: list[Any]) -> Any:
    """A lone input: its answer itself."""
    return answers[0]


def as_list(answers: list[Any]) -> Any:
    """A list is answered by a list."""
    return answers


def as_predictions(answers: list[Any]) -> Any:
    """KServe's v1 protocol."""
    return {"predictions": answers}


def as_outputs(answers: list[Any], id: str | None = None) -> Any:
    """KServe's v2 protocol: one tensor of strings, each an answer in JSON; the request's id goes back with it."""
    data = [quick_json.dumps(answer).decode() for answer in answers]
    tensor = {"name": "predictions", "shape": [len(data)], "datatype": "BYTES", "data": data}
    return {**({} if id is None else {"id": id}), "outputs": [tensor]}


class Decoder:
    """Turns rows of a server's batch into calls.

    ``schema`` is the task's request model.
    """

    def __init__(self, schema: type[Request], limits: Limits, allow_overrides: bool = True) -> None:
        self._schema = schema
        self._limits = limits
        self._fields = schema.model_fields
        self._plain = "text" in self._fields
        texts = {"text", "text_pair", "question", "context", "query", "texts", "candidate_labels", "target"}
        self._texts = texts & set(self._fields)
        self._many = bool(self._texts & {"texts", "candidate_labels"})
        self._allow_overrides = allow_overrides
        self._validate = schema.__pydantic_validator__.validate_python

    def decode(
        self, row: Mapping[str, Any], content_type: str | None = None, headers: Mapping[str, Any] | None = None
    ) -> Call:
        """One row of a batch: ``{"body" or "data": bytes | str | dict | list, query parameter: bytes | str, ...}``.

        ``content_type``: the body's own; ``headers``: the request's, by name, and for each part of a form a mapping
        with its ``content-type``. Raises RequestError where the request as a whole cannot be read; a bad element of a
        list becomes an error in its place.
        """
        if len(row) == 1 and (texts := self._texts_of(row.get("body"), content_type, headers)) is not None:
            lone = len(texts) == 1 and self._plain and not self._many and "text" in texts
            return Call([self._lone(texts)], one) if lone else self._call(texts, {})
        payload, parameters, content_type = self._split(row, content_type, headers)
        options = _controls(parameters)
        call = self._call(self._parse(payload, content_type, headers), parameters)
        call.options = {**options, **call.options}
        return call

    def element(self, value: Any) -> Request:
        """One input without a body around it: a request, its fields, or a text. Raises RequestError."""
        if not isinstance(value, Request):
            return self._checked(value, {})
        if self._characters(value) > self._limits.max_characters:
            self._too_large()
        return value

    @staticmethod
    def _texts_of(body: Any, content_type: str | None, headers: Mapping[str, Any] | None) -> dict[str, str] | None:
        """The body where it is what nearly all are, an object of texts in UTF-8: read without a look for anything else.
        None: it is to be looked at."""
        if type(body) not in (bytes, bytearray) or not is_plain(headers, content_type):
            return None
        return quick_json.object_of_texts(body)

    def _lone(self, fields: dict[str, str]) -> Request:
        """The request of a text and nothing else, which most are: as :meth:`_checked`, without what can be said of
        others alone."""
        try:
            request: Request = self._validate(fields)
        except ValidationError as error:
            raise schema_error(error, self._schema, self._texts) from None
        if _checked_length(fields["text"], "text") > self._limits.max_characters:
            self._too_large()
        return request

    def _split(
        self, row: Mapping[str, Any], content_type: str | None, headers: Mapping[str, Any] | None
    ) -> tuple[Any, dict[str, Any], str | None]:
        """The body, the query parameters and the body's type; without a body the parameters are the input."""
        parameters = {key: value for key, value in row.items() if key not in BODY_KEYS}
        for key in BODY_KEYS:
            if row.get(key) is not None and row[key] != b"":
                return row[key], _read(parameters) if parameters else parameters, content_type
        stated = Headers(headers)
        if len(parameters) == 1 and stated.request_type == "multipart/form-data":
            ((name, value),) = parameters.items()
            if name not in self._fields:  # a file under a name of the client's own
                part = (headers or {}).get(name)
                return value, {}, part.get("content-type") if isinstance(part, Mapping) else None
        check_form(parameters, self._fields, stated)
        if not parameters:
            raise RequestError("empty", "the body is empty")
        return _read(parameters), {}, content_type

    def _parse(self, payload: Any, content_type: str | None, headers: Mapping[str, Any] | None) -> Any:
        if not isinstance(payload, (bytes, bytearray, memoryview, str)):
            return payload
        stated = Headers(headers, content_type)
        if isinstance(payload, str):
            if stated.type == "application/json":
                return payload  # the server has decoded it
            if stated.codings or stated.charset not in (None, "utf-8"):
                payload = payload.encode()  # the server has taken it for UTF-8
        if not isinstance(payload, str):
            payload = text_of(decompressed(bytes(payload), stated, self._limits.max_body_bytes), stated)
        payload = payload.removeprefix("\ufeff")
        if not payload or payload.isspace():
            raise RequestError("empty", "the body is empty")
        if stated.type in (FORM, RAW_FORM) and (fields := form_fields(payload, self._fields)) is not None:
            return fields
        return self._text_or_json(payload, stated.type)

    def _text_or_json(self, payload: str, kind: str) -> Any:
        """A text where it is declared as one, JSON where that is declared; else what it looks like."""
        if self._plain and kind == "text/plain":
            return payload
        if not self._plain or is_json(kind):
            return read_json(payload)
        if payload.lstrip()[:1] not in "{[":
            return payload
        try:
            return read_json(payload)
        except RequestError:
            if _LIKE_JSON.match(payload):
                raise
            return payload  # "[urgent] where is my parcel?"

    def _call(self, payload: Any, parameters: dict[str, Any]) -> Call:
        while isinstance(payload, dict) and len(payload) == 1 and (key := next(iter(payload))) in BODY_KEYS:
            payload = payload[key]
        if isinstance(payload, dict):
            if "instances" in payload:
                return self._list(payload["instances"], parameters, as_predictions, "instances", instance)
            if "inputs" in payload:
                return self._inputs(payload, parameters)
        if isinstance(payload, list):
            return self._list(payload, parameters, as_list)
        return Call([self._checked(payload, parameters)], one)

    def _inputs(self, payload: dict[str, Any], parameters: dict[str, Any]) -> Call:
        inputs, own = payload["inputs"], payload.get("parameters", {})
        if not isinstance(own, dict):
            _refuse("parameters must be an object", "parameters")
        parameters = {**parameters, **own}
        options = _controls(parameters)
        if not isinstance(inputs, list):
            call = Call([self._checked(inputs, parameters)], one)
        elif inputs and all(isinstance(element, dict) and "datatype" in element for element in inputs):
            wrap = partial(as_outputs, id=_identifier(payload.get("id")))
            call = self._list(_tensors(inputs, set(self._fields)), parameters, wrap, "inputs", _element)
        else:
            call = self._list(inputs, parameters, as_list, "inputs")
        call.options = options
        return call

    def _list(
        self,
        elements: Any,
        parameters: dict[str, Any],
        wrap: Callable[[list[Any]], Any],
        name: str | None = None,
        read: Callable[[Any], Any] = lambda element: element,
    ) -> Call:
        if not isinstance(elements, list):
            _refuse(f"{name} must be a list", name)
        if not elements:
            raise RequestError("empty", "the list is empty", name)
        if len(elements) > self._limits.max_inputs:
            raise RequestError("too_many", f"{len(elements)} inputs, at most {self._limits.max_inputs} allowed", name)
        items: list[Request | RequestError] = []
        left = self._limits.max_characters
        for element in elements:
            try:
                request = self._request(read(element), parameters)
                left -= self._characters(request)
            except RequestError as error:
                items.append(error)
                continue
            if left < 0:
                self._too_large()
            items.append(request)
        return Call(items, wrap, many=True)

    def _checked(self, element: Any, parameters: dict[str, Any]) -> Request:
        request = self._request(element, parameters)
        if self._characters(request) > self._limits.max_characters:
            self._too_large()
        return request

    def _request(self, element: Any, parameters: dict[str, Any]) -> Request:
        if isinstance(element, str) and self._plain:
            element = {"text": element}
        if not isinstance(element, dict):
            _refuse(f"an input must be {self._schema.taken}{' or a text' if self._plain else ''}", None)
        merged = {**parameters, **element} if parameters else element
        if not self._allow_overrides:
            self._refuse_options(merged)
        try:
            return self._validate(merged)
        except ValidationError as error:
            raise schema_error(error, self._schema, self._texts) from None

    def _refuse_options(self, element: dict[str, Any]) -> None:
        for key in element:
            if key in self._fields and key not in self._texts and key != "adapter":
                raise RequestError("unsupported", f"{key} is fixed by this server's config", key)

    def _characters(self, request: Request) -> int:
        """Characters of all texts, none of which may be blank."""
        total = 0
        for name in self._texts:
            value = getattr(request, name)
            for text in value if isinstance(value, list) else (value,):
                if isinstance(text, str):
                    total += _checked_length(text, name)
            if self._many and isinstance(value, list) and len(value) > self._limits.max_inputs:
                raise RequestError("too_many", f"{len(value)} {name}, at most {self._limits.max_inputs} allowed", name)
        if self._many and request.read_together is not None:
            one, several = (getattr(request, name) for name in request.read_together)
            total += len(one) * (len(several or [""]) - 1)
        return total

    def _too_large(self) -> NoReturn:
        raise RequestError("too_large", f"more than {self._limits.max_characters} characters in one request")


def _controls(parameters: dict[str, Any]) -> dict[str, Any]:
    """Take out of the parameters what steers the reply rather than the task."""
    return {key: parameters.pop(key) for key in ("format",) if key in parameters}


def _read(parameters: dict[str, Any]) -> dict[str, Any]:
    """Query parameters and a form's fields as texts."""
    return {
        key: text_of(bytes(value), Headers()) if isinstance(value, (bytes, bytearray)) else value
        for key, value in parameters.items()
    }


def read_json(text: str) -> Any:
    """JSON by RFC 8259: no NaN. Raises RequestError with the place, without the client's words."""
    try:
        return quick_json.loads(text)
    except RecursionError:
        raise RequestError("invalid_json", "the JSON is nested too deeply") from None
    except ValueError as error:
        raise RequestError("invalid_json", f"the body is not valid JSON: {json_problem(text, error)}") from None


_LIKE_JSON = re.compile(r"""\s*(\{\s*(["'}]|$)|\[[\s\[]*(["'{]|$)|\[[-\s\d.,eE+\[\]]*$)""")
"""Meant as JSON, though it is none: a bracket before a quote, before another one, before numbers alone, or nothing."""


def _checked_length(text: str, name: str) -> int:
    if not text or text.isspace():
        raise RequestError("empty", f"{name} is empty", name)
    return len(text)


def _refuse(message: str, name: str | None) -> NoReturn:
    raise RequestError("invalid_request", message, name)


def _identifier(value: Any) -> str | None:
    """A v2 request's id, which goes back in its answer."""
    if not isinstance(value, str):
        return None
    if len(value) > ID_LENGTH or not value.isprintable():
        _refuse(f"an id must be at most {ID_LENGTH} printable characters", "id")
    return value


def instance(value: Any) -> Any:
    """One input of KServe's protocols, by its custom often ``{"data": input}``."""
    wrapped = isinstance(value, Mapping) and "data" in value and ("datatype" in value or len(value) == 1)
    return value["data"] if wrapped else value


def _tensors(tensors: Sequence[dict[str, Any]], fields: set[str]) -> list[Any]:
    """The inputs in KServe v2 tensors: columns where they are named after fields, else each element an input."""
    columns = {str(tensor.get("name")): _strings(tensor) for tensor in tensors}
    if not set(columns) <= fields:
        return [value for tensor in tensors for value in _strings(tensor)]
    if len(columns) < len(tensors):
        _refuse("two input tensors have the same name", "inputs")
    if len({len(values) for values in columns.values()}) != 1:
        _refuse("the input tensors differ in length", "inputs")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _strings(tensor: dict[str, Any]) -> list[Any]:
    data = tensor.get("data")
    if tensor["datatype"] != "BYTES" or not isinstance(data, list):
        _refuse("an input tensor must have datatype BYTES and a list of strings as data", "inputs")
    return data


def _element(value: Any) -> Any:
    """A string of a v2 tensor may itself be a JSON object, for tasks that need more than a text."""
    return read_json(value) if isinstance(value, str) and value.lstrip().startswith("{") else value
