"""nginx in front of a server: ``deploy/nginx.conf.template`` with its values filled in, and a process of it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

import psutil

from deploy.server import ROOT, Server, ServerError

TEMPLATE = ROOT / "deploy" / "nginx.conf.template"
DEFAULTS = {
    "EFFT_LISTEN": "443",
    "EFFT_HTTP": "127.0.0.1:8080",
    "EFFT_GRPC": "127.0.0.1:7070",
    "EFFT_CERTIFICATE": "/etc/efft/tls.crt",
    "EFFT_KEY": "/etc/efft/tls.key",
    "EFFT_RUN": "/var/run/efft",
    "EFFT_LOG": "/dev/stdout",
    "EFFT_CLIENT_SECONDS": "10",
    "EFFT_RATE": "200",
    "EFFT_BURST": "400",
    "EFFT_CONNECTIONS": "64",
}
"""What the template's variables are where nothing else is said: where to listen, the two doors of TorchServe, the
certificate and its key, a folder nginx may write to, the access log, the seconds a client has for a header or between
two parts of a body; and for each address the requests a second, how many may come at once, and how many at a time."""
_VARIABLE = re.compile(r"\$\{(EFFT_\w+)\}")


def nginx() -> str | None:
    """The binary, None where there is none."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def configuration(values: dict[str, str] | None = None) -> str:
    """nginx.conf with ``values`` over the defaults. Raises KeyError for a variable that has neither."""
    known = {**DEFAULTS, **(values or {})}
    return _VARIABLE.sub(lambda found: known[found[1]], TEMPLATE.read_text(encoding="utf-8"))


def self_signed(folder: Path, host: str = "localhost") -> tuple[Path, Path]:
    """A certificate of 30 days for trials on this machine, and its key. Raises ServerError without openssl."""
    certificate, key = folder / "tls.crt", folder / "tls.key"
    if certificate.exists() and key.exists():
        return certificate, key
    names = f"subjectAltName=DNS:{host},IP:127.0.0.1"
    command = [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30",
        "-subj", f"/CN={host}", "-addext", names, "-keyout", str(key), "-out", str(certificate),
    ]  # fmt: skip
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ServerError("openssl is needed for a trial certificate; or name your own") from error
    key.chmod(0o600)
    return certificate, key


class Proxy:
    """One nginx in front of one :class:`deploy.server.Server`; usable as a context manager.

    ``folder`` gets its configuration, access log and trial certificate; ``port`` on this machine only; ``values``
    override the template's variables.
    """

    def __init__(self, folder: Path, server: Server, port: int = 8443, values: dict[str, str] | None = None) -> None:
        self.folder = folder.resolve()
        self.server = server
        self.port = port
        self._values = dict(values or {})

    @property
    def url(self) -> str:
        """Where requests go."""
        return f"https://localhost:{self.port}"

    @property
    def certificate(self) -> Path:
        """What clients verify the proxy against."""
        return self.folder / "tls.crt"

    def start(self, timeout: float = 10) -> None:
        """Start nginx and wait until it listens. Raises ServerError where it is missing, refuses or is there."""
        binary = nginx()
        if binary is None:
            raise ServerError("nginx is not installed (Debian: apt-get install nginx-light)")
        if self.process() is not None:
            raise ServerError("a proxy of this folder is running already")
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "nginx.conf"
        path.write_text(configuration(self._own_values()), encoding="utf-8")
        command = [binary, "-c", str(path), "-p", str(self.folder)]
        if os.geteuid() == 0:  # its workers would be nobody, who may not enter a folder of root's
            command += ["-g", "user root;"]
        tested = subprocess.run([*command, "-t", "-q"], capture_output=True, text=True, check=False)
        if tested.returncode:
            raise ServerError(f"nginx refuses its configuration: {(tested.stderr.strip().splitlines() or ['?'])[0]}")
        with (self.folder / "nginx.out").open("w") as output:
            started = subprocess.run(command, stdout=output, stderr=output, check=False, start_new_session=True)
        if started.returncode:
            said = (self.folder / "nginx.out").read_text(errors="replace").strip().splitlines()
            raise ServerError(f"nginx does not start: {said[0] if said else '?'}")
        self._wait(timeout)

    def stop(self, timeout: float = 60) -> None:
        """Take no new connection, wait for running requests to be answered, then end; quietly when none runs."""
        process = self.process()
        if process is None:
            return
        workers = process.children()
        process.send_signal(signal.SIGQUIT)
        _, alive = psutil.wait_procs([process, *workers], timeout=timeout)
        for survivor in alive:
            survivor.kill()

    def process(self) -> psutil.Process | None:
        """The running nginx's master."""
        try:
            process = psutil.Process(int((self.folder / "nginx.pid").read_text()))
            return process if str(self.folder) in " ".join(process.cmdline()) else None
        except (OSError, ValueError, psutil.Error):
            return None

    def __enter__(self) -> Proxy:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _own_values(self) -> dict[str, str]:
        certificate, key = self_signed(self.folder)
        return {
            "EFFT_LISTEN": f"127.0.0.1:{self.port}",
            "EFFT_HTTP": f"127.0.0.1:{self.server.ports[0]}",
            "EFFT_GRPC": f"127.0.0.1:{self.server.settings.get('grpc_inference_port', '7070')}",
            "EFFT_CERTIFICATE": str(certificate),
            "EFFT_KEY": str(key),
            "EFFT_RUN": str(self.folder),
            "EFFT_LOG": str(self.folder / "access.log"),
            **self._values,
        }

    def _wait(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.05)
        self.stop()
        raise ServerError(f"nginx does not listen on port {self.port}")
