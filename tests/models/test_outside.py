"""Any network by its import path: what is loaded into it, and what is refused in one line."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn

from ablation.errors import InputError
from ablation.models.foreign import fitted
from ablation.models.outside import build_outside, check_logits, in_pixels, locate
from ablation.runs.state_dicts import load_into, load_weights_file
from tests.support.kuangliu import ResNet

SMALL: dict[str, Any] = {"blocks": [1, 1], "width": 4, "classes": 5}
NETS = """
import torch
from torch import nn

print("imported", __name__)
LIMIT = 3
ready = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))


class Noisy(nn.Module):
    def forward(self, x):
        raise RuntimeError("mat1 and mat2\\nshapes")


def build(depth=2):
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5), *[nn.Linear(5, 5)] * depth)


def parallel():
    return nn.DataParallel(build())


def number():
    return 3
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A module of another package: found from the current directory, imported once."""
    name = f"pkg_{abs(hash(tmp_path))}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "nets.py").write_text(NETS)
    (tmp_path / name / "script.py").write_text("import argparse\nraise SystemExit(2)\n")
    (tmp_path / name / "needs.py").write_text("import no_such_package\n")
    (tmp_path / name / "broken.py").write_text("1 / 0\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield name
    for module in [module for module in sys.modules if module.startswith(name)]:
        del sys.modules[module]


def test_a_class_a_function_or_a_network_is_built(nets):
    deep: Any = build_outside(f"{nets}.nets:build", {"depth": 3})
    assert len(deep) == 5
    again: Any = build_outside(f"{nets}.nets:build", {"depth": 3})
    assert torch.equal(deep[1].weight, again[1].weight)
    assert isinstance(build_outside(f"{nets}.nets:ready", {}), nn.Sequential)
    assert not isinstance(build_outside(f"{nets}.nets:parallel", {}), nn.DataParallel)
    assert isinstance(build_outside("tests.support.kuangliu:ResNet", SMALL), ResNet)


def test_building_moves_nobody_elses_random_numbers(nets):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    build_outside(f"{nets}.nets:build", {})
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    ("target", "kwargs", "message"),
    [
        ("nets.build", {}, "write <module>:<class or function>, as in mypkg.nets:build"),
        ("os;x:y", {}, "write <module>:<class or function>"),
        ("PKG.nope:build", {}, "there is no module PKG.nope, neither in"),
        ("nowhere_at_all.nets:build", {}, "run the command in the folder that holds it"),
        ("PKG.needs:build", {}, "No module named 'no_such_package'); install it"),
        ("PKG.broken:build", {}, "importing PKG.broken fails (ZeroDivisionError"),
        ("PKG.script:build", {}, "runs a program that exits"),
        ("PKG.nets:biuld", {}, "PKG.nets has no biuld; did you mean build?"),
        ("PKG.nets:LIMIT", {}, "it is int; name a class"),
        ("PKG.nets:number", {}, "it returns int; it must return a torch.nn.Module"),
        ("PKG.nets:build", {"deep": 3}, "called with (deep=3) it fails (TypeError: build() got"),
    ],
)
def test_what_cannot_be_built_is_one_line(nets, target, kwargs, message):
    target = target.replace("PKG", nets)
    with pytest.raises(InputError) as error:
        build_outside(target, kwargs)
    text = str(error.value)
    assert text.startswith(f"model.target={target}: ")
    assert message.replace("PKG", nets) in text
    assert "\n" not in text


def test_a_script_that_parses_arguments_does_not_end_the_command(nets):
    with pytest.raises(InputError, match="exits"):
        locate(f"{nets}.script:Net")


class Fixed(nn.Module):
    """Answers with what it was made with."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer(x) if callable(self.answer) else self.answer


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Linear(7, 5), "does not take images [2, 3, 8, 8], [N, C, H, W] (RuntimeError: "),
        (Fixed(lambda x: (x, x)), "returns tuple for images; it must return logits [N, 5]"),
        (Fixed(torch.zeros(2, 7)), "returns [2, 7] for images [2, 3, 8, 8]; the data has 5"),
        (Fixed(torch.zeros(2, 5, 1)), "returns [2, 5, 1] for images"),
        (Fixed(torch.full((2, 5), torch.nan)), "NaN or infinite logits"),
        (Fixed(torch.rand(2, 5).softmax(1)), "returns probabilities; attacks need logits"),
    ],
)
def test_a_network_that_gives_no_logits_is_refused(net, message):
    with pytest.raises(InputError) as error:
        check_logits(in_pixels(net, None, None), torch.rand(2, 3, 8, 8), 5, "pkg:net")
    assert str(error.value).startswith("model.target=pkg:net: the network ")
    assert message in str(error.value)


def test_log_probabilities_and_a_third_partys_network_pass():
    x = torch.rand(2, 3, 8, 8)
    check_logits(in_pixels(Fixed(torch.rand(2, 5).log_softmax(1)), None, None), x, 5, "a:b")
    net = in_pixels(ResNet(**SMALL), [0.5] * 3, [0.25] * 3).train()
    check_logits(net, x, 5, "a:b")
    assert net.training


def trained() -> nn.Module:
    """Random weights and statistics: no two layers are alike."""
    torch.manual_seed(0)
    net = ResNet(**SMALL)
    for value in (*net.parameters(), *net.buffers()):
        if value.is_floating_point():
            value.data = 0.5 + torch.rand_like(value)
    return net.eval()


PLAIN = "{}"
WRAPPED = ["{}", "module.{}", "model.{}", "module.model.{}", "_orig_mod.{}", "module._orig_mod.{}"]


@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize(
    "place",
    [(), ("state_dict",), ("net",), ("model_state_dict",), ("ema",), ("model",), ("ema", "net")],
)
def test_state_dicts_as_they_are_found_fit(tmp_path, wrapper, place):
    theirs = trained()
    held = {wrapper.format(name): value for name, value in theirs.state_dict().items()}
    for key in reversed(place):
        held = {key: held, "epoch": 3}
    torch.save(held, tmp_path / "net.pt")
    weights, _ = load_weights_file(tmp_path / "net.pt")
    net = in_pixels(ResNet(**SMALL), None, None).eval()
    layers, constants = fitted(weights, net)
    load_into(net.body, layers, "net.pt")
    x = torch.rand(4, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(net(x), theirs(x))
    assert constants == {}


def test_of_several_state_dicts_the_first_is_taken_and_said(tmp_path, capsys):
    first, second = trained().state_dict(), ResNet(**SMALL).state_dict()
    torch.save({"ema": second, "state_dict": first}, tmp_path / "net.pt")
    weights, _ = load_weights_file(tmp_path / "net.pt")
    assert torch.equal(weights["conv1.weight"], first["conv1.weight"])
    assert "holds state_dict and ema; state_dict is taken" in capsys.readouterr().err


def test_torchs_averaged_model_is_read(tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(trained())
    torch.save(averaged.state_dict(), tmp_path / "net.pt")
    weights, _ = load_weights_file(tmp_path / "net.pt")
    assert weights.keys() == trained().state_dict().keys()


def test_a_file_that_holds_itself_is_no_state_dict(tmp_path):
    held: dict[str, object] = {}
    held["model"] = held
    torch.save(held, tmp_path / "net.pt")
    with pytest.raises(InputError, match="holds no state dict"):
        load_weights_file(tmp_path / "net.pt")


class Normalised(nn.Module):
    """A network with its own normalisation inside, as in RobustBench's zoo."""

    model: nn.Module

    def __init__(self, mean: float = 0.5, std: float = 0.25) -> None:
        super().__init__()
        self.register_buffer("mu", torch.full((3, 1, 1), mean))
        self.register_buffer("sigma", torch.full((3, 1, 1), std))
        self.model = trained()

    def forward(self, x):
        return self.model((x - self.mu) / self.sigma)


def test_a_normalisation_inside_is_filled_and_stays_where_the_weights_have_none():
    x = torch.rand(4, 3, 8, 8)
    theirs = Normalised(0.3, 0.2).eval()
    for weights, expected in (
        (theirs.state_dict(), theirs),
        (trained().state_dict(), Normalised().eval()),  # bare weights for a wrapped network
    ):
        ours = in_pixels(Normalised(), None, None).eval()
        for value in ours.body.parameters():
            value.data.zero_()
        layers, constants = fitted(weights, ours)
        load_into(ours.body, layers, "net.pt")
        with torch.no_grad():
            assert torch.equal(ours(x), expected(x))
        assert constants == {}


def test_constants_without_a_layer_are_taken_over_or_refused():
    weights = {f"1.{name}": value for name, value in trained().state_dict().items()}
    weights |= {"0.mean": torch.full((3,), 0.3), "0.std": torch.full((3,), 0.2)}
    ours = in_pixels(ResNet(**SMALL), [0.5] * 3, [0.25] * 3)
    layers, constants = fitted(weights, ours)
    load_into(ours.body, layers, "net.pt")
    torch.testing.assert_close(constants["mean"], torch.full((1, 3, 1, 1), 0.3))
    torch.testing.assert_close(constants["std"], torch.full((1, 3, 1, 1), 0.2))
    with pytest.raises(InputError, match=r"set model\.normalize=true"):
        fitted(weights, in_pixels(ResNet(**SMALL), None, None))


def test_what_does_not_fit_is_listed_by_name_and_shape():
    weights = {**trained().state_dict(), "extra": torch.zeros(2, 3)}
    weights["linear.weight"] = torch.zeros(7, 8)
    del weights["linear.bias"]
    net = in_pixels(ResNet(**SMALL), None, None)
    layers, _ = fitted(weights, net)
    with pytest.raises(InputError) as error:
        load_into(net.body, layers, "net.pt", "set model.kwargs")
    for part in (
        "missing: linear.bias [5]",
        "unexpected: extra [2, 3]",
        "linear.weight is [7, 8] there and [5, 8] in the model",
        "; set model.kwargs",
    ):
        assert part in str(error.value)


def test_kuanglius_resnet18_is_the_published_one():
    net = build_outside("tests.support.kuangliu:ResNet", {})
    assert sum(value.numel() for value in net.parameters()) == 11_173_962
