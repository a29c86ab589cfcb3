"""What transfer is worth: ten times pretrained on the digits 0 to 4, trained on with 20 samples each of 5 to 9.

python examples/transfer/run.py
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev

HERE = Path(__file__).parent


def tunecli(*arguments):
    command = [sys.executable, "-m", "tunecli", *arguments, "--format", "json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main(seeds=10, epochs=5):
    gains = []
    print("seed  before  after  from scratch")
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as home:
            tunecli("search", str(HERE / "transfer.toml"), "--seed", str(seed), "--home", home)
            more = ["--data", f"{HERE / 'halves.py'}:high_half", "--set", f"data.seed={seed}", "--epochs", str(epochs)]
            found = tunecli("finetune", "transfer", "--best", "--home", home, *more)
        gains.append(found["after"] - found["scratch"])
        print(f"{seed:>4}  {found['before']:.4f}  {found['after']:.4f}  {found['scratch']:.4f}", flush=True)
    print(
        f"gain {mean(gains):+.4f} +- {stdev(gains) / len(gains) ** 0.5:.4f} (mean and standard error, accuracy on test)"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
