"""Bundled models and a user's own, through `models.build`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tunecli import models
from tunecli.errors import InputError, ModelError, SourceError

EXAMPLES: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    ("linear", {}, (64,)),
    ("linear", {}, (3, 8, 8)),
    ("mlp", {}, (64,)),
    ("mlp", {"hidden": 7}, (30,)),
    ("mlp", {"hidden": []}, (30,)),
    ("mlp", {"hidden": (16, 8), "activation": "gelu", "dropout": 0.25}, (2, 5)),
    ("mlp", {"hidden": [16], "activation": "tanh"}, (1,)),
    ("mlp", {"hidden": [16], "activation": "silu"}, (4,)),
    ("cnn", {}, (64,)),
    ("cnn", {}, (3, 9, 7)),
    ("cnn", {"channels": [4, 4, 4, 4], "hidden": 10, "dropout": 0.5}, (1, 4, 4)),
    ("cnn", {"channels": 4}, (1, 1, 1)),
]


def build(source: str, keys: dict[str, Any], features: tuple[int, ...] = (64,), outputs: int = 10, **more: Any) -> Any:
    return models.build(source, keys, **{"base": Path(), "features": features, "outputs": outputs, "seed": 0, **more})


def widths(model: nn.Module) -> list[int]:
    return [layer.out_features for layer in model.modules() if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize(("source", "keys", "features"), EXAMPLES)
@pytest.mark.parametrize("outputs", [1, 10])
def test_a_bundled_model_maps_samples_to_outputs(
    source: str, keys: dict[str, Any], features: tuple[int, ...], outputs: int
) -> None:
    model = build(source, keys, features, outputs)
    assert model(torch.zeros(5, *features)).shape == (5, outputs)


@pytest.mark.parametrize(("source", "keys", "features"), EXAMPLES)
def test_the_last_module_with_weights_is_the_head(source: str, keys: dict[str, Any], features: tuple[int, ...]) -> None:
    model = build(source, keys, features)
    parametrized = [name for name, module in model.named_children() if list(module.parameters())]
    assert parametrized[-1] == "head"


def test_keys_shape_the_model() -> None:
    assert widths(build("mlp", {"hidden": [32, 16]})) == [32, 16, 10]
    assert widths(build("mlp", {"hidden": 5})) == [5, 10]
    assert widths(build("mlp", {})) == [128, 10]
    mlp = build("mlp", {"hidden": [8, 8], "activation": "tanh", "dropout": 0.1})
    assert sum(isinstance(module, nn.Tanh) for module in mlp) == 2
    assert [module.p for module in mlp if isinstance(module, nn.Dropout)] == [0.1, 0.1]
    assert not any(isinstance(module, nn.Dropout) for module in build("mlp", {"dropout": 0.0}))
    cnn = build("cnn", {"channels": [4, 6], "hidden": 12})
    assert [module.out_channels for module in cnn if isinstance(module, nn.Conv2d)] == [4, 6]
    assert widths(cnn) == [12, 10]


@pytest.mark.parametrize("source", sorted(models.BUNDLED))
def test_one_seed_gives_the_same_weights_and_another_seed_others(source: str) -> None:
    first, again, other = (build(source, {}, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_building_leaves_the_process_random_state_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("from torch import nn\ndef make():\n    return nn.Linear(3, 2)\n")
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    for source, base in [("linear", tmp_path), ("mlp", tmp_path), ("cnn", tmp_path), ("own.py:make", tmp_path)]:
        build(source, {}, base=base, seed=99)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("source", "keys", "features", "message", "hint"),
    [
        ("resnet", {}, (64,), "unknown model 'resnet'", "cnn, linear, mlp"),
        ("mpl", {}, (64,), "unknown model 'mpl'", "'mlp'"),
        ("mlp", {"hiden": [8]}, (64,), "unknown key 'hiden'", "'hidden'"),
        ("linear", {"hidden": [8]}, (64,), "unknown key 'hidden'", "it takes none"),
        ("mlp", {"hidden": [0]}, (64,), r"hidden must be whole numbers above zero, got \[0\]", None),
        ("mlp", {"hidden": [8.5]}, (64,), "got .8.5", None),
        ("mlp", {"hidden": 8.5}, (64,), "got 8.5", None),
        ("mlp", {"hidden": "8"}, (64,), "got '8'", None),
        ("mlp", {"hidden": True}, (64,), "got True", None),
        ("mlp", {"activation": "rleu"}, (64,), "unknown activation 'rleu'", "'relu'"),
        ("mlp", {"activation": ["relu"]}, (64,), "unknown activation", None),
        ("mlp", {"dropout": 1.0}, (64,), "dropout must lie between 0 and 1, got 1.0", None),
        ("mlp", {"dropout": -0.1}, (64,), "got -0.1", None),
        ("mlp", {"dropout": "half"}, (64,), "got 'half'", None),
        ("cnn", {"channels": [4, -1]}, (64,), "channels must be whole numbers above zero", None),
        ("cnn", {"hidden": [64, 32]}, (64,), "hidden of cnn must be one whole number", None),
        ("cnn", {"hidden": 0}, (64,), "got 0", None),
        ("cnn", {}, (30,), r"flat squares, got samples of shape \(30,\)", "mlp"),
        ("cnn", {}, (8, 8), "needs images", "mlp"),
    ],
)
def test_wrong_keys_are_model_errors(
    source: str, keys: dict[str, Any], features: tuple[int, ...], message: str, hint: str | None
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        build(source, keys, features)
    assert hint is None or hint in (caught.value.hint or "")


OWN = """
import torch
from torch import nn
from layers import Twice          # beside this file

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.body = nn.Linear(3, width)
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        return self.head(Twice()(self.body(x)))

def make(width, frozen=False):
    from layers import Twice      # when it is called, too
    net = Net(width)
    net.body.requires_grad_(not frozen)
    return net

def all_frozen():
    return Net().requires_grad_(False)

def no_module():
    return {"weights": torch.zeros(3)}

def raises(width):
    raise ValueError(f"a width of {width} is odd")

def lazy():
    return nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))

def shaped():
    model = lazy()
    model(torch.zeros(1, 3))
    return model

def compiled():
    return nn.DataParallel(torch.compile(Net()))
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "layers.py").write_text(
        "from torch import nn\nclass Twice(nn.Module):\n    def forward(self, x):\n        return 2 * x\n"
    )
    (tmp_path / "net.py").write_text(OWN)
    return tmp_path


def test_a_users_own_function_or_class_is_a_model(own: Path) -> None:
    model = build("net.py:make", {"width": 6, "frozen": True}, base=own)
    assert model(torch.zeros(5, 3)).shape == (5, 2)
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, False, True, True]
    assert widths(build("net.py:Net", {}, base=own)) == [4, 2]


def test_a_model_is_taken_out_of_what_computes_it_otherwise(own: Path) -> None:
    assert (
        build("net.py:compiled", {}, base=own).state_dict().keys()
        == build("net.py:Net", {}, base=own).state_dict().keys()
    )
    assert build("net.py:shaped", {}, base=own)(torch.zeros(5, 3)).shape == (5, 2)


def test_a_users_model_is_drawn_from_the_seed(own: Path) -> None:
    first, again, other = (build("net.py:Net", {}, base=own, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)


@pytest.mark.parametrize(
    ("source", "keys", "error", "message", "hint"),
    [
        ("net.py:no_module", {}, ModelError, "must return a torch.nn.Module, got dict", None),
        ("net.py:all_frozen", {}, ModelError, "without weights to train", None),
        ("net.py:lazy", {}, ModelError, "weights have no shape yet: 0.weight", "give the layer its sizes"),
        ("net.py:make", {}, SourceError, "missing a required argument: 'width'", "it takes width, frozen"),
        (
            "net.py:make",
            {"width": 3, "wide": 3},
            SourceError,
            "unexpected keyword argument 'wide'",
            "gives width, wide",
        ),
        ("net.py:raises", {"width": 3}, SourceError, r"a width of 3 is odd \(net.py, line 28\)", None),
        ("net.py:mak", {}, SourceError, "net.py has no function 'mak'", "did you mean 'make'"),
        ("none.py:make", {}, SourceError, "no such file: .*none.py", "relative"),
    ],
)
def test_what_can_be_wrong_with_a_users_model(
    own: Path, source: str, keys: dict[str, Any], error: type[InputError], message: str, hint: str | None
) -> None:
    with pytest.raises(error, match=message) as caught:
        build(source, keys, base=own)
    assert hint is None or hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import torch\ndef make(:\n", r"own.py cannot be loaded: SyntaxError: .* \(line 2\)"),
        ("\nimport no_such_module\n", r"No module named 'no_such_module' \(own.py, line 2\)"),
        ("import sys\nsys.exit('usage: own.py FILE')\n", r"SystemExit: usage: own.py FILE \(own.py, line 2\)"),
    ],
)
def test_a_file_that_cannot_be_loaded_names_the_line_and_can_be_mended(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(SourceError, match=message):
        build("own.py:make", {}, base=tmp_path)
    (tmp_path / "own.py").write_text("from torch import nn\ndef make():\n    return nn.Linear(2, 2)\n# mended\n")
    assert isinstance(build("own.py:make", {}, base=tmp_path), nn.Linear)
