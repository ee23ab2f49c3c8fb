"""``python -m deploy COMMAND``: the local server behind ``make serve``, ``predict``, ``stop`` and ``demo``.

The variable PORT is the first of the five ports that a new server takes; a running one is asked where it is.
SIGTERM and SIGHUP end it as Ctrl-C does: a server that was not announced yet is stopped again, exit status 128 and the
signal's number.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import requests

from deploy import local, ports
from deploy.dashboard import dashboard
from deploy.example import curl, example
from deploy.proxy import Proxy, configuration
from deploy.server import ROOT, PortTakenError, Server, ServerError, java_home
from deploy.signals import Interrupted, raise_interrupts
from handler.faults import guarded

SAMPLES = ("ticket_routing", "document_qa")
INPUTS = ROOT / "setup_configs" / "sample_inputs"
DRAIN = 60.0
"""Seconds that a stopping server gives its running requests."""


def main() -> int:
    """Run one command; returns the process's exit status."""
    parser = argparse.ArgumentParser(prog="python -m deploy", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text, default in (
        ("serve", "start TorchServe in the background and print curl lines", SAMPLES),
        ("predict", "send an example to each model of the running server", ()),
        ("demo", "serve, predict, stop", SAMPLES),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument(
            "models", nargs="*", default=list(default),
            help=f"archives by name (default: {'the samples' if default else 'all that are served'})",
        )  # fmt: skip
    commands.add_parser("check", help="whether a server can be started: none runs, and its ports are free")
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
    raise_interrupts()
    server = Server(local.RUN, local.STORE)
    try:
        server = local.local_server(os.environ.get("PORT", ""))
        _run(options, server, Proxy(local.RUN / "proxy", server, getattr(options, "port", 8443)))
    except Interrupted as error:
        print(f"deploy: ended by {error}", file=sys.stderr)
        return 128 + error.number
    except PortTakenError as error:
        print(f"deploy: {error}; {_way_out(server)}", file=sys.stderr)
        return 1
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


def _way_out(server: Server) -> str:
    free = ports.suggestion(server.ports[0])
    return "stop it" + (f", or set PORT={free} ({free + 1} to {free + ports.COUNT - 1} are used, too)" if free else "")


def _run(options: argparse.Namespace, server: Server, proxy: Proxy) -> None:
    command = options.command
    if command == "java-home":
        print(java_home() or "")
    elif command == "dashboard":
        print(json.dumps(dashboard(), indent=1, ensure_ascii=False))
    elif command == "token":
        print(local.token(server))
    elif command == "check":
        server.check([])
    elif command == "stop":
        _stop(server, proxy, options.drain)
    elif command == "drain":
        if not server.drain(DRAIN):
            raise ServerError(f"after {DRAIN:g} s a worker is still computing")
        print("drained")
    elif command == "proxy":
        _proxy(proxy, only_print=options.print)
    elif command == "predict":
        _predict(local.running(server), options.models)
    elif command == "serve":
        _serve(server, options.models)
        _show(server, options.models)
    else:
        _demo(server, options.models)


def _demo(server: Server, models: list[str]) -> None:
    server.check(models)  # not within the block below, which stops what runs
    with server:
        _serve(server, models)
        _predict(server, models)
    print("stopped")


def _stop(server: Server, proxy: Proxy, drain: float) -> None:
    ran = server.process() is not None
    if not ran and proxy.process() is None:
        server.stop()  # nothing but what a killed one has left
        own = "; the one that runs here is ended by torchserve --stop" if local.started_by_its_own_command() else ""
        print(f"no server of this folder was running{own}")
        return
    proxy.stop(drain)  # first: nothing new comes in, and what runs goes on through it
    answered = server.stop(drain)
    if not ran:
        print("stopped the proxy; no server was running")
        return
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
    def checked() -> None:
        print(f"starting TorchServe with {', '.join(models)}", flush=True)
        from deploy.fitting import prepare  # here, since torch comes with it

        prepare()

    server.start(models, checked=checked)
    from deploy.fitting import fit

    for line in fit(server, models):
        print(line)


def _show(server: Server, models: list[str]) -> None:
    print("ready; for example:")
    print("  TOKEN=$(.venv/bin/python -m deploy token)")
    for name in models:
        file = next((path.relative_to(ROOT) for path in _inputs(name)), None)
        request = None if file else example(server.store / f"{name}.mar")
        print(f"  {curl(server.url, name, request, file)}")


def _inputs(name: str) -> list[Path]:
    return sorted((INPUTS / name).glob("*.json")) + sorted((INPUTS / name).glob("*.txt"))


def _predict(server: Server, models: list[str]) -> None:
    there = local.served(server)
    strange = [name for name in models if name not in there]
    if strange:
        raise ServerError(f"{', '.join(strange)}: not served; there are: {', '.join(there) or 'none'}")
    for name in models or there:
        sent, headers = [(path.name, path.read_bytes()) for path in _inputs(name)], server.headers()
        if not sent and (request := example(server.store / f"{name}.mar")) is not None:
            text = json.dumps(request, ensure_ascii=False)
            sent, headers = [(text, text.encode())], {**headers, "Content-Type": "application/json"}
        if not sent:
            print(f"{name}: no archive in {server.store.name}/ says what it takes; ask it yourself")
        for what, body in sent:
            answer = requests.post(f"{server.url}/predictions/{name}", data=body, timeout=60, headers=headers)
            print(f"{name} <- {what}: {answer.status_code}")
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
