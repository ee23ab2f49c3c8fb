"""A client for the server: tokens, retries, lists.

>>> client = Client("http://127.0.0.1:8080", key_file="key_file.json")      # doctest: +SKIP
>>> client.predict("ticket_routing", "My parcel has not arrived.")["label"]  # doctest: +SKIP
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

import requests
from urllib3.exceptions import MaxRetryError, NewConnectionError

RETRIED = (429, 502, 503, 504)
"""The server is busy or starts again, or a proxy has no answer of it: the same request may succeed later."""
WORKER_LOST = "Worker died."
"""What TorchServe says, with status 500 or (the worker was killed) 507, to requests that a dying worker dropped."""
LONGEST_WAIT = 10.0
"""Seconds between two attempts, unless the server asks for more."""
CONNECT_TIMEOUT = 10.0
"""Seconds until a connection stands."""
TOKEN_REFUSED = "InvalidKeyException"
"""The type of TorchServe's error (status 400) for a token that is wrong or has expired."""


class ServerError(Exception):
    """An answer that is no answer; ``status`` is the HTTP code, ``type``, ``message``, ``field`` the error body's."""

    def __init__(self, status: int, type: str, message: str, field: str | None = None) -> None:
        super().__init__(f"{status} {type}: {message}")
        self.status = status
        self.type = type
        self.message = message
        self.field = field


class ServerUnreachable(requests.ConnectionError):
    """No connection could be made; the message names the address."""


class KeyFileMissing(FileNotFoundError, ValueError):
    """There is no key file; the message names it."""


class Client:
    """Talks to one server over one pool of connections.

    ``token``: the inference key; or ``key_file``, the file TorchServe writes it to. ``timeout``: seconds that one
    attempt waits for the server's next bytes; longer than TorchServe's own response timeout (120 s), so that a worker
    that hangs is noticed there first, whose word comes sooner than a second request could be answered. ``verify``:
    whether, or against which file of authorities, a server's certificate is checked.

    A request without an answer (the connection was refused, reset or silent; its worker died; the server or a proxy
    was too busy) is sent again, up to ``retries`` times and for at most ``deadline`` seconds in all, after waits that
    double from ``wait`` seconds, shortened at random so that clients do not come back together, and last at least as
    long as the server's Retry-After. Predictions change nothing on the server, so one may run twice; a request that was
    answered, even by an error of its own, is not sent again.

    Until the first connection, where none can be made there is probably no server: that is tried again for ``startup``
    seconds only (give more for one that is just being started). Afterwards it is a server that starts again.

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
        timeout: float = 150.0,
        retries: int = 8,
        wait: float = 0.2,
        deadline: float = 300.0,
        startup: float = 2.0,
        verify: bool | str = True,
    ) -> None:
        """Raises KeyFileMissing, and ValueError for a key file without the key."""
        self._key_file = Path(key_file) if token is None and key_file is not None else None
        if self._key_file is not None:
            token = _key(self._key_file, "inference")
        self._management_url = management_url
        self._url = url.rstrip("/")
        self._timeout = timeout
        self._retries = retries
        self._wait = wait
        self._deadline = deadline
        self._startup = startup
        self._reached = False
        self._session = requests.Session()
        self._verify = verify
        self._token = token

    def predict(self, model: str, payload: Any, **options: Any) -> Any:
        """Answer a text, an object, or a list of either; ``options`` apply to every input (``top_k=3``).

        Raises ServerError, also where the server stays busy; ServerUnreachable where no connection can be made, and
        requests' other exceptions where connections stay without an answer.
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
        end = time.monotonic() + self._deadline
        reply = self._patiently(path, body, accept, end)
        if _token_refused(reply) and self._renew_token():
            reply = self._patiently(path, body, accept, end)
        if not reply.ok:
            raise _server_error(reply)
        return reply

    def _patiently(self, path: str, body: Any, accept: str, end: float) -> requests.Response:
        """The first answer, or what stood in its place when patience ended (``end``: on the monotonic clock)."""
        absent = min(end, time.monotonic() + self._startup)
        for attempt in range(self._retries + 1):
            outcome = self._attempt(path, body, accept, end - time.monotonic())
            self._reached = self._reached or not _unconnected(outcome)
            if isinstance(outcome, requests.Response) and not _dropped(outcome):
                return outcome
            pause = min(LONGEST_WAIT, self._wait * 2**attempt) * random.uniform(0.5, 1.0)
            if isinstance(outcome, requests.Response):
                pause = max(pause, _retry_after(outcome))
            last = end if self._reached or not _unconnected(outcome) else absent
            if attempt == self._retries or time.monotonic() + pause >= last:
                break
            time.sleep(pause)
        if _unconnected(outcome):
            raise ServerUnreachable(f"no server answers at {self._url}; start one with make serve") from None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _attempt(self, path: str, body: Any, accept: str, left: float) -> requests.Response | requests.RequestException:
        """One attempt, given ``left`` seconds; an exception is returned where another attempt may fare better."""
        url, headers = f"{self._url}/{path}", {"Accept": accept, **_authorization(self._token)}
        timeout = (max(0.001, min(CONNECT_TIMEOUT, left)), max(0.001, min(self._timeout, left)))
        try:
            # Of the session it would be overruled by REQUESTS_CA_BUNDLE.
            return self._session.post(url, json=body, headers=headers, timeout=timeout, verify=self._verify)
        except requests.exceptions.SSLError:  # a certificate does not get better by asking again
            raise
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            return error

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
    """A key of TorchServe's key file; ``scope``: inference, management or API.

    Raises KeyFileMissing, and ValueError in one line.
    """
    try:
        key = json.loads(path.read_text())[scope]["key"]
    except FileNotFoundError:
        where = "a server writes it where it starts (make serve: build/server/key_file.json)"
        raise KeyFileMissing(f"no key file {str(path)!r}; {where}") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path.name} is no key file of TorchServe: it has no {scope} key") from None
    return str(key)


def _authorization(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def _unconnected(outcome: object) -> bool:
    """Whether no connection could be made: refused, no such host, no way to it."""
    cause = outcome.args[0] if isinstance(outcome, requests.ConnectionError) and outcome.args else None
    return isinstance(cause, MaxRetryError) and isinstance(cause.reason, NewConnectionError)


def _dropped(reply: requests.Response) -> bool:
    """Whether nobody has answered this request."""
    if reply.status_code in RETRIED:
        return True
    lost = (HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.INSUFFICIENT_STORAGE)
    return reply.status_code in lost and _server_error(reply).message == WORKER_LOST


def _retry_after(reply: requests.Response) -> float:
    """Seconds to wait by the Retry-After header (RFC 9110, 10.2.3), a number of seconds or a date; 0 without one."""
    value = reply.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


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
