"""The checkpoint that later commands go on from: the best one that is whole, whatever was damaged."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Command, Question
from tunecli import checkpoint
from tunecli.search import search
from tunecli.store import read
from tunecli.trial import State


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


WEIGHTS, MANIFEST = "weights.safetensors", "manifest.json"
DAMAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a flipped bit in the weights": (WEIGHTS, lambda place: flip(place / WEIGHTS)),
    "a flipped bit in the manifest": (MANIFEST, lambda place: flip(place / MANIFEST)),
    "weights cut short": (WEIGHTS, lambda place: (place / WEIGHTS).write_bytes(b"\x08")),
    "weights gone": (WEIGHTS, lambda place: (place / WEIGHTS).unlink()),
    "manifest gone": (MANIFEST, lambda place: (place / MANIFEST).unlink()),
    "no JSON": (MANIFEST, lambda place: (place / MANIFEST).write_text("{")),
    "empty": (MANIFEST, lambda place: (place / MANIFEST).write_text("")),
    "gone": ("", shutil.rmtree),
}
"""What happened to a checkpoint, and the file that is named."""


@pytest.fixture(scope="module")
def three(question: Question, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a study that keeps the checkpoints of its three best trials."""
    base = tmp_path_factory.mktemp("three")
    rows = "".join(f"{i % 13},{i % 7},{'ab'[(i % 13) > 6]}\n" for i in range(120))
    (base / "t.csv").write_text("x,z,y\n" + rows)
    data = {"source": "t.csv", "target": "y"}
    list(search(question(name="t", base=base, data=data, pruner="none", keep=3, trials=8), base / "studies" / "t"))
    return base


@pytest.fixture
def here(three: Path, tmp_path: Path) -> Path:
    return shutil.copytree(three, tmp_path, dirs_exist_ok=True) / "studies" / "t"


def ranked(folder: Path) -> list[int]:
    """The kept trials, the best first."""
    record = read(folder / "study.db")
    kept = [trial for trial in record.trials if trial.number in record.kept and trial.state is State.COMPLETE]
    return [trial.number for trial in sorted(kept, key=lambda trial: (-(trial.value or 0.0), trial.number))]


def place(folder: Path, trial: int) -> Path:
    return folder / "checkpoints" / f"trial-{trial}"


@pytest.mark.parametrize("how", DAMAGES)
def test_the_next_best_stands_in_for_a_damaged_one_in_predict_and_finetune_alike(
    tunecli: Command, here: Path, how: str
) -> None:
    file, damage = DAMAGES[how]
    said = "damaged checkpoint: " if file else "no checkpoint at "
    first, second, third = ranked(here)
    expected = tunecli("predict", "t", "t.csv", "--trial", str(second)).out
    damage(place(here, first))
    done = tunecli("predict", "t", "t.csv")
    assert (done.code, done.out) == (0, expected)
    assert f"t: predicting y with trial {second} " in done.err
    tuned = tunecli("finetune", "t", "--best", "--epochs", "1", "--format", "json")
    assert (tuned.code, tuned.document["trial"]) == (0, second)
    for err in (done.err, tuned.err):
        (note,) = [line for line in err.splitlines() if line.startswith("note: ")]
        assert f"{said}{Path('studies/t/checkpoints') / f'trial-{first}' / file}" in note
        assert f"trial {second} stands in for trial {first}" in note
    shutil.rmtree(here / "finetuned")
    damage(place(here, second))
    done = tunecli("predict", "t", "t.csv")
    assert f"t: predicting y with trial {third} " in done.err
    assert done.err.count("note: ") == 2


def test_where_no_checkpoint_is_left_every_damaged_file_is_named(tunecli: Command, here: Path) -> None:
    for trial in ranked(here):
        flip(place(here, trial) / "weights.safetensors")
    for command in (["predict", "t", "t.csv"], ["finetune", "t", "--best"]):
        done = tunecli(*command)
        assert (done.code, done.out) == (3, "")
        message, hint = done.complaint
        assert message.startswith("all 3 checkpoints of t are damaged:\n")
        assert message.count("weights.safetensors is not what was written") == 3
        assert hint == "run the search again with --fresh"
    assert not (here / "finetuned").exists()


def test_a_trial_that_was_named_is_never_replaced_by_another(tunecli: Command, here: Path) -> None:
    first = ranked(here)[0]
    flip(place(here, first) / "manifest.json")
    for command in (["predict", "t", "t.csv"], ["finetune", "t"]):
        done = tunecli(*command, "--trial", str(first))
        assert (done.code, done.out) == (3, "")
        assert done.complaint[0].startswith("damaged checkpoint: ")
        assert done.complaint[0].endswith("manifest.json is not what was written")


def test_another_trial_s_checkpoint_is_not_taken_for_the_recorded_one(tunecli: Command, here: Path) -> None:
    first, second, third = ranked(here)
    shutil.rmtree(place(here, first))
    shutil.copytree(place(here, third), place(here, first))
    done = tunecli("predict", "t", "t.csv")
    assert f"t: predicting y with trial {second} " in done.err
    assert "is not the one that the study recorded" in done.err


def test_a_damaged_fine_tuned_model_gives_way_to_an_older_one_then_to_the_best_trial(
    tunecli: Command, here: Path
) -> None:
    for epochs in "12":  # the same again would show what it came to
        assert tunecli("finetune", "t", "--best", "--epochs", epochs).code == 0
    for number in (1, 2):  # whether training on helped is not what this is about
        weights, manifest = checkpoint.load(here / "finetuned" / str(number))
        checkpoint.save(here / "finetuned" / str(number), weights, {**manifest, "used": True})
    assert "the fine-tuned model 2" in tunecli("predict", "t", "t.csv").err
    flip(here / "finetuned" / "2" / "weights.safetensors")
    done = tunecli("predict", "t", "t.csv")
    assert "the fine-tuned model 1" in done.err
    assert "damaged checkpoint: studies/t/finetuned/2/weights.safetensors" in done.err
    flip(here / "finetuned" / "1" / "manifest.json")
    done = tunecli("predict", "t", "t.csv")
    assert done.code == 0
    assert f"the best trial {ranked(here)[0]} " in done.err
    assert done.err.count("damaged") == 2


def test_a_checkpoint_runs_no_code_that_it_names(tunecli: Command, here: Path, tmp_path: Path) -> None:
    """Its hashes are right: it comes from someone else."""
    (tmp_path / "evil.py").write_text("open('executed', 'w')\ndef make(**keys):\n    open('executed', 'w')\n")
    best = place(here, ranked(here)[0])
    weights, manifest = checkpoint.load(best)
    model = {**manifest["model"], "source": "evil.py:make", "base": str(tmp_path)}
    checkpoint.save(best, weights, {**manifest, "model": model})
    done = tunecli("predict", "t", "t.csv")
    assert done.code == 3
    assert done.complaint[0].endswith("is of the model 'evil.py:make', the study's is 'mlp'")
    assert tunecli("finetune", "t", "--best", "--epochs", "1").code == 0  # with the model of study.toml
    assert not (tmp_path / "executed").exists()
