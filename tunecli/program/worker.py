"""The process of one trial. It says what `tunecli.program` lists, and ends with its search."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import threading
from typing import Any


class Channel:
    """The worker's end of the socket."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._socket = socket.socket(fileno=descriptor)
        self._received: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._sending = threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()
        self.task = self._received.get()

    def say(self, **message: Any) -> None:
        with self._sending:
            self._socket.sendall(json.dumps(message, default=_plain).encode() + b"\n")

    def ask(self, **message: Any) -> Any:
        """What the search answers. Raises ValueError where it refuses."""
        self.say(**message)
        reply = self._received.get()
        if "refused" in reply:
            raise ValueError(reply["refused"])
        return reply.get("answer")

    def end(self, how: str, **more: Any) -> None:
        self.say(end=how, **more)

    def _listen(self) -> None:
        try:
            for line in self._socket.makefile("rb"):
                self._received.put(json.loads(line))
        finally:
            # The search is gone, killed perhaps: nothing of this trial may outlive it.
            os.killpg(os.getpid(), signal.SIGKILL)


def _plain(value: Any) -> Any:
    """A value that JSON has no word for: the number that it holds, else its text."""
    return value.item() if hasattr(value, "item") else str(value)


def main(descriptor: int) -> None:
    channel = Channel(descriptor)
    if "objective" in channel.task:
        from tunecli.program.objective import run
    else:
        from tunecli.program.execution import run
    run(channel)
