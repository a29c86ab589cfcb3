"""A program of the user's, run from a worker: its lines of JSON are its reports, the last one is its value."""

from __future__ import annotations

import json
import os
import re
import selectors
import signal
import subprocess
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TypeGuard

from tunecli.program import NO_VALUE
from tunecli.program.worker import Channel

POLL_SECONDS = 0.2
TAIL_BYTES = 4096
TAIL_LINES = 3
MOST_NAMED = 5

_FRAME = re.compile(r'  File "(.+)", line (\d+)')
_INSTALLED = re.compile(r"^<|/site-packages/|/lib(64)?/python3")


def run(channel: Channel) -> None:
    """Run the program, report as it goes, say how it ended."""
    arguments, metric = channel.task["arguments"], channel.task["metric"]
    try:
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
    except OSError as error:
        channel.end("failed", reason=f"{arguments[0]} cannot be run: {error.strerror}")
        return
    output = _Output(channel, metric)
    if not _follow(process, output):
        channel.end("pruned")
        return
    code = process.wait()
    if code != 0:
        how, tail = f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}", output.tail()
        channel.end("failed", reason=f"{how}: {tail}" if tail else how)
    elif output.last is None:
        known = " or ".join(repr(key) for key in output.keys)
        others = f", but under {', '.join(map(repr, output.others))}" if output.others else ""
        channel.end("failed", reason=f"{NO_VALUE} with a number under {known}{others}")
    else:
        channel.end("complete", value=output.last)


class _Output:
    """What a program has printed so far: its `last` value under one of the `keys`, and `others` that held numbers."""

    def __init__(self, channel: Channel, metric: str | None) -> None:
        self.keys = tuple(dict.fromkeys(["value", *([metric] if metric else []), "loss"]))
        self.last: float | None = None
        self.others: list[str] = []
        self._channel, self._reports = channel, 0
        self._line, self._errors = b"", b""

    def printed(self, text: bytes) -> bool:
        """More of its stdout. Each line with a value is a report; whether the program goes on after it."""
        *lines, self._line = (self._line + text).split(b"\n")
        for line in lines:
            value = self._value(line)
            if value is not None:
                self.last, self._reports = value, self._reports + 1
                self._channel.say(report=value, step=self._reports)
                if self._channel.ask(prune=True):
                    return False
        return True

    def complained(self, text: bytes) -> bool:
        """More of its stderr."""
        self._errors = (self._errors + text)[-TAIL_BYTES:]
        return True

    def tail(self) -> str:
        """The last lines of its stderr; of Python's traceback what was raised, and where in the user's own files."""
        lines = [line for line in re.split(r"[\r\n]+", self._errors.decode(errors="replace")) if line.strip("^~ ")]
        return _raised(lines) or " | ".join([line.strip() for line in lines][-TAIL_LINES:])

    def _value(self, line: bytes) -> float | None:
        try:
            document = json.loads(line)
        except (ValueError, RecursionError):
            return None
        for key in self.keys if isinstance(document, dict) else ():
            if _is_number(value := document.get(key)):
                return float(value)
        if isinstance(document, dict) and len(self.others) < MOST_NAMED:
            found = (key for key, value in document.items() if _is_number(value) and key not in self.others)
            self.others += islice(found, MOST_NAMED - len(self.others))
        return None


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _raised(lines: Sequence[str]) -> str | None:
    """`ValueError: text (train.py, line 12)` of the last traceback in these lines; None where there is none."""
    frames = [(place, match) for place, line in enumerate(lines) if (match := _FRAME.match(line))]
    text = [line for line in lines[frames[-1][0] + 1 :] if not line.startswith(" ")] if frames else []
    if not text:
        return None
    own = [match for _, match in frames if not _INSTALLED.search(match[1])] or [frames[-1][1]]
    return f"{' '.join(' '.join(text[:TAIL_LINES]).split())} ({Path(own[-1][1]).name}, line {own[-1][2]})"


def _follow(process: subprocess.Popen[bytes], output: _Output) -> bool:
    """Read what the program prints until it ends, and pass it on; False where it is pruned."""
    with selectors.DefaultSelector() as selector:
        assert process.stdout is not None
        assert process.stderr is not None
        selector.register(process.stdout, selectors.EVENT_READ, (1, output.printed))
        selector.register(process.stderr, selectors.EVENT_READ, (2, output.complained))
        while selector.get_map():
            ready = selector.select(POLL_SECONDS)
            if not ready and process.poll() is not None:
                break  # a process that it left behind holds its output open
            for key, _ in ready:
                passed_on, take = key.data
                if text := os.read(key.fd, 1 << 16):
                    os.write(passed_on, text)
                    if not take(text):
                        return False
                else:
                    selector.unregister(key.fileobj)
    return output.printed(b"\n")  # a last line may lack its end
