"""A client for the server: tokens, retries, lists.

>>> client = Client("http://127.0.0.1:8080", key_file="key_file.json")      # doctest: +SKIP
>>> client.predict("ticket_routing", "My parcel has not arrived.")["label"]  # doctest: +SKIP
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import requests

RETRIED = (429, 503)
"""The server is busy: the same request may succeed later."""
TOKEN_REFUSED = "InvalidKeyException"
"""The type of TorchServe's error (status 400) for a token that is wrong or has expired."""


class ServerError(Exception):
    """An answer that is no answer; ``status`` is the HTTP code, ``type`` and ``field`` as the server's error body."""

    def __init__(self, status: int, type: str, message: str, field: str | None = None) -> None:
        super().__init__(f"{status} {type}: {message}")
        self.status = status
        self.type = type
        self.field = field


class Client:
    """Talks to one server over one pool of connections.

    ``token``: the inference key; or ``key_file``, the file TorchServe writes it to. ``timeout``: seconds for one
    attempt. A busy server is asked again up to ``retries`` times, after waits that double from ``wait`` seconds.

    When the server refuses the token, ``key_file`` is read again, once for each request: a restarted server has
    written new ones. Where the file has no other, ``management_url`` is asked to renew it, if given; that replaces the
    inference key of every client.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        *,
        token: str | None = None,
        key_file: Path | str | None = None,
        management_url: str | None = None,
        timeout: float = 30.0,
        retries: int = 4,
        wait: float = 0.2,
    ) -> None:
        self._key_file = Path(key_file) if token is None and key_file is not None else None
        if self._key_file is not None:
            token = _key(self._key_file, "inference")
        self._management_url = management_url
        self._url = url.rstrip("/")
        self._timeout = timeout
        self._retries = retries
        self._wait = wait
        self._session = requests.Session()
        self._token = token

    def predict(self, model: str, payload: Any, **options: Any) -> Any:
        """Answer a text, an object, or a list of either; ``options`` apply to every input (``top_k=3``).

        Raises ServerError, also where the server stays busy, and requests' own exceptions where it is not reached.
        An error of one element of a list stands in its place in the answer.
        """
        body = {"inputs": payload, "parameters": options} if options else payload
        return self._post(f"predictions/{model}", body).json()

    def predict_many(self, model: str, payloads: Sequence[Any], size: int = 64, **options: Any) -> Iterator[Any]:
        """Answers in the order of ``payloads``, asked for in lists of ``size``."""
        for start in range(0, len(payloads), size):
            yield from self.predict(model, list(payloads[start : start + size]), **options)

    def explain(self, model: str, payload: Any) -> Any:
        """What speaks for and against the answer, token by token."""
        return self._post(f"explanations/{model}", payload).json()

    def explain_as_page(self, model: str, payload: Any) -> str:
        """The same as an HTML page."""
        return self._post(f"explanations/{model}", payload, accept="text/html").text

    def close(self) -> None:
        """Give the connections back."""
        self._session.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _post(self, path: str, body: Any, accept: str = "application/json") -> requests.Response:
        reply = self._patiently(path, body, accept)
        if _token_refused(reply) and self._renew_token():
            reply = self._patiently(path, body, accept)
        if not reply.ok:
            raise _server_error(reply)
        return reply

    def _patiently(self, path: str, body: Any, accept: str) -> requests.Response:
        for attempt in range(self._retries + 1):
            headers = {"Accept": accept, **_authorization(self._token)}
            reply = self._session.post(f"{self._url}/{path}", json=body, headers=headers, timeout=self._timeout)
            if reply.status_code not in RETRIED or attempt == self._retries:
                break
            time.sleep(self._wait * 2**attempt * random.uniform(0.5, 1.0))
        return reply

    def _renew_token(self) -> bool:
        """Whether there is another token now than the one the server has refused."""
        if self._key_file is None:
            return False
        refused = self._token
        try:
            self._token = _key(self._key_file, "inference")
            if self._token == refused and self._management_url is not None:
                url = f"{self._management_url.rstrip('/')}/token?type=inference"
                self._session.get(url, headers=_authorization(_key(self._key_file, "API")), timeout=self._timeout)
                self._token = _key(self._key_file, "inference")
        except (OSError, ValueError):  # no file, or one just being written: the server's refusal says it better
            return False
        return self._token != refused


def _key(path: Path, scope: str) -> str:
    """A key of TorchServe's key file; ``scope``: inference, management or API. Raises ValueError in one line."""
    try:
        key = json.loads(path.read_text())[scope]["key"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path.name} is no key file of TorchServe: it has no {scope} key") from None
    return str(key)


def _authorization(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def _token_refused(reply: requests.Response) -> bool:
    return reply.status_code == HTTPStatus.BAD_REQUEST and _server_error(reply).type == TOKEN_REFUSED


def _server_error(reply: requests.Response) -> ServerError:
    """The handler's error body; TorchServe's own, ``{"code", "type", "message"}``; or a proxy's, of whatever form."""
    try:
        body = reply.json()
    except ValueError:
        body = {}
    error = body.get("error", body) if isinstance(body, dict) else {}
    if not isinstance(error, dict):
        error = {"message": error} if isinstance(error, str) else {}
    message = error.get("message") or reply.reason
    return ServerError(reply.status_code, error.get("type") or "unknown", message, error.get("field"))
