"""Fashion-MNIST: 70,000 grey pictures of clothes, 28 x 28 pixels, in ten classes (Xiao et al. 2017).

The files are those of Debian's package: apt-get install dataset-fashion-mnist. Nothing of tunecli in it.
"""

import gzip
from pathlib import Path

import numpy as np


def load(folder="/usr/share/datasets/fashion-mnist", samples=60_000):
    """The pictures as bytes: the last tenth of the first `samples` for training is for validation."""
    pictures, classes = read(folder, "train", samples)
    training = len(pictures) - len(pictures) // 10
    return {
        "train": (pictures[:training], classes[:training]),
        "validation": (pictures[training:], classes[training:]),
        "test": read(folder, "t10k", 10_000),
    }


def read(folder, part, samples):
    """Pictures (N, 1, 28, 28) and classes (N,) of an IDX file each: a header of big-endian numbers, then bytes."""
    found = []
    for kind, header in (("images-idx3", 16), ("labels-idx1", 8)):
        path = Path(folder) / f"{part}-{kind}-ubyte.gz"
        if not path.exists():
            raise FileNotFoundError(f"no such file: {path}: apt-get install dataset-fashion-mnist, or set data.folder")
        found.append(np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header))
    pictures, classes = found
    return pictures.reshape(-1, 1, 28, 28)[:samples], classes[:samples]
