"""The process of a host, a webui or ComfyUI, and its console."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

PATIENCE = 900
open_url = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


class HostError(Exception):
    """The host exited or does not answer."""


class HostProcess:
    """A process that serves a page on a free port of this computer, until `stop`.

    Args:
        name: Name of the host, for messages.
        data: Folder for the log.
    """

    def __init__(self, name: str, data: Path) -> None:
        self._name = name
        self.log = data / "host.log"
        self.port = 0
        self.seconds = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """The address of the page."""
        return f"http://127.0.0.1:{self.port}"

    def take_port(self) -> str:
        """Choose a free port, and return it for the command line."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        return str(self.port)

    def start(self, command: Sequence[str], folder: Path, environment: dict[str, str]) -> None:
        """Start the process in a folder, with its output at the end of the log, and wait until the host is ready."""
        begun = time.monotonic()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self.wait()
        except BaseException:
            self.stop()
            raise
        self.seconds = time.monotonic() - begun

    def answers(self, after: int = 0) -> bool:
        """Return True once the host is ready; `after` is a position in the console."""
        raise NotImplementedError

    def wait(self, after: int = 0) -> None:
        """Wait until the host is ready. Raises HostError."""
        for _ in range(PATIENCE):
            assert self._process is not None
            if self._process.poll() is not None:
                raise HostError(f"{self._name} exited. Its last lines are:\n{self.tail()}")
            if self.answers(after):
                return
            time.sleep(1)
        raise HostError(f"{self._name} did not answer within {PATIENCE} s. Its last lines are:\n{self.tail()}")

    def stop(self) -> None:
        """Kill the process and those that it started."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def console(self) -> str:
        """Return the console."""
        return self.log.read_text("utf-8", "replace")

    def tail(self, lines: int = 25) -> str:
        """Return the last lines of the console."""
        return "\n".join(self.console().splitlines()[-lines:])

    def errors_from(self, folder: str) -> list[str]:
        """Return the last lines of tracebacks whose last frame is in a folder."""
        found, frame = [], ""
        for line in self.console().splitlines():
            if 'File "' in line:
                frame = line
            elif re.match(r"\s*[\w.]*(Error|Exception)\b", line) and folder in frame:
                found.append(line)
        return found
