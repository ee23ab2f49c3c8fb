"""``python -m deploy COMMAND``: the local server behind ``make serve``, ``predict``, ``stop`` and ``demo``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import requests

from deploy.server import ROOT, Server, ServerError, java_home
from handler.faults import guarded

SAMPLES = ("ticket_routing", "document_qa")
INPUTS = ROOT / "setup_configs" / "sample_inputs"
STORE = ROOT / "model_store"
RUN = ROOT / "build" / "server"


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
    commands.add_parser("stop", help="stop the server")
    commands.add_parser("token", help="print the running server's inference token")
    commands.add_parser("java-home", help="print the JAVA_HOME to use; empty where java is on PATH")
    options = parser.parse_args()
    server = Server(RUN, STORE)
    try:
        _run(options.command, server, getattr(options, "models", []))
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


def _run(command: str, server: Server, models: list[str]) -> None:
    if command == "java-home":
        print(java_home() or "")
    elif command == "token":
        print(server.headers().get("Authorization", "").removeprefix("Bearer "))
    elif command == "stop":
        server.stop()
        print("stopped")
    elif command == "predict":
        _predict(server, models)
    elif command == "serve":
        _serve(server, models)
    else:
        with server:
            _serve(server, models)
            _predict(server, models)
        print("stopped")


def _serve(server: Server, models: list[str]) -> None:
    print(f"starting TorchServe with {', '.join(models)}")
    server.start(models)
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
