"""Folders of pictures: a folder a class, as torchvision's ImageFolder has them, whole or in parts.

Parts are folders `train` and `test`, of which the training part gives up some pictures for validation, or `train`,
`validation` (`val`) and `test`. Pictures stay bytes, (channels, height, width); one channel where all of them are grey.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tunecli.data import PICTURE_SUFFIXES
from tunecli.data.mapped import streams
from tunecli.data.npz import COMPLETE, PARTS
from tunecli.data.raw import Arrays
from tunecli.errors import DataError
from tunecli.machine import cores

GREY = ("1", "L", "LA", "La")
COLOUR = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
"""Pillow's modes of eight bits a channel."""

NAMED = 3
"""Files that a notice names before it only counts."""

Array = np.ndarray[Any, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Form:
    """What pictures are made: `channels` 1 or 3, `size` (height, width), to which they are resized where `resized`."""

    channels: int
    size: tuple[int, int]
    resized: bool

    @classmethod
    def of(cls, preprocessing: Mapping[str, Any]) -> Form:
        """What `as_dict` wrote."""
        height, width = preprocessing["size"]
        return cls(preprocessing["channels"], (height, width), preprocessing["resized"])

    def as_dict(self) -> dict[str, Any]:
        return {"channels": self.channels, "size": list(self.size), "resized": self.resized}


def read(folder: Path, wanted: Sequence[int] | None, fitted: Mapping[str, Any], stream: bool | None) -> Arrays:
    """The pictures of class folders, each with the name of its folder, resized to `wanted` (height, width) if any is
    given. `fitted` is an earlier preprocessing, whose form they take. Raises DataError, which names the file."""
    others: list[Path] = []
    files = [
        [(file, label) for label, own in classes.items() for file in _pictures(own, others)]
        for classes in _class_folders(folder)
    ]
    every = [file for part in files for file, _ in part]
    earlier = Form.of(fitted) if fitted.get("kind") == "pictures" else None
    form = _form(every, wanted, earlier)
    if stream:
        raise DataError(
            "pictures do not stream, got data.stream = true", hint="leave it out: they are read into memory"
        )
    taken = len(every) * form.channels * form.size[0] * form.size[1]
    if streams(stream, taken):
        size = f"{taken / 2**30:.1f} GiB, more than a quarter of the memory"
        raise DataError(
            f"the {len(every):,} pictures of {folder.name} take {size}",
            hint="make them smaller: size = [64, 64] in [data]; data.stream = false reads them all the same",
        )
    pairs = tuple((decode([file for file, _ in part], form), np.array([label for _, label in part])) for part in files)
    notices = tuple(_left_out(folder, others))
    return Arrays(folder.resolve().name, pairs, pictures=form.as_dict(), notices=notices)


def pictures_in(path: Path) -> tuple[list[Path], list[str]]:
    """A picture, or all those in a folder and below, sorted, with a notice of what else is there. Raises DataError."""
    if not path.is_dir():
        return [path], []
    others: list[Path] = []
    return _pictures(path, others), _left_out(path, others)


def check_form(files: Sequence[Path], form: Form) -> list[str]:
    """Raises DataError where one of the pictures cannot take the form; a notice where colours are lost."""
    heads = _each(_head, files)
    if not form.resized:
        _check_sizes(files, [size for size, _ in heads], form.size)
    coloured = sum(not grey for _, grey in heads) if form.channels == 1 else 0
    return [f"{coloured:,} of {len(files):,} pictures in colour are made grey, as in training"] if coloured else []


def _class_folders(folder: Path) -> list[dict[str, Path]]:
    """The folder of each class, part by part."""
    folders = {own.name: own for own in sorted(folder.iterdir()) if own.is_dir() and not own.name.startswith(".")}
    named = {PARTS[name.lower()]: own for name, own in folders.items() if name.lower() in PARTS}
    parts = [folder]
    if named and len(named) == len(folders):
        order = next((own for own in COMPLETE if set(own) == set(named)), None)
        if order is None:
            held = ", ".join(sorted(named))
            raise DataError(f"{folder} holds {held}", hint="give train and test, or train, validation and test")
        parts = [named[str(part)] for part in order]
    found = [{at.name: at for at in sorted(own.iterdir()) if at.is_dir() and at.name[0] != "."} for own in parts]
    for own, classes in zip(parts, found, strict=True):
        strange = classes.keys() - found[0].keys()
        if strange:
            raise DataError(
                f"{own} holds a class {min(strange)!r}, training has none", hint="rename or move its folder"
            )
    if len(found[0]) < 2:
        only = f"one class folder only, {min(found[0])!r}" if found[0] else "no class folders"
        where = parts[0].name
        raise DataError(f"{parts[0]} holds {only}", hint=f"a folder a class: {where}/cat/1.jpg, {where}/dog/1.jpg")
    return found


def _pictures(folder: Path, others: list[Path]) -> list[Path]:
    """The pictures of a folder and those below, sorted; what else is there, but hidden files, joins the `others`."""
    pictures: list[Path] = []
    own = folder.resolve()
    for path, folders, names in os.walk(folder, followlinks=True):
        if path != str(folder) and (own == (real := Path(path).resolve()) or real in own.parents):
            folders.clear()  # a link back to where it lies: all would be there again
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                (pictures if name.lower().endswith(PICTURE_SUFFIXES) else others).append(Path(path, name))
    if not pictures:
        raise DataError(f"{folder} holds no pictures", hint=f"pictures end in {', '.join(PICTURE_SUFFIXES)}")
    return pictures


def _left_out(folder: Path, others: Sequence[Path]) -> list[str]:
    """A notice of files that are no pictures."""
    if not others:
        return []
    shown = ", ".join(str(own.relative_to(folder)) for own in others[:NAMED]) + (", ..." if len(others) > NAMED else "")
    what = "1 file is no picture and" if len(others) == 1 else f"{len(others):,} files are no pictures and"
    return [f"{folder.name}: {what} left out: {shown}"]


def _form(files: Sequence[Path], size: Sequence[int] | None, earlier: Form | None) -> Form:
    heads = _each(_head, files)
    sizes = [own for own, _ in heads]
    channels = 1 if all(grey for _, grey in heads) else 3
    if earlier is not None:
        channels = earlier.channels
        size = size or (earlier.size if earlier.resized else None)
    if size is not None:
        return Form(channels, (size[0], size[1]), resized=True)
    _check_sizes(files, sizes, sizes[0])
    return Form(channels, sizes[0], resized=False)


def _check_sizes(files: Sequence[Path], sizes: Sequence[tuple[int, int]], wanted: tuple[int, int]) -> None:
    other = next((place for place, own in enumerate(sizes) if own != wanted), None)
    if other is not None:
        first = f"{files[0]} is {_by(sizes[0])}" if sizes[0] == wanted else f"the model takes {_by(wanted)}"
        raise DataError(
            f"{files[other]} is {_by(sizes[other])} pixels, {first}",
            hint="all pictures have one size; size = [64, 64] in [data], --set data.size=[64,64], resizes them",
        )


def _by(size: tuple[int, int]) -> str:
    """As image viewers say it, the width first."""
    return f"{size[1]} x {size[0]}"


def _head(file: Path) -> tuple[tuple[int, int], bool]:
    """Height and width of a picture held upright, and whether it is grey; its pixels are not decoded."""
    with Image.open(file) as picture:
        if picture.mode not in (*GREY, *COLOUR):
            raise DataError(f"{file} has pixels of {picture.mode}, not of bytes", hint="save it with 8 bits a channel")
        turned = picture.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        width, height = reversed(picture.size) if turned else picture.size
        return (height, width), picture.mode in GREY


_ORIENTATION = 0x0112
"""EXIF's: how a camera was held."""


def _pixels(form: Form, file: Path) -> Array:
    """(C, H, W)"""
    with Image.open(file) as picture:
        made = ImageOps.exif_transpose(picture).convert("L" if form.channels == 1 else "RGB")
    height, width = form.size
    if made.size != (width, height):
        made = made.resize((width, height), Image.Resampling.BILINEAR)  # of all pixels beneath one, where it shrinks
    return np.asarray(made).reshape(height, width, form.channels).transpose(2, 0, 1)


def decode(files: Sequence[Path], form: Form) -> Array:
    """The pictures (N, C, H, W) in the form. Raises DataError, which names the file."""
    pixels = np.empty((len(files), form.channels, *form.size), np.uint8)

    def put(place: int) -> None:
        pixels[place] = _named(partial(_pixels, form), files[place])

    with ThreadPoolExecutor(cores()) as pool:
        for _ in pool.map(put, range(len(files))):
            pass
    return pixels


def _each(function: Callable[[Path], T], files: Iterable[Path]) -> list[T]:
    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(partial(_named, function), files))


def _named(function: Callable[[Path], T], file: Path) -> T:
    """What a function makes of a file. Raises DataError, which names it."""
    try:
        return function(file)
    except DataError:
        raise
    except Exception as error:  # Pillow's readers raise whatever a damaged file makes them
        # Its own words may hold the whole path once more.
        why = "it is no picture" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
        raise DataError(f"{file} cannot be read: {why}", hint="replace it, or take it out of the folder") from error
