"""deploy/nginx.conf.template in front of the real server: what it lets through, and what it does not."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests

from deploy.proxy import DEFAULTS, TEMPLATE, Proxy, configuration, nginx
from deploy.server import Server, ServerError
from handler.client import Client
from tests.e2e.conftest import free_ports
from tests.e2e.grpc_api import Api, prediction
from tests.e2e.test_serving import CONTEXT, TICKET

SECRET = "hunter2-in-a-query"


@pytest.fixture
def session(proxy: Proxy, server: Server) -> Iterator[requests.Session]:
    with requests.Session() as made:
        made.trust_env = False  # REQUESTS_CA_BUNDLE would overrule the next line
        made.verify = str(proxy.certificate)
        made.headers.update(server.headers())
        yield made


def tls(proxy: Proxy, *, protocol: str = "http/1.1") -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(proxy.certificate))
    context.set_alpn_protocols([protocol])
    return context.wrap_socket(
        socket.create_connection(("127.0.0.1", proxy.port), timeout=20), server_hostname="localhost"
    )


def error_of(answer: requests.Response) -> Any:
    error = answer.json()["error"]
    assert set(error) == {"type", "message", "field"}
    assert "\n" not in error["message"]
    return error["type"]


def test_the_client_speaks_through_it(proxy: Proxy, server: Server) -> None:
    with Client(proxy.url, key_file=server.folder / "key_file.json", verify=str(proxy.certificate)) as client:
        assert client.predict("ticket_routing", TICKET)["label"] == "billing"
        question = {"question": "Who founded the museum?", "context": CONTEXT}
        assert client.predict("document_qa", question)["answer"] == "Anna Lindqvist"
    with Client(proxy.url, key_file=server.folder / "key_file.json") as client, pytest.raises(requests.ConnectionError):
        client.predict("ticket_routing", TICKET)  # at once: the certificate is nobody's


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "predictions/ticket_routing"), ("PUT", "predictions/ticket_routing/1.0"),
     ("POST", "v1/models/ticket_routing:predict"), ("POST", "v2/models/ticket_routing/infer"),
     ("POST", "predictions/ticket%5Frouting?x=1")],
)  # fmt: skip
def test_what_it_lets_through(proxy: Proxy, session: requests.Session, method: str, path: str) -> None:
    answer = session.request(method, f"{proxy.url}/{path}", json={"text": TICKET}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["label"] == "billing"
    assert session.get(f"{proxy.url}/ping", timeout=60).json()["status"] == "Healthy"
    # A line is written once its answer has gone, but before the next request of the same connection is read.
    assert answer.headers["X-Request-ID"] in (proxy.folder / "access.log").read_text()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "predictions/ticket_routing", 405), ("DELETE", "models/ticket_routing", 404), ("GET", "models", 404),
     ("POST", "invocations?model_name=ticket_routing", 404), ("POST", "models/ticket_routing/invoke", 404),
     ("POST", "ticket_routing/predict", 404), ("POST", "token?type=inference", 404), ("GET", "", 404),
     ("OPTIONS", "", 404), ("GET", "metrics", 404), ("POST", "predictions/../models", 404),
     ("POST", "predictions/%2e%2e/models", 404), ("POST", "efft-error/late", 404), ("TRACE", "ping", 405)],
)  # fmt: skip
def test_what_it_does_not(proxy: Proxy, session: requests.Session, method: str, path: str, status: int) -> None:
    request = session.prepare_request(requests.Request(method, f"{proxy.url}/", data=b"x"))
    request.url = f"{proxy.url}/{path}"  # as it stands: the library would tidy it
    answer = session.send(request, timeout=60, verify=str(proxy.certificate))
    assert answer.status_code == status
    assert error_of(answer) == "invalid_request"


def test_a_compressed_body_goes_through(proxy: Proxy, session: requests.Session) -> None:
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    body = gzip.compress(json.dumps({"text": TICKET}).encode())
    answer = session.post(f"{proxy.url}/predictions/ticket_routing", data=body, headers=headers, timeout=60)
    assert answer.json()["label"] == "billing"


def test_a_body_without_a_type_goes_through_whole(proxy: Proxy, session: requests.Session) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}  # what curl -d calls it
    for body in (TICKET, json.dumps({"text": TICKET})):
        answer = session.post(f"{proxy.url}/predictions/ticket_routing", data=body, headers=form, timeout=60)
        assert answer.json()["label"] == "billing"


def test_torchserves_headers_stay_outside(proxy: Proxy, session: requests.Session) -> None:
    forged = {"describe": "True", "Explain": "True", "url_path": "html", "ts_request_sequence_id": "a"}
    for path in ("predictions/ticket_routing", "v1/models/ticket_routing:predict"):
        answer = session.post(f"{proxy.url}/{path}", data=TICKET, headers=forged, timeout=60)
        assert answer.json()["label"] == "billing"


def test_a_query_string_is_in_no_log(proxy: Proxy, server: Server, session: requests.Session) -> None:
    for path in ("predictions/ticket_routing", "nowhere", "predictions/nobody"):
        session.post(f"{proxy.url}/{path}?token={SECRET}", data=TICKET, headers={"Referer": SECRET}, timeout=60)
        session.post(f"{proxy.url}/{path}?token={SECRET}", data=b"x" * 7_000_000, timeout=60)
    with tls(proxy) as connection:
        connection.sendall(f"POST /predictions/ticket_routing?{SECRET} HTTP/1.1\r\nbroken\r\n\r\n".encode())
        connection.recv(4096)
    logs = [*proxy.folder.glob("*.log"), proxy.folder / "nginx.out", *(server.folder / "logs").glob("*")]
    assert "/predictions/nobody" in (proxy.folder / "access.log").read_text()
    assert not [log.name for log in logs if SECRET in log.read_text(errors="replace")]


def test_sizes(proxy: Proxy, session: requests.Session) -> None:
    url = f"{proxy.url}/predictions/ticket_routing"
    assert error_of(session.post(url, data=b"x" * 7_000_000, timeout=60)) == "too_large"
    # Little more than it reads: of much more the rest would still be on its way when it closes the connection.
    answer = session.post(url, data=TICKET, headers={"X-Long": "x" * 9000}, timeout=60)
    assert (answer.status_code, error_of(answer)) == (400, "invalid_request")
    answer = session.post(f"{proxy.url}/predictions/{'x' * 9000}", data=TICKET, timeout=60)
    assert (answer.status_code, error_of(answer)) == (414, "too_large")


@pytest.mark.parametrize("sent", ["", "POST /predictions/ticket_routing HTTP/1.1\r\nHost: x\r\n"])
def test_slow_headers_are_cut_off(proxy: Proxy, sent: str) -> None:
    """A byte now and then holds TorchServe's connection for ever, and nginx's for the time that it was told."""
    with tls(proxy) as connection:
        connection.sendall(sent.encode())
        start = time.monotonic()
        connection.settimeout(0.3)
        while time.monotonic() - start < 15:
            try:
                connection.sendall(b"X")
                if not connection.recv(4096):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        assert time.monotonic() - start < 10


def test_a_body_that_pauses_is_cut_off(proxy: Proxy, server: Server) -> None:
    workers = server.worker_pids()
    with tls(proxy) as connection:
        head = f"Host: x\r\nAuthorization: {server.headers()['Authorization']}\r\nContent-Length: 99"
        connection.sendall(f"POST /predictions/ticket_routing HTTP/1.1\r\n{head}\r\n\r\nhalf".encode())
        start = time.monotonic()
        assert connection.recv(4096) == b""
        assert 1 < time.monotonic() - start < 10
    assert server.worker_pids() == workers


def test_plain_http_is_told_so(proxy: Proxy) -> None:
    answer = requests.post(f"http://localhost:{proxy.port}/predictions/ticket_routing", data=TICKET, timeout=60)
    assert answer.status_code == 400
    assert "https" in answer.json()["error"]["message"]


def test_old_tls_is_refused(proxy: Proxy) -> None:
    context = ssl.create_default_context(cafile=str(proxy.certificate))
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    plain = socket.create_connection(("127.0.0.1", proxy.port), timeout=20)
    with plain, pytest.raises((ssl.SSLError, OSError)):
        context.wrap_socket(plain, server_hostname="localhost")


def test_grpc_goes_through_with_tls(proxy: Proxy, server: Server) -> None:
    credentials = grpc.ssl_channel_credentials(proxy.certificate.read_bytes())
    request = prediction("ticket_routing", {"body": TICKET.encode()})
    with Api(f"localhost:{proxy.port}", server.headers()["Authorization"], credentials) as api:
        assert json.loads(api.predict("ticket_routing", TICKET.encode()))["label"] == "billing"
        assert [json.loads(part.prediction)["label"] for part in api.stream(request)] == ["billing"]
        assert json.loads(api.ping())["status"] == "Healthy"
        with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
            list(api.stream_both_ways([request], timeout=20))
    address = f"localhost:{proxy.port}"
    with Api(address, "Bearer x", credentials) as stranger, pytest.raises(grpc.RpcError, match="PERMISSION_DENIED"):
        stranger.ping()


@pytest.fixture
def strict(server: Server, tmp_path: Path) -> Iterator[Proxy]:
    if nginx() is None:
        pytest.skip("nginx is not installed")
    values = {"EFFT_RATE": "1", "EFFT_BURST": "2", "EFFT_CONNECTIONS": "2"}
    with Proxy(tmp_path, server, free_ports(1)[0], values) as running:
        yield running


def test_too_many_requests_are_told_when_to_come_back(strict: Proxy, server: Server) -> None:
    def ask(_: int) -> requests.Response:
        return requests.post(
            f"{strict.url}/predictions/ticket_routing", data=TICKET, headers=server.headers(), timeout=60,
            verify=str(strict.certificate),
        )  # fmt: skip

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    assert {answer.status_code for answer in answers} == {200, 429}
    refused = [answer for answer in answers if answer.status_code == 429]
    assert all(answer.headers["Retry-After"] == "1" for answer in refused)
    assert all(error_of(answer) == "overloaded" for answer in refused)
    with Client(
        strict.url, key_file=server.folder / "key_file.json", verify=str(strict.certificate), deadline=60
    ) as client:
        assert [client.predict("ticket_routing", TICKET)["label"] for _ in range(3)] == ["billing"] * 3


def test_a_server_that_is_not_there_is_503(tmp_path: Path) -> None:
    if nginx() is None:
        pytest.skip("nginx is not installed")
    port, *others = free_ports(6)
    nobody = Server(tmp_path / "none", tmp_path, ports=tuple(others[:3]), grpc_ports=tuple(others[3:]))
    with Proxy(tmp_path, nobody, port) as running:
        answer = requests.post(f"{running.url}/predictions/x", data=b"x", verify=str(running.certificate), timeout=60)
        assert (answer.status_code, answer.headers["Retry-After"], error_of(answer)) == (503, "1", "overloaded")
        with pytest.raises(ServerError, match="running already"):
            running.start()
    assert running.process() is None
    assert Proxy(tmp_path, nobody, port).stop() is None


def test_a_proxy_that_quits_lets_running_requests_be_answered(server: Server, tmp_path: Path) -> None:
    if nginx() is None:
        pytest.skip("nginx is not installed")
    body = json.dumps([f"{TICKET} {n} " * 6 for n in range(16)])
    with Proxy(tmp_path, server, free_ports(1)[0]) as running, ThreadPoolExecutor(8) as pool:
        asked = [
            pool.submit(
                requests.post, f"{running.url}/predictions/ticket_routing", data=body, timeout=120,
                headers={**server.headers(), "Content-Type": "application/json"}, verify=str(running.certificate),
            )
            for _ in range(8)
        ]  # fmt: skip
        time.sleep(0.5)
        running.stop(120)
        assert {future.result().status_code for future in asked} == {200}
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{running.url}/ping", verify=str(running.certificate), timeout=10)


def test_every_variable_has_a_value_and_nginx_takes_the_defaults(tmp_path: Path) -> None:
    named = set(re.findall(r"\$\{(\w+)\}", TEMPLATE.read_text()))
    assert named == set(DEFAULTS)
    assert "${" not in configuration()
    assert shutil.which("openssl") or nginx() is None
    if nginx() is None:
        pytest.skip("nginx is not installed")
    path = tmp_path / "nginx.conf"
    path.write_text(configuration({"EFFT_RUN": str(tmp_path), "EFFT_CERTIFICATE": "/none"}))
    command = [nginx() or "", "-t", "-c", str(path), "-p", str(tmp_path)]
    shown = subprocess.run(command, text=True, capture_output=True, check=False).stderr
    assert "/none" in shown  # the certificate alone is missing
