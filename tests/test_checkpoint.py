"""A checkpoint is whole or it is refused, whatever crashed while it was written."""

import errno
import hashlib
import json
import os
import random
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tunecli import checkpoint
from tunecli.errors import CheckpointError, StorageError, TunecliError

STEPS = ("mkdir", "open", "fsync", "rename", "unlink", "rmdir")
"""Everything that writing a checkpoint asks of the file system, as names of `os`."""


class Crash(BaseException):
    """The process ends here."""


def weights(version: int) -> dict[str, Tensor]:
    return {"head.weight": torch.full((3, 4), float(version)), "head.bias": torch.arange(3.0) + version}


def save(folder: Path, version: int) -> str:
    return checkpoint.save(folder, weights(version), {"version": version})


def loaded_version(folder: Path) -> int:
    """The version that `folder` holds, weights and manifest in agreement."""
    tensors, manifest = checkpoint.load(folder)
    version = manifest["version"]
    assert isinstance(version, int)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in weights(version).items())
    return version


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, step: int, how: str) -> Iterator[list[str]]:
    """The step-th request to the file system fails: the process ends `before` or `after` it, or it is `refused`.

    Yields the requests made. What a file holds is certain only once it was synced: a process that ends before leaves
    half of it.
    """
    requests: list[str] = []

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keys: Any) -> Any:
            if name == "open" and not (args[1] & os.O_CREAT):
                return real(*args, **keys)  # opened to be read: not a step of writing
            requests.append(name)
            failed = len(requests) == step + 1
            if failed and how == "refused":
                raise OSError(errno.ENOSPC, "No space left on device")
            if failed and how == "before":
                if name == "fsync" and stat.S_ISREG(os.fstat(args[0]).st_mode):
                    os.ftruncate(args[0], os.fstat(args[0]).st_size // 2)
                raise Crash
            try:
                return real(*args, **keys)
            finally:
                if failed:
                    raise Crash

        return call

    with monkeypatch.context() as patch:
        for name in STEPS:
            patch.setattr(os, name, wrap(name, getattr(os, name)))
        yield requests


@pytest.fixture
def without_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncing a thousand checkpoints takes seconds; `failing` counts the requests all the same."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def save_until(monkeypatch: pytest.MonkeyPatch, folder: Path, version: int, step: int, how: str) -> bool:
    """Save with one failing step; whether there was such a step."""
    with failing(monkeypatch, step, how) as requests, suppress(Crash, StorageError):
        save(folder, version)
    return len(requests) > step


def test_weights_and_manifest_come_back_as_they_were(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "float32": torch.randn(5, 7, generator=generator),
        "float64": torch.randn(3, generator=generator, dtype=torch.float64),
        "bfloat16": torch.randn(4, generator=generator).bfloat16(),
        "int64": torch.arange(6).reshape(2, 3),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(-0.0),
        "special": torch.tensor([float("nan"), float("inf"), -float("inf"), 5e-45]),
        "empty": torch.zeros(0, 3),
        "transposed": torch.randn(4, 6, generator=generator).T,
        "row of a matrix": torch.randn(3, 8, generator=generator)[1, 2:],
        "with a gradient": nn.Parameter(torch.randn(2, generator=generator)),
    }
    manifest = {"model": {"source": "mlp", "hidden": [64, 32]}, "classes": ["ä", "b"], "value": 0.1 + 0.2, "none": None}
    digest = checkpoint.save(tmp_path / "trial-1", tensors, manifest)
    restored, read = checkpoint.load(tmp_path / "trial-1")
    assert read == {**manifest, "sha256": digest}
    assert list(read) == [*manifest, "sha256"]
    assert restored.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(restored[name], tensor.detach(), rtol=0, atol=0, equal_nan=True)
        assert not restored[name].requires_grad
    assert bool(torch.signbit(restored["scalar"]))


def test_a_model_with_tied_weights_can_be_kept(tmp_path: Path) -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["embed"].weight
    checkpoint.save(tmp_path / "tied", model.state_dict(), {})
    other = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    other.load_state_dict(checkpoint.load(tmp_path / "tied")[0], strict=True)
    assert torch.equal(other["head"].weight, model["embed"].weight)


def test_the_manifest_holds_the_sha256_of_the_weights(tmp_path: Path) -> None:
    digest = save(tmp_path / "trial-1", 1)
    data = (tmp_path / "trial-1" / "weights.safetensors").read_bytes()
    manifest = json.loads((tmp_path / "trial-1" / "manifest.json").read_text(encoding="utf-8"))
    assert digest == manifest["sha256"] == hashlib.sha256(data).hexdigest()


def test_the_manifest_ends_with_the_sha256_of_all_that_stands_before(tmp_path: Path) -> None:
    save(tmp_path / "trial-1", 1)
    data = (tmp_path / "trial-1" / "manifest.json").read_bytes()
    own = json.loads(data)["manifest_sha256"]
    assert hashlib.sha256(data[: data.index(own.encode())]).hexdigest() == own
    assert data.endswith(own.encode() + b'"\n}\n')


def test_a_checkpoint_that_was_read_can_be_written_again(tmp_path: Path) -> None:
    digest = save(tmp_path / "trial-1", 1)
    for copy in ("2", "3"):
        weights, manifest = checkpoint.load(tmp_path / "trial-1")
        assert checkpoint.save(tmp_path / copy, weights, manifest) == digest
    assert checkpoint.load(tmp_path / "3")[1] == manifest


def test_weights_that_are_none_are_refused_though_their_hashes_are_right(tmp_path: Path) -> None:
    place = tmp_path / "trial-1"
    save(place, 1)
    for data in (b"", b"not safetensors", b"\xff" * 64):
        weights, manifest = place / "weights.safetensors", place / "manifest.json"
        weights.write_bytes(data)
        before = json.dumps({"sha256": hashlib.sha256(data).hexdigest()})[:-1] + ', "manifest_sha256": "'
        manifest.write_text(before + hashlib.sha256(before.encode()).hexdigest() + '"\n}\n')
        with pytest.raises(CheckpointError, match=r"damaged .*holds no weights"):
            checkpoint.load(place)


def test_the_manifest_alone_is_read_without_the_weights(tmp_path: Path) -> None:
    save(tmp_path / "trial-1", 1)
    (tmp_path / "trial-1" / "weights.safetensors").unlink()
    assert checkpoint.load_manifest(tmp_path / "trial-1")["version"] == 1
    with pytest.raises(CheckpointError, match=r"damaged .*weights\.safetensors"):
        checkpoint.load(tmp_path / "trial-1")


def test_only_the_owner_can_read_a_checkpoint(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        save(tmp_path / "checkpoints" / "trial-1", 1)
    finally:
        os.umask(before)
    folder = tmp_path / "checkpoints" / "trial-1"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [folder.parent, folder, *folder.iterdir()]}
    assert modes == {"checkpoints": 0o700, "trial-1": 0o700, "weights.safetensors": 0o600, "manifest.json": 0o600}


def test_saving_again_replaces_the_checkpoint_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    for version in (1, 2, 3):
        save(tmp_path / "trial-1", version)
        assert loaded_version(tmp_path / "trial-1") == version
    assert [path.name for path in tmp_path.iterdir()] == ["trial-1"]


@pytest.mark.usefixtures("without_sync")
@pytest.mark.parametrize("how", ["before", "after", "refused"])
def test_a_failure_at_any_step_leaves_the_old_checkpoint_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    seen = []
    for step in range(100):
        folder = tmp_path / str(step) / "trial-1"
        save(folder, 1)
        failed = save_until(monkeypatch, folder, 2, step, how)
        seen.append(loaded_version(folder))
        save(folder, 3)
        assert loaded_version(folder) == 3
        assert [path.name for path in folder.parent.iterdir()] == ["trial-1"]
        if not failed:
            break
    assert set(seen) == {1, 2}
    assert 10 < step < 99


@pytest.mark.usefixtures("without_sync")
def test_a_second_failure_while_saving_again_loses_nothing_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = second = 0
    for first in range(100):
        for second in range(100):
            folder = tmp_path / f"{first}-{second}" / "trial-1"
            save(folder, 1)
            failed_first = save_until(monkeypatch, folder, 2, first, "before")
            held = loaded_version(folder)
            failed_second = save_until(monkeypatch, folder, 3, second, "before")
            assert loaded_version(folder) in (held, 3)
            if not failed_second:
                break
        if not failed_first:
            break
    assert 10 < first < 99
    assert 10 < second < 99


@pytest.mark.usefixtures("without_sync")
def test_a_first_checkpoint_that_was_not_finished_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(100):
        folder = tmp_path / str(step) / "trial-1"
        if not save_until(monkeypatch, folder, 1, step, "before"):
            break
        if folder.exists():
            assert loaded_version(folder) == 1
        else:
            with pytest.raises(CheckpointError, match="no checkpoint"):
                checkpoint.load(folder)
    assert 5 < step < 99


@pytest.mark.usefixtures("without_sync")
def test_a_removed_checkpoint_is_gone_even_after_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(100):
        folder = tmp_path / str(step) / "trial-1"
        save(folder, 1)
        failed = save_until(monkeypatch, folder, 2, step, "before")
        checkpoint.remove(folder)
        with pytest.raises(CheckpointError, match="no checkpoint"):
            checkpoint.load(folder)
        assert not list(folder.parent.iterdir())
        if not failed:
            break
    checkpoint.remove(folder)  # once more is no error


def test_any_flipped_bit_or_cut_in_the_weights_is_found(tmp_path: Path) -> None:
    save(tmp_path / "trial-1", 1)
    path = tmp_path / "trial-1" / "weights.safetensors"
    whole, rng = path.read_bytes(), random.Random(0)
    damaged = [b"", whole + b"\0"]
    for _ in range(150):
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        damaged.append(bytes(flipped))
    damaged += [whole[: rng.randrange(len(whole))] for _ in range(50)]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="damaged") as caught:
            checkpoint.load(tmp_path / "trial-1")
        assert caught.value.hint
    path.write_bytes(whole)
    assert loaded_version(tmp_path / "trial-1") == 1


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[]", b"3", b"null", b"{}", b'{"sha256": null}'])
def test_a_damaged_manifest_is_found(tmp_path: Path, text: bytes) -> None:
    save(tmp_path / "trial-1", 1)
    (tmp_path / "trial-1" / "manifest.json").write_bytes(text)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(tmp_path / "trial-1")


def test_any_cut_in_the_manifest_is_found(tmp_path: Path) -> None:
    save(tmp_path / "trial-1", 1)
    path = tmp_path / "trial-1" / "manifest.json"
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.load(tmp_path / "trial-1")


def test_a_checkpoint_that_does_not_exist_is_an_input_error_with_a_hint(tmp_path: Path) -> None:
    for load in (checkpoint.load, checkpoint.load_manifest):
        with pytest.raises(CheckpointError, match=r"no checkpoint at .*trial-9") as caught:
            load(tmp_path / "trial-9")
        assert caught.value.hint
        assert caught.value.exit_code == 3


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "trial-1", tmp_path / "file" / "checkpoints" / "trial-1"):
        with pytest.raises(StorageError, match="cannot write the checkpoint") as caught:
            save(folder, 1)
        assert caught.value.hint
        assert caught.value.exit_code == 5


def test_a_full_disk_is_a_storage_error_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "trial-1", 1)
    with pytest.raises(TunecliError, match="No space left on device"), failing(monkeypatch, 2, "refused"):
        save(tmp_path / "trial-1", 2)
    assert loaded_version(tmp_path / "trial-1") == 1
