"""What an engine does to its process."""

import platform
import resource

import pytest
import torch

from tunecli.engine.device import keep_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_memory_of_freed_tensors_serves_the_next_ones() -> None:
    """No page is handed back to the system to be zeroed anew: of 16,384 pages nearly none is new, once the heap has
    grown around what else lies in it."""
    keep_memory()

    def new_pages() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensors = [torch.ones(1 << 21) for _ in range(8)]
        del tensors
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    assert max([new_pages() for _ in range(8)][4:]) < 1000
