"""Folders of pictures: class folders as torchvision's ImageFolder has them, from files to predictions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import Command
from tunecli import data
from tunecli.data import Data, mapped
from tunecli.data.inputs import read as read_new
from tunecli.errors import DataError


def picture(seed: int, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> Image.Image:
    """Random pixels, `size` (height, width)."""
    shape = size if mode == "L" else (*size, len(mode))
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), mode)


def fill(folder: Path, each: int = 10, classes: tuple[str, ...] = ("cat", "dog"), **more: Any) -> Path:
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            picture(100 * place + number, **more).save(folder / name / f"{number}.png")
    return folder


def load(folder: Path, **options: Any) -> Data:
    keys = {"size": options.pop("size")} if "size" in options else {}
    return data.load(folder.name, keys, base=folder.parent, seed=0, **options)


def test_class_folders_are_classes_and_pictures_stay_bytes(tmp_path: Path) -> None:
    found = load(fill(tmp_path / "photos"))
    assert found.classes == ("cat", "dog")
    assert [len(own) for own in (found.train, found.validation, found.test)] == [16, 2, 2]
    assert found.features == (3, 6, 5)
    assert found.train.inputs.dtype == torch.uint8  # type: ignore[union-attr]
    expected = {np.asarray(picture(100 * c + n)).tobytes(): c for c in range(2) for n in range(10)}
    for part in (found.train, found.validation, found.test):
        samples = part.take(slice(None))
        for image, target in zip(samples.inputs, samples.targets, strict=True):
            raw = (image.movedim(0, 2) * 255).round().to(torch.uint8).contiguous().numpy().tobytes()  # type: ignore[attr-defined]
            assert expected.pop(raw) == int(target)
    assert not expected


def test_parts_are_folders_and_grey_pictures_have_one_channel(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        fill(tmp_path / "photos" / part, each=3, mode="L")
    found = load(tmp_path / "photos")
    assert found.features == (1, 6, 5)
    assert [len(own) for own in (found.train, found.validation, found.test)] == [6, 6, 6]
    picture(0).save(tmp_path / "photos" / "train" / "cat" / "colour.png")
    assert load(tmp_path / "photos").features == (3, 6, 5)
    (tmp_path / "photos" / "test" / "fish").mkdir()
    with pytest.raises(DataError, match="holds a class 'fish', training has none"):
        load(tmp_path / "photos")


def test_pictures_are_resized_where_that_is_asked_for(tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos")
    picture(1, (40, 30)).save(folder / "dog" / "large.jpg")
    with pytest.raises(DataError, match=r"large.jpg is 30 x 40 pixels, .*0.png is 5 x 6") as refused:
        load(folder)
    assert "size = [64, 64] in [data]" in str(refused.value.hint)
    found = load(folder, size=[8, 4])
    assert found.features == (3, 8, 4)
    with pytest.raises(DataError, match=r"data.size must be \[height, width\] in pixels, got \[8\]"):
        load(folder, size=[8])


def test_a_picture_is_held_as_its_camera_was(tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos", size=(5, 6))
    turned = picture(1, (6, 5))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(folder / "cat" / "turned.png", exif=exif)
    assert load(folder).features == (3, 5, 6)


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos")
    whole = (folder / "dog" / "3.png").read_bytes()
    for content in (b"", b"no picture", whole[:20], whole[: len(whole) // 2], whole[:50] + b"\0" * 80):
        (folder / "dog" / "3.png").write_bytes(content)
        with pytest.raises(DataError, match=r"dog/3.png cannot be read: ") as refused:
            load(folder)
        assert "\n" not in refused.value.message
    (folder / "dog" / "3.png").write_bytes(whole)
    Image.fromarray(np.zeros((6, 5), np.uint16)).save(folder / "dog" / "deep.png")
    with pytest.raises(DataError, match=r"deep.png has pixels of I;16, not of bytes"):
        load(folder)


def test_other_files_are_left_out_with_a_notice(tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos")
    (folder / "cat" / ".DS_Store").touch()
    (folder / ".cache").mkdir()
    assert load(folder).notices == ()
    (folder / "cat" / "notes.txt").touch()
    assert load(folder).notices == ("photos: 1 file is no picture and left out: cat/notes.txt",)


def test_a_link_back_to_the_whole_folder_adds_no_picture(tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos")
    whole = load(folder)
    (folder / "cat" / "all").symlink_to(folder)
    assert len(load(folder).train) == len(whole.train)


def test_pictures_do_not_stream_which_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pictures do not stream"):
        load(fill(tmp_path / "photos"), stream=True)


def test_a_folder_that_cannot_be_meant_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds neither folders of pictures nor .npy files"):
        load(tmp_path / "empty")
    fill(tmp_path / "one", classes=("cat",))
    with pytest.raises(DataError, match="one class folder only, 'cat'"):
        load(tmp_path / "one")
    fill(tmp_path / "half" / "train")
    (tmp_path / "half" / "val").mkdir()
    with pytest.raises(DataError, match="holds train, validation"):
        load(tmp_path / "half")


def test_pictures_beyond_memory_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fill(tmp_path / "photos")
    monkeypatch.setattr(mapped, "_memory", lambda: 20 * 90 * 4 - 1)
    with pytest.raises(DataError, match="the 20 pictures of photos take") as refused:
        load(folder)
    assert "data.stream = false" in str(refused.value.hint)
    assert len(load(folder, stream=False).train) == 16


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_from_photos_to_predictions_of_the_checkpoint_alone(tunecli: Command, here: Path) -> None:
    for place, name in enumerate(("dark", "light")):
        (here / "photos" / name).mkdir(parents=True)
        for number in range(30):
            shade = np.random.default_rng(number).integers(0, 100, (8, 9), dtype=np.uint8) + 120 * place
            Image.fromarray(shade.astype(np.uint8)).save(here / "photos" / name / f"{number:02}.png")
    keys = ["data.size=[6,6]", "train.epochs=4", "space.optimizer=adam", "space.learning_rate=0.01"]
    done = tunecli("search", "photos/", "--trials", "2", *(part for key in keys for part in ("--set", key)))
    assert "cnn" in done.err
    (here / "photos").rename(here / "gone")
    Image.new("RGB", (50, 40), "white").save(here / "white.jpg")
    done = tunecli("predict", "photos", "white.jpg")
    assert "1 of 1 pictures in colour are made grey" in done.err
    assert done.out.splitlines()[0] == "file,prediction,probability_dark,probability_light"
    assert done.out.splitlines()[1].startswith("white.jpg,light,")
    done = tunecli("predict", "photos", "gone")
    rows = [line.split(",") for line in done.out.splitlines()[1:]]
    assert [row[0] for row in rows] == [f"{name}/{n:02}.png" for name in ("dark", "light") for n in range(30)]
    assert sum(row[0].startswith(row[1]) for row in rows) > 50
    assert tunecli("predict", "photos", "white.png").code == 3
    document = tunecli("report", "photos", "--format", "json").document
    assert document["counts"]["complete"] >= 1


def test_a_model_of_one_size_refuses_pictures_of_another(tmp_path: Path) -> None:
    preprocessing = json.loads(json.dumps(dict(load(fill(tmp_path / "photos")).preprocessing)))
    picture(0, (9, 9)).save(tmp_path / "other.png")
    with pytest.raises(DataError, match=r"other.png is 9 x 9 pixels, the model takes 5 x 6"):
        read_new("other.png", base=tmp_path, preprocessing=preprocessing, features=(3, 6, 5))
    expected = "the model takes a picture or a folder of them"
    np.savez(tmp_path / "t.npz", inputs=np.zeros((1, 3, 6, 5)))
    with pytest.raises(DataError, match=expected):
        read_new("t.npz", base=tmp_path, preprocessing=preprocessing, features=(3, 6, 5))


def test_a_draft_of_pictures_asks_for_convolutions(tunecli: Command, here: Path) -> None:
    fill(here / "photos")
    done = tunecli("init", "photos")
    assert "20 samples" in done.out
    drafted = (here / "photos.toml").read_text()
    assert 'source = "cnn"' in drafted
    assert "# size = [6, 5]" in drafted
