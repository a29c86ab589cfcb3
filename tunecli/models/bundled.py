"""The bundled models: `linear`, `mlp` and `cnn`. The last parametrized module of each is called `head`."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tunecli.errors import ModelError, did_you_mean

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU}


def build(
    name: str, keys: Mapping[str, Any], features: tuple[int, ...], outputs: int, categories: tuple[int, ...] = ()
) -> nn.Module:
    """The bundled model `name` for samples of shape `features`, of which the last may be codes of `categories`."""
    if name == "linear":
        return linear(features, outputs, categories)
    if name == "mlp":
        return mlp(features, outputs, categories, **keys)
    return cnn(features, outputs, **keys)


class Embed(nn.Module):
    """Samples (N, F) whose last features are codes of categories -> (N, wider): each code becomes a learned vector."""

    def __init__(self, features: int, categories: Sequence[int]) -> None:
        super().__init__()
        self.numbers = features - len(categories)
        widths = [embedding_width(codes) for codes in categories]
        self.tables = nn.ModuleList(nn.Embedding(codes, width) for codes, width in zip(categories, widths, strict=True))
        self.width = self.numbers + sum(widths)
        for table, width in zip(self.tables, widths, strict=True):
            # As long as the column of zeros and a one that it stands for.
            nn.init.normal_(table.get_parameter("weight"), std=width**-0.5)

    def forward(self, samples: Tensor) -> Tensor:
        codes = samples[:, self.numbers :].long()
        vectors = [table(codes[:, place]) for place, table in enumerate(self.tables)]
        return torch.cat([samples[:, : self.numbers], *vectors], dim=1)


def embedding_width(codes: int) -> int:
    """fastai's rule of thumb, up to 50: 14 for 51 codes, 50 from about 470 on."""
    return min(50, round(1.6 * math.pow(codes, 0.56)))


def _first(features: tuple[int, ...], categories: tuple[int, ...]) -> tuple[dict[str, nn.Module], int]:
    """The layer that makes samples flat, or embeds their codes, and how wide they are then."""
    if not categories:
        return {"flatten": nn.Flatten()}, math.prod(features)
    embed = Embed(math.prod(features), categories)
    return {"embed": embed}, embed.width


def linear(features: tuple[int, ...], outputs: int, categories: tuple[int, ...] = ()) -> nn.Module:
    """Logistic or linear regression: one layer."""
    first, width = _first(features, categories)
    return nn.Sequential(OrderedDict(first, head=nn.Linear(width, outputs)))


def mlp(
    features: tuple[int, ...],
    outputs: int,
    categories: tuple[int, ...] = (),
    *,
    hidden: int | Sequence[int] = (128,),
    activation: str = "relu",
    dropout: float = 0.0,
) -> nn.Module:
    """Fully connected layers of the widths in `hidden`, an activation and dropout after each."""
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ModelError(f"unknown activation {activation!r} of mlp", hint=did_you_mean(str(activation), ACTIVATIONS))
    first, width = _first(features, categories)
    layers: OrderedDict[str, nn.Module] = OrderedDict(first)
    for number, wider in enumerate(_widths("hidden", hidden), start=1):
        layers[f"layer{number}"] = nn.Linear(width, wider)
        layers[f"{activation}{number}"] = ACTIVATIONS[activation]()
        if dropout:
            layers[f"dropout{number}"] = _dropout(dropout)
        width = wider
    layers["head"] = nn.Linear(width, outputs)
    return nn.Sequential(layers)


def cnn(
    features: tuple[int, ...],
    outputs: int,
    channels: int | Sequence[int] = (16, 32),
    hidden: int = 64,
    dropout: float = 0.0,
) -> nn.Module:
    """3x3 convolutions with ReLU and 2x2 max-pooling, then one hidden layer. Flat square samples are reshaped."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    depth, height, width = _image_shape(features)
    if len(features) == 1:
        layers["image"] = nn.Unflatten(1, (1, height, width))
    for number, deeper in enumerate(_widths("channels", channels), start=1):
        layers[f"conv{number}"] = nn.Conv2d(depth, deeper, kernel_size=3, padding=1)
        if min(height, width) >= 2:
            # Before the ReLU, which gives the same and then has a quarter of the work.
            layers[f"pool{number}"] = nn.MaxPool2d(2)
            height, width = height // 2, width // 2
        layers[f"relu{number}"] = nn.ReLU()
        depth = deeper
    layers["flatten"] = nn.Flatten()
    if not _is_width(hidden):
        raise ModelError(f"hidden of cnn must be one whole number above zero, got {hidden!r}")
    layers["layer"] = nn.Linear(depth * height * width, hidden)
    layers["relu"] = nn.ReLU()
    if dropout:
        layers["dropout"] = _dropout(dropout)
    layers["head"] = nn.Linear(hidden, outputs)
    return nn.Sequential(layers)


def _image_shape(features: tuple[int, ...]) -> tuple[int, int, int]:
    if len(features) == 3:
        return features[0], features[1], features[2]
    side = math.isqrt(math.prod(features))
    if len(features) == 1 and side * side == features[0]:
        return 1, side, side
    raise ModelError(
        f"cnn needs images (channels, height, width) or flat squares, got samples of shape {features}",
        hint='use source = "mlp" in [model]',
    )


def _widths(key: str, value: int | Sequence[int]) -> tuple[int, ...]:
    widths = tuple(value) if isinstance(value, Sequence) else (value,)
    if not all(_is_width(width) for width in widths):
        raise ModelError(f"{key} must be whole numbers above zero, got {value!r}")
    return widths


def _is_width(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _dropout(probability: float) -> nn.Dropout:
    if not isinstance(probability, int | float) or not 0 <= probability < 1:
        raise ModelError(f"dropout must lie between 0 and 1, got {probability!r}")
    return nn.Dropout(probability)
