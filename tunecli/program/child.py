"""The search's side of a worker: a process in a session of its own, so that it ends with all that it began."""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tunecli.errors import StorageError
from tunecli.files import make_folder, open_new

_ROOT = Path(__file__).parent.parent.parent
_BOOT = "import sys; sys.path.append(sys.argv[2]); from tunecli.program.worker import main; main(int(sys.argv[1]))"


class Child:
    """The worker process of one trial. What the trial prints goes to the file `output`."""

    def __init__(
        self, trial: int, task: Mapping[str, Any], *, folder: Path, output: Path, environment: Mapping[str, str]
    ) -> None:
        self.trial = trial
        self._unread, self._output = b"", output
        self._socket, theirs = socket.socketpair()
        try:
            make_folder(output.parent)
            with open_new(output) as file:
                self._process = subprocess.Popen(
                    # -P: the user's folder must not stand before Python's own modules; nor after ours.
                    [sys.executable, "-P", "-c", _BOOT, str(theirs.fileno()), str(_ROOT)],
                    cwd=folder,
                    env={**os.environ, **environment},
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
        except OSError as error:
            self._socket.close()
            raise StorageError(f"cannot start a trial's process: {error}", hint="free some space or memory") from error
        finally:
            theirs.close()
        self._send(task)

    def fileno(self) -> int:
        return self._socket.fileno()

    def messages(self) -> list[dict[str, Any]]:
        """What the worker has said since; nothing where it is silent."""
        with suppress(BlockingIOError, ConnectionError):
            while received := self._socket.recv(1 << 16, socket.MSG_DONTWAIT):
                self._unread += received
        *lines, self._unread = self._unread.split(b"\n")
        return [json.loads(line) for line in lines]

    @property
    def gone(self) -> bool:
        """Whether the process has ended, whatever it said before."""
        return self._process.poll() is not None

    def go(self) -> None:
        """Let a worker that is ready begin."""
        self._send({"go": True})

    def answer(self, value: float | bool) -> None:
        self._send({"answer": value})

    def refuse(self, text: str) -> None:
        self._send({"refused": text})

    def last_words(self) -> str:
        """How a process ended that did not say so itself."""
        code = self._process.wait()
        if code < 0:
            return f"its process was killed by {signal.Signals(-code).name}"
        return f"its process ended with exit code {code} before a value was returned"

    def last_lines(self) -> str:
        """The end of what it printed."""
        lines = self._output.read_text(errors="replace").splitlines()
        return " | ".join([line.strip() for line in lines if line.strip()][-3:])[-500:]

    def kill(self) -> None:
        """End the worker and every process that it began."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._socket.close()

    def _send(self, message: Mapping[str, Any]) -> None:
        with suppress(ConnectionError):  # it is gone, and `gone` says so
            self._socket.sendall(json.dumps(message).encode() + b"\n")


def wait(children: Iterable[Child], seconds: float) -> list[Child]:
    """The children that have something to say, at most `seconds` from now, and those that are gone."""
    with selectors.DefaultSelector() as selector:
        for child in children:
            selector.register(child, selectors.EVENT_READ, child)
        return [key.data for key, _ in selector.select(seconds)]
