"""A real limit on a process's memory: a search computes less at once and comes to its end."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.faults.conftest import Report

SEARCH = '''
"""Searches with so many MiB more than the process has when torch is loaded."""
import re, resource, sys
from pathlib import Path

import torch

from tunecli.search import Noticed, search
from tunecli.store import read
from tunecli.study import make_study

def data():
    inputs = torch.randn(1300, 4, generator=torch.Generator().manual_seed(0))
    return inputs, (inputs.sum(1) > 0).long()

class Bessel(torch.nn.Module):
    def forward(self, inputs):
        return torch.special.i0e(inputs)  # of which C of our own knows nothing

def model():  # whose activations are many for its weights, those of all rows at once
    return torch.nn.Sequential(torch.nn.Linear(4, 4096), Bessel(), torch.nn.Linear(4096, 2))

if __name__ == "__main__":
    base, more = Path(__file__).parent, int(sys.argv[1]) << 20
    document = {
        "name": "limited",
        "data": {"source": "limited.py:data"},
        "model": {"source": "limited.py:model"},
        "train": {"epochs": 1},
        "space": {"batch_size": [64]},
        "search": {"trials": 32, "window": 32, "sampler": "random"},
    }
    size = re.search(r"VmSize:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
    resource.setrlimit(resource.RLIMIT_AS, (int(size[1]) * 1024 + more,) * 2)
    study = make_study(document, base, "limited", where="a test")
    told = [event.text for event in search(study, base / "study") if isinstance(event, Noticed)]
    print(len(told), told[0][:14], *{str(trial.state) for trial in read(base / "study" / "study.db").trials}, sep=", ")
'''


def test_a_search_in_limited_memory_computes_less_at_once(tmp_path: Path, full: bool, report: Report) -> None:
    """It takes about 890 MiB where it may. What saves weights is loaded before: at 300 no room was left for it."""
    (tmp_path / "limited.py").write_text(SEARCH)
    limits = range(100, 800, 50) if full else (500, 300)
    for more in limits:
        command = [sys.executable, str(tmp_path / "limited.py"), str(more)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.stdout == "1, memory ran out, complete\n", (more, done.stdout, done.stderr)
        shutil.rmtree(tmp_path / "study")
    report("memory limited to less than is needed", f"{len(limits)} searches of {len(limits)} computed less at once")
