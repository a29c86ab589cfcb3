"""What an engine does to its process, and that it computes where it is told to."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

NEW_PAGES = """
import resource

import torch

from tunecli.engine.device import keep_memory


def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(1 << 21) for _ in range(8)]
    del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


keep_memory()
print(*[new_pages() for _ in range(8)])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_memory_of_freed_tensors_serves_the_next_ones() -> None:
    """No page is handed back to the system to be zeroed anew: of 16,384 pages nearly none is new, once the heap has
    grown around what else lies in it. In a process of its own, as an engine's: where the heap of a process that ran
    other tests has its holes decides what is freed at its end."""
    said = subprocess.check_output([sys.executable, "-c", NEW_PAGES], text=True)
    assert max(int(pages) for pages in said.split()[4:]) < 1000


def test_a_gpu_would_do() -> None:
    """No path assumes a CPU: on a device that is pretended, which is registered with torch for a whole process."""
    cases = Path(__file__).parent / "pretended" / "cases.py"
    # Without the end of a process: torch's threads for the device would wait for an interpreter that is gone.
    script = "import os, pytest, sys; code = pytest.main(sys.argv[1:]); sys.stdout.flush(); os._exit(code)"
    command = [sys.executable, "-c", script, "-p", "no:cacheprovider", str(cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
