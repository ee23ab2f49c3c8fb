"""``python -m deploy COMMAND``: the local server behind ``make serve``, ``predict``, ``stop`` and ``demo``.

SIGTERM and SIGHUP end it as Ctrl-C does: a server that was not announced yet is stopped again, exit status 128 and the
signal's number.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import requests

from deploy.dashboard import dashboard
from deploy.proxy import Proxy, configuration
from deploy.server import ROOT, Server, ServerError, java_home
from deploy.signals import Interrupted, raise_interrupts
from handler.faults import guarded

SAMPLES = ("ticket_routing", "document_qa")
INPUTS = ROOT / "setup_configs" / "sample_inputs"
STORE = ROOT / "model_store"
RUN = ROOT / "build" / "server"
DRAIN = 60.0
"""Seconds that a stopping server gives its running requests."""


def main() -> int:
    """Run one command; returns the process's exit status."""
    parser = argparse.ArgumentParser(prog="python -m deploy", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("serve", "start TorchServe in the background and print curl lines"),
        ("predict", "send the sample inputs to the running server"),
        ("demo", "serve, predict, stop"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("models", nargs="*", default=list(SAMPLES), help="archives by name (default: the samples)")
    stop = commands.add_parser("stop", help="let running requests be answered, then stop the server and its proxy")
    stop.add_argument("--drain", type=float, default=DRAIN, metavar="SECONDS", help="at most; 0 resets them")
    commands.add_parser("drain", help="answer what was accepted, refuse what comes; the server keeps running")
    proxy = commands.add_parser("proxy", help="start nginx with TLS in front of the running server")
    proxy.add_argument("--port", type=int, default=8443)
    proxy.add_argument("--print", action="store_true", help="print the configuration with its defaults instead")
    commands.add_parser("token", help="print the running server's inference token")
    commands.add_parser("dashboard", help="print the Grafana dashboard (deploy/grafana/efft.json)")
    commands.add_parser("java-home", help="print the JAVA_HOME to use; empty where java is on PATH")
    options = parser.parse_args()
    server = Server(RUN, STORE)
    raise_interrupts()
    try:
        _run(options, server, Proxy(RUN / "proxy", server, getattr(options, "port", 8443)))
    except Interrupted as error:
        print(f"deploy: ended by {error}", file=sys.stderr)
        return 128 + error.number
    except ServerError as error:
        print(f"deploy: {error}", file=sys.stderr)
        return 1
    except requests.HTTPError as error:
        print(f"deploy: the server answered {error.response.status_code}; see above", file=sys.stderr)
        return 1
    except requests.RequestException as error:
        print(
            f"deploy: no answer from {server.url} ({type(error).__name__}); is it running? make serve", file=sys.stderr
        )
        return 1
    return 0


def _run(options: argparse.Namespace, server: Server, proxy: Proxy) -> None:
    command = options.command
    if command == "java-home":
        print(java_home() or "")
    elif command == "dashboard":
        print(json.dumps(dashboard(), indent=1, ensure_ascii=False))
    elif command == "token":
        print(server.headers().get("Authorization", "").removeprefix("Bearer "))
    elif command == "stop":
        _stop(server, proxy, options.drain)
    elif command == "drain":
        if not server.drain(DRAIN):
            raise ServerError(f"after {DRAIN:g} s a worker is still computing")
        print("drained")
    elif command == "proxy":
        _proxy(proxy, only_print=options.print)
    elif command == "predict":
        _predict(server, options.models)
    elif command == "serve":
        _serve(server, options.models)
    else:
        with server:
            _serve(server, options.models)
            _predict(server, options.models)
        print("stopped")


def _stop(server: Server, proxy: Proxy, drain: float) -> None:
    proxy.stop(drain)  # first: nothing new comes in, and what runs goes on through it
    answered = server.stop(drain)
    print("stopped" if answered or not drain else f"stopped; after {drain:g} s a worker was still computing")


def _proxy(proxy: Proxy, *, only_print: bool) -> None:
    if only_print:
        print(configuration(), end="")
        return
    if proxy.server.process() is None:
        raise ServerError("no server is running; run make serve")
    proxy.start()
    print(f"{proxy.url}, its certificate: {proxy.certificate.relative_to(ROOT)}")


def _serve(server: Server, models: list[str]) -> None:
    print(f"starting TorchServe with {', '.join(models)}")
    from deploy.fitting import fit, prepare  # here, since torch comes with it

    prepare()
    server.start(models)
    for line in fit(server, models):
        print(line)
    print("ready; in another shell, for example:")
    print("  TOKEN=$(.venv/bin/python -m deploy token)")
    for name in models:
        for path in _inputs(name)[:1]:
            file = path.relative_to(ROOT)
            print(f'  curl {server.url}/predictions/{name} -H "Authorization: Bearer $TOKEN" -T {file}')


def _inputs(name: str) -> list[Path]:
    return sorted((INPUTS / name).glob("*.json")) + sorted((INPUTS / name).glob("*.txt"))


def _predict(server: Server, models: list[str]) -> None:
    for name in models:
        if not _inputs(name):
            print(f"{name}: no sample inputs in {INPUTS.relative_to(ROOT)}/{name}/")
        for path in _inputs(name):
            answer = requests.post(
                f"{server.url}/predictions/{name}", data=path.read_bytes(), headers=server.headers(), timeout=60
            )
            print(f"{name} <- {path.name}: {answer.status_code}")
            print(f"  {_one_line(answer)}")
            answer.raise_for_status()


def _one_line(answer: requests.Response) -> str:
    try:
        body: Any = answer.json()
    except ValueError:
        return answer.text
    return json.dumps(body, ensure_ascii=False)


if __name__ == "__main__":
    sys.exit(guarded("deploy", main))
