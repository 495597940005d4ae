"""Evaluating a network: verdicts, bookkeeping, flags, and everything that must stay as it was."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from ablation.errors import InputError, InterruptedRunError, NonFiniteError
from ablation.evaluation import (
    AdversarialMargin,
    ApgdCe,
    ApgdT,
    AttackBase,
    AttackError,
    AutoAttack,
    Entry,
    FabT,
    Family,
    Fgsm,
    Pgd,
    Request,
    Spsa,
    Square,
    evaluate,
)
from ablation.evaluation.checks import diagnose
from ablation.evaluation.probes import NAMES
from ablation.evaluation.results import Attacked
from ablation.numerics.functional import pgd
from ablation.numerics.modes import frozen_parameters
from ablation.random import generator
from tests.support.attacks import attacked
from tests.support.counting import Counting

EPS = 0.05
SIDE, CLASSES = 6, 10


def make_images(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ten noisy patterns: uint8 [n, 1, 6, 6] and labels."""
    g = generator(seed, "test/images")
    patterns = torch.rand(CLASSES, 1, SIDE, SIDE, generator=generator(0, "test/patterns"))
    y = torch.arange(n) % CLASSES
    x = 0.25 + 0.5 * patterns[y] + 0.15 * torch.randn(n, 1, SIDE, SIDE, generator=g)
    return (x.clamp(0, 1) * 255).round().to(torch.uint8), y


def make_net() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(SIDE**2, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)
        )


@pytest.fixture(scope="module")
def trained() -> Any:
    """A network after a little adversarial training."""
    net = make_net()
    images, y = make_images(400, seed=1)
    x = images / 255
    adam, radius = torch.optim.Adam(net.parameters(), 0.01), torch.full((400,), EPS)
    for _ in range(60):
        net.eval()
        x_adv = pgd(lambda p: nn.functional.cross_entropy(net(p), y, reduction="none"), x, x,
                    radius, radius / 2, 3, "linf")  # fmt: skip
        net.train()
        adam.zero_grad()
        nn.functional.cross_entropy(net(x_adv), y).backward()
        adam.step()
    return net.eval()


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    return make_images(120)


SMALL = AutoAttack("custom", n_iter=8, targets=9, queries=60)
SUITE: dict[str, Any] = {
    "clean": None,
    "fgsm": Fgsm(),
    "pgd10": Pgd(10, 0.25, "clean"),
    "pgd20": Pgd(20, 0.25, "clean"),
    "cw": Pgd(10, 0.25, loss="cw"),
    "aa": SMALL,
    "apgd_ce": ApgdCe(8),
    "apgd_t": ApgdT(8),
    "fab": FabT(8),
    "square": Square(60),
    "spsa": Spsa(8, 6, n=50),
}


def run(net, data, attacks, eps=EPS, **kwargs):
    images, y = data
    return evaluate(net, images, y, Request(attacks, eps, **kwargs))


@pytest.fixture(scope="module")
def result(trained, data):
    return run(trained, data, SUITE, batch_size=50)


def verdicts_of(examples: pd.DataFrame) -> pd.DataFrame:
    """Without the numbers that a batch's arithmetic moves in their last digit."""
    return examples.drop(columns="logit_gap")


def values(found) -> dict[str, float]:
    return {entry.metric: entry.value for entry in found.entries}


def test_clean_accuracy_and_predictions_are_the_networks(result, trained, data):
    images, y = data
    with torch.no_grad():
        predicted = trained(images / 255).argmax(1)
    assert result.entries[0] == Entry(
        "clean", "test", 100 * (predicted == y).double().mean().item(), "percent", 120, {}
    )
    assert result.examples["prediction"].tolist() == predicted.tolist()
    assert result.examples["index"].tolist() == list(range(120))
    assert 60 < result.entries[0].value < 100


def test_stronger_attacks_leave_less(result):
    found = values(result)
    assert found["clean"] > found["fgsm"] >= found["pgd10"] >= found["pgd20"] > 0
    assert all(found["aa"] <= found[part] for part in ("apgd_ce", "apgd_t", "fab", "square"))
    assert found["aa"] <= found["cw"]
    assert found["aa"] < found["square"]


def test_values_are_the_tables_columns(result):
    table = result.examples
    for entry in result.entries[1:]:
        column = table[f"{entry.metric}_robust"]
        assert entry.n == column.notna().sum()
        assert entry.value == pytest.approx(100 * column.dropna().astype(bool).mean())
        assert not (column.fillna(False) & ~table["clean_correct"]).any()
    assert table["aa_robust"].dtype == bool


def test_autoattack_knows_what_broke_an_example(result):
    table = result.examples
    broken_by = table["aa_broken_by"]
    assert (broken_by.isna() == table["aa_robust"]).all()
    assert ((broken_by == "clean").fillna(False) == ~table["clean_correct"]).all()
    assert set(broken_by.dropna()) <= {"clean", "apgd_ce", "apgd_t", "fab_t", "square"}
    # Its first part is the attack of the same name: same images, batches and seed.
    first = table["clean_correct"] & ~table["apgd_ce_robust"]
    assert ((broken_by == "apgd_ce").fillna(False) == first).all()
    assert (broken_by == "apgd_t").any()


def test_the_first_metric_that_broke_an_example_is_named(result):
    table = result.examples
    robust = table[[f"{entry.metric}_robust" for entry in result.entries[1:]]]
    for i, name in enumerate(table["first_broken_by"]):
        fallen = [c for c in robust if robust[c][i] is not pd.NA and not robust[c][i]]
        if not table["clean_correct"][i]:
            assert name == "clean"
        elif fallen:
            assert f"{name}_robust" == fallen[0]
        else:
            assert pd.isna(name)


class Wrapped(nn.Module):
    """Something wrong with a good network."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.spoil(self.net(x), x)

    def spoil(self, z: Tensor, x: Tensor) -> Tensor:
        raise NotImplementedError


class Scaled(Wrapped):
    """At 1e4, softmax in fp32 is exactly one-hot: the loss has no gradient, the margin has."""

    def __init__(self, net: nn.Module, factor: float) -> None:
        super().__init__(net)
        self.factor = factor

    def spoil(self, z, x):
        return self.factor * z


def package_reference(net, images, y, norm, eps, attack, batch_size):
    """pyautoattack's own loop, its parts shortened if asked to."""
    import pyautoattack
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

    name = {"linf": "Linf", "l2": "L2"}[norm]
    whole = pyautoattack.AutoAttack(net, norm=name, eps=eps, seed=0, version="standard")
    if attack.version != "standard":
        common = {"n_iter": attack.n_iter, "norm": name, "eps": eps, "logger": whole.logger}
        whole.apgd = APGDAttack(net, **common, device="cpu")
        whole.apgd_targeted = APGDAttack_targeted(net, **common, device="cpu")
        whole.fab.n_iter, whole.square.n_queries = attack.n_iter, attack.queries
    with torch.random.fork_rng(devices=[]):
        _, prediction = whole.run_standard_evaluation(images / 255, y, batch_size=batch_size)
    return prediction == y


@pytest.mark.parametrize(
    ("norm", "eps", "attack", "scale", "n"),
    [
        ("linf", EPS, AutoAttack("custom", n_iter=6, queries=40), 30, 120),
        ("l2", 0.3, AutoAttack("custom", n_iter=6, queries=40), 10, 120),
        pytest.param("linf", EPS, AutoAttack(), 30, 40, marks=pytest.mark.slow),
        pytest.param("l2", 0.3, AutoAttack(), 10, 40, marks=pytest.mark.slow),
    ],
)
def test_verdicts_are_those_of_the_packages_own_loop(
    trained, data, norm, eps, attack, scale, n, caplog
):
    """Large logits stall APGD-CE, so that later parts have something to do."""
    images, y = data[0][:n], data[1][:n]
    net = Scaled(trained, scale).eval()
    with frozen_parameters(net), caplog.at_level(logging.DEBUG, "auto-attack"):
        robust = package_reference(net, images, y, norm, eps, attack, batch_size=17)
    said = re.findall(r"robust accuracy after (\S+): (\S+)%", caplog.text)
    found = run(net, (images, y), {"aa": attack}, eps, norm=norm, batch_size=17)
    assert found.examples["aa_robust"].tolist() == robust.tolist()
    # And every part broke as many.
    broken_by = found.examples["aa_broken_by"]
    left = broken_by.isna() | (broken_by != "clean").fillna(True)
    for name, accuracy in said:
        left &= (broken_by != name.lower().replace("-", "_")).fillna(True)
        assert 100 * left.mean() == pytest.approx(float(accuracy), abs=0.01)
    assert len(said) == 4
    assert broken_by.nunique() > 1


def test_radius_zero_is_clean_accuracy(trained, data):
    found = values(run(trained, data, SUITE, eps=0.0))
    assert found.pop("spsa") is not None  # on 50 images
    assert len(set(found.values())) == 1


def test_a_large_radius_leaves_nothing(trained, data):
    attacks = {"pgd20": Pgd(20, 0.25), "aa": SMALL, "cw": Pgd(20, 0.25, loss="cw")}
    assert set(values(run(trained, data, attacks, eps=0.5)).values()) == {0.0}


@pytest.mark.parametrize(
    "attack",
    [Fgsm(), Pgd(5, 0.3, "clean"), Pgd(5, 0.3, "uniform", restarts=2), Spsa(4, 3), FabT(5)],
    ids=str,
)
def test_verdicts_do_not_depend_on_the_batch_size(trained, data, attack):
    whole = run(trained, data, {"a": attack}, batch_size=120).examples
    small = run(trained, data, {"a": attack}, batch_size=7).examples
    assert verdicts_of(whole).equals(verdicts_of(small))
    assert whole["logit_gap"].to_numpy() == pytest.approx(small["logit_gap"].to_numpy(), rel=1e-4)


def test_verdicts_do_not_depend_on_the_other_images(trained, data):
    attacks = {"pgd": Pgd(5, 0.3, "uniform")}
    whole = run(trained, data, attacks).examples
    part = run(trained, data, attacks, n=40).examples
    assert verdicts_of(part).equals(verdicts_of(whole.iloc[part["index"]].reset_index(drop=True)))


def test_subsets_are_fixed_recorded_and_nested(trained, data):
    attacks = {"clean": None, "fgsm": Fgsm(), "spsa": Spsa(2, 2, n=15)}
    found = run(trained, data, attacks, n=40, seed=3)
    again = run(make_net(), data, attacks, n=40, seed=3)
    fewer = run(trained, data, {"clean": None}, n=20, seed=3)
    other = run(trained, data, attacks, n=40, seed=4)
    index = found.examples["index"]
    assert [entry.n for entry in found.entries] == [40, 40, 15]
    assert index.is_monotonic_increasing
    assert index.is_unique
    assert index.equals(again.examples["index"])
    assert not index.equals(other.examples["index"])
    assert set(fewer.examples["index"]) < set(index)
    # The attack's own n is a cap, and its images are those of a request for so many.
    inner = run(trained, data, {"clean": None}, n=15, seed=3).examples["index"]
    attacked = found.examples["spsa_robust"].notna()
    assert index[attacked].tolist() == inner.tolist()
    assert found.examples["spsa_robust"].dtype == "boolean"
    capped = run(trained, data, {"spsa": Spsa(2, 2, n=1000)})
    assert capped.entries[0].n == 120


def test_an_attacks_own_threat_wins(trained, data):
    attacks = {
        "pgd20": Pgd(20, 0.25),
        "pgd20_wide": Pgd(20, 0.25, eps=2 * EPS),
        "l2": Fgsm(norm="l2", eps=0.3),
    }
    found = run(trained, data, attacks)
    assert values(found)["pgd20_wide"] < values(found)["pgd20"]
    params = [entry.params for entry in found.entries]
    assert [p["eps"] for p in params] == [EPS, 2 * EPS, 0.3]
    assert [p["norm"] for p in params] == ["linf", "linf", "l2"]


def test_params_say_what_the_name_leaves_open(result):
    params = {entry.metric: entry.params for entry in result.entries}
    common = {"eps": EPS, "eps_text": "0.05", "norm": "linf", "seed": 0, "batch_size": 50}
    assert params["pgd20"] == common | {
        "attack": "pgd",
        "steps": 20,
        "step_size": 0.0125,
        "start": "clean",
        "restarts": 1,
        "loss": "ce",
    }
    assert params["cw"]["loss"] == "cw"
    assert params["square"]["queries"] == 60
    assert (params["aa"]["attack"], params["aa"]["version"]) == ("auto_attack", "custom")
    assert params["apgd_t"]["targets"] == 9
    assert params["spsa"]["queries"] == 2 * 8 * 6
    json.dumps([asdict(entry) for entry in result.entries])
    eight = run(make_net(), make_images(3), {"fgsm": Fgsm()}, eps=8 / 255).entries[0]
    assert eight.params["eps_text"] == "8/255"


def test_float_images_in_range_are_the_same_as_bytes(trained, data, result):
    images, y = data
    found = evaluate(trained, images / 255, y, Request({"fgsm": Fgsm()}, EPS))
    assert found.entries[0].value == values(result)["fgsm"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_double_weights_are_evaluated_in_double(dtype, trained, data):
    import copy

    seen = []
    net = copy.deepcopy(trained).to(dtype)
    net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    run(net, data, {"pgd": Pgd(2, 0.5), "aa": SMALL}, n=20)
    assert set(seen) == {dtype}


class Softmaxed(Wrapped):
    def spoil(self, z, x):
        return z.softmax(1)


class Flat(Wrapped):
    """Quantised logits: no gradient anywhere."""

    def spoil(self, z, x):
        return (8 * z).round() / 8


class Noisy(Wrapped):
    def spoil(self, z, x):
        return z + 0.05 * torch.rand(z.shape, generator=self.rng)

    rng = torch.Generator().manual_seed(0)


def test_a_model_that_returns_probabilities_is_flagged(trained, data):
    found = run(Softmaxed(trained), data, {"apgd_ce": ApgdCe(2)}, n=20)
    assert any("output is a probability distribution" in flag for flag in found.flags)


def test_a_randomised_model_is_flagged(trained, data):
    found = run(Noisy(trained), data, {"apgd_ce": ApgdCe(2)}, n=20)
    assert any("randomized defense" in flag for flag in found.flags)


def test_saturation_is_seen_as_gradient_masking(trained, data):
    attacks = {"pgd20": Pgd(20, 0.25, "clean"), "aa": SMALL, "square": Square(60)}
    found = run(Scaled(trained, 1e4), data, attacks)
    text = "\n".join(found.flags)
    assert found.examples["zero_gradient"].mean() > 0.5
    assert "have a zero input gradient of the cross-entropy" in text
    assert "points above aa: gradient masking is likely" in text
    assert "a black-box attack beats the white-box ones" in text
    # What the damage is to PGD alone: the margin is as it was.
    assert values(found)["aa"] == pytest.approx(
        values(run(trained, data, {"aa": SMALL}))["aa"], abs=6
    )


def test_a_model_without_gradients_is_flagged_once_per_part(trained, data):
    found = run(Flat(trained), data, {"aa": SMALL}, batch_size=25)
    zero = [flag for flag in found.flags if "points with zero gradient" in flag]
    assert len(zero) == 1
    assert zero[0].startswith("aa/apgd_t: there are 25 points")
    assert "times)" in zero[0]
    assert any("Square, the last part of aa, broke" in flag for flag in found.flags)
    assert (found.examples["aa_broken_by"] == "square").any()


def test_logits_without_a_graph_have_zero_gradients(trained, data):
    detached = nn.Sequential(trained, Detach())
    found = run(detached, data, {"square": Square(queries=5)})
    assert found.examples["zero_gradient"].all()


def test_three_and_two_classes_make_do_without_the_targeted_loss(trained, data):
    for classes, part in ((3, "APGD-DLR was run instead"), (2, "APGD-T was left out")):
        net = nn.Sequential(trained, nn.Linear(CLASSES, classes))
        with torch.no_grad():
            y = net(data[0] / 255).argmax(1)
        found = run(net, (data[0], y), {"aa": SMALL}, n=30)
        assert any(part in flag for flag in found.flags)
        assert found.entries[0].params["version"] == "custom"
        with pytest.raises(InputError, match=f"needs 4 classes, the model has {classes}"):
            run(net, (data[0], y), {"apgd_t": ApgdT(2)}, n=30)


def test_a_good_model_has_no_flags(trained, data):
    assert run(trained, data, {"clean": None, "fgsm": Fgsm(), "aa": SMALL}).flags == ()


def test_warnings_reach_nobodys_console_and_loggers_are_as_before(trained, data, capfd):
    logger = logging.getLogger("auto-attack")
    handler = logging.StreamHandler()
    logger.addHandler(handler)
    logger.setLevel(logging.ERROR)
    try:
        found = run(Softmaxed(trained), data, {"aa": SMALL}, n=20)
        assert logger.handlers == [handler]
        assert (logger.level, logger.propagate, logger.disabled) == (logging.ERROR, True, False)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    assert found.flags
    assert capfd.readouterr() == ("", "")


def test_modes_gradients_buffers_and_generators_are_as_before(trained, data):
    net = make_net()
    net.load_state_dict(trained.state_dict())
    net.train()
    net[2].eval()
    net[1].weight.requires_grad_(False)
    net[4].weight.grad = torch.ones_like(net[4].weight)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    rng = torch.get_rng_state()
    run(net, data, SUITE, n=30)
    assert torch.equal(torch.get_rng_state(), rng)
    assert [module.training for module in net] == [True, True, False, True, True]
    assert [p.requires_grad for p in net.parameters()] == [False] + [True] * 5
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [p.grad is not None for p in net.parameters()] == [False] * 4 + [True, False]
    assert (net[4].weight.grad == 1).all()


def test_arithmetic_is_plain_fp32_inside_and_as_before_outside(trained, data):
    seen = []

    def look(module, inputs, output):
        flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        seen.append((output.dtype, *flags, torch.backends.cudnn.benchmark))

    hook = trained.register_forward_hook(look)
    saved = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    benchmark = torch.backends.cudnn.benchmark
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            run(trained, data, {"pgd": Pgd(2, 0.5), "aa": SMALL}, n=20)
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.benchmark
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = saved
        torch.backends.cudnn.benchmark = benchmark
        hook.remove()
    assert set(seen) == {(torch.float32, False, False, False)}


@dataclass(frozen=True)
class Cheat(AttackBase):
    """Returns what it was built with."""

    kind: ClassVar[str] = "cheat"
    family: ClassVar[Family] = "fixed steps"

    move: float = 0.0
    scale: float = 1.0

    def __call__(self, predict, x, y, eps, norm, rng):
        return self.scale * x + self.move


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (Cheat(move=EPS * 1.01), "cheat: linf distance 0.0505"),
        (Cheat(move=-1.0), r"cheat: pixels in \[-0\.7"),
        (Cheat(move=float("nan")), "cheat: pixels in"),
    ],
)
def test_points_outside_the_ball_are_an_error_not_a_result(trained, data, attack, message):
    images = data[0].clamp(60, 180)
    with torch.no_grad():
        y = trained(images / 255).argmax(1)
    with pytest.raises(AttackError, match=message):
        run(trained, (images, y), {"cheat": attack})


def test_any_dataclass_can_be_an_attack(trained, data):
    entry = run(trained, data, {"cheat": Cheat()}).entries[0]
    assert entry.value == run(trained, data, {"clean": None}).entries[0].value
    assert (entry.params["attack"], entry.params["scale"]) == ("cheat", 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": -0.1}, r"evaluation\.eps=-0\.1"),
        ({"eps": float("nan")}, r"evaluation\.eps=nan"),
        ({"n": 0}, r"evaluation\.n=0"),
        ({"n": 121}, r"evaluation\.n=121: the test split has 120 images; set evaluation\.n=120"),
        ({"batch_size": 0}, r"evaluation\.batch_size=0"),
    ],
)
def test_requests_that_do_not_fit_are_refused(trained, data, change, message):
    with pytest.raises(InputError, match=message):
        run(trained, data, {"clean": None}, **{"eps": EPS} | change)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, y: (x.long(), y), "give uint8, or floats"),
        (lambda x, y: (x.float(), y), r"pixels in \[0, 2\d\d\]"),
        (lambda x, y: (x / 255 - 0.5, y), "normalisation belongs inside"),
        (lambda x, y: (x / 255 + 0.5, y), "normalisation belongs inside"),
        (lambda x, y: (x / float("nan"), y), "pixels in"),
        (lambda x, y: (x[:, 0], y), "shape"),
        (lambda x, y: (x[:0], y[:0]), "N > 0"),
        (lambda x, y: (x, y[:5]), "labels"),
        (lambda x, y: (x, y.float()), "labels: torch.float32"),
        (lambda x, y: (x, y + 1), "labels: 10 is not among the model's 10 classes"),
        (lambda x, y: (x, y - 1), "negative"),
    ],
)
def test_data_that_does_not_fit_is_refused(trained, data, spoil, message):
    with pytest.raises(InputError, match=message):
        run(trained, spoil(*data), {"fgsm": Fgsm()})


def test_half_precision_weights_are_refused(data):
    with pytest.raises(InputError, match=r"net\.float\(\)"):
        run(make_net().bfloat16(), data, {"clean": None})


def test_logits_that_are_not_finite_are_named(trained, data):
    class Broken(Wrapped):
        def spoil(self, z, x):
            return torch.where(x.flatten(1)[:, :1] == bad, torch.nan, z)

    bad = data[0][17, 0, 0, 0] / 255
    with pytest.raises(
        NonFiniteError, match=r"logits is not finite .*clean images; first at index"
    ):
        run(Broken(trained), data, {"clean": None})


def test_stopping_between_batches(trained, data):
    asked = []

    def stop() -> bool:
        asked.append(True)
        return len(asked) > 5

    request = Request({"fgsm": Fgsm()}, EPS, batch_size=30)
    with pytest.raises(InterruptedRunError, match=r"\(fgsm, \d+ of \d+ images\)"):
        evaluate(trained, data[0], data[1], request, should_stop=stop)


LONG = Pgd(50, 1 / 4, "clean", eps=EPS, norm="linf")


@pytest.mark.parametrize("part", [LONG, Square(5000), FabT(50), AdversarialMargin(LONG)])
def test_stopping_within_a_batch(trained, data, part):
    asked = []

    def stop() -> bool:
        asked.append(True)
        return len(asked) > 8

    counted = Counting(trained)
    request = Request({"part": part}, EPS, batch_size=len(data[0]), diagnose=False)
    with pytest.raises(InterruptedRunError, match=r"\(part, 0 of \d+ images\)"):
        evaluate(counted, data[0], data[1], request, should_stop=stop)
    assert counted.forwards < 20


def test_progress_counts_the_images_of_every_part(trained, data):
    seen: list[tuple[str, int, int]] = []
    request = Request({"clean": None, "aa": SMALL}, EPS, batch_size=50)
    found = evaluate(trained, data[0], data[1], request, progress=lambda *line: seen.append(line))
    correct = int(found.examples["clean_correct"].sum())
    assert seen[:3] == [("clean", 50, 120), ("clean", 100, 120), ("clean", 120, 120)]
    parts = ("apgd_ce", "apgd_t", "fab_t", "square")
    last = {name: (done, total) for name, done, total in seen if "checks/" not in name}
    assert list(last) == ["clean", *(f"aa/{part}" for part in parts)]
    assert all(done == total for done, total in last.values())
    assert last["aa/apgd_ce"][1] == correct
    assert set(found.seconds) == {"clean", "aa", "checks"}


def test_a_network_that_is_always_wrong_is_not_attacked(trained, data):
    images, _ = data
    with torch.no_grad():
        wrong = (trained(images / 255).argmax(1) + 1) % CLASSES
    found = run(trained, (images, wrong), {"clean": None, "pgd": Pgd(2, 0.5), "aa": SMALL})
    assert set(values(found).values()) == {0.0}
    assert (found.examples["first_broken_by"] == "clean").all()


def test_the_smallest_request_and_the_whole_set_are_accepted(trained, data):
    one = run(trained, data, {"clean": None}, n=1, batch_size=1, diagnose=False)
    whole = run(trained, data, {"clean": None}, n=120, diagnose=False)
    assert [one.entries[0].n, whole.entries[0].n] == [1, 120]


def test_at_radius_zero_nothing_is_searched_and_at_one_everything_falls(trained, data):
    net = Counting(trained).eval()
    for eps, expected in ((0.0, None), (1.0, 0.0)):
        found = run(net, data, {"clean": None, "pgd": Pgd(2, 0.5)}, eps, diagnose=False)
        clean, robust = values(found).values()
        assert robust == (clean if expected is None else expected)
        if eps == 0:
            assert net.forwards == 1  # of the clean images


def test_a_measure_stands_where_it_was_asked_for(trained, data):
    margin = AdversarialMargin(Pgd(1, 1.0, "clean", eps=EPS, norm="linf"))
    attacks = {"fgsm": Fgsm(), "margin": margin, "clean": None}
    found = run(trained, data, attacks)
    assert [entry.metric for entry in found.entries] == list(attacks)
    assert list(found.examples) == [
        *("index", "label", "prediction", "clean_correct", "logit_gap", "zero_gradient"),
        *("top_classes", "fgsm_robust", "fgsm_class", "first_broken_by", "margin"),
    ]
    part = run(trained, data, {"margin": margin, "clean": None}, n=30, diagnose=False)
    assert [entry.metric for entry in part.entries] == ["margin", "clean"]
    assert list(part.examples) == [
        *("index", "label", "prediction", "clean_correct", "first_broken_by", "margin")
    ]


def test_the_ten_likeliest_classes_are_kept():
    net = nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 12)).eval()
    images, y = make_images(4)
    kept = run(net, (images, y), {"clean": None}).examples["top_classes"]
    with torch.no_grad():
        expected = net(images / 255).topk(10).indices
    assert [list(classes) for classes in kept] == expected.tolist()


def test_seconds_are_those_of_each_part(trained, data, monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    found = run(trained, data, {"clean": None, "fgsm": Fgsm()}, diagnose=False)
    assert found.seconds == {"clean": 1.0, "fgsm": 1.0}


def test_an_empty_request_is_a_table_of_predictions(trained, data):
    found = run(trained, data, {})
    assert found.entries == ()
    assert len(found.examples) == 120
    assert "logit_gap" in found.examples
    assert "zero_gradient" not in found.examples  # nothing was attacked


class Detach(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z.detach()


class WithGradients(nn.Module):
    """Notes whether the passes of a network keep what a gradient needs."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.kept = net, list[bool]()

    def forward(self, x: Tensor) -> Tensor:
        self.kept.append(torch.is_grad_enabled())
        z: Tensor = self.net(x)
        return z


@pytest.mark.parametrize(
    ("attacks", "diagnose", "kept"),
    [
        ({"clean": None}, True, False),
        ({"fgsm": Fgsm()}, False, False),
        ({"fgsm": Fgsm()}, True, True),
    ],
)
def test_clean_gradients_are_taken_where_the_checks_look_at_them(
    trained, data, attacks, diagnose, kept
):
    net = WithGradients(trained)
    found = run(net, data, attacks, diagnose=diagnose, batch_size=120)
    assert net.kept[0] == kept
    assert ("zero_gradient" in found.examples) == kept


def test_results_survive_parquet(result, tmp_path):
    result.examples.to_parquet(tmp_path / "examples.parquet")
    read = pd.read_parquet(tmp_path / "examples.parquet")
    pd.testing.assert_frame_equal(read, result.examples, check_dtype=False)


def entry(metric: str, kind: str, robust: list[Any], **params) -> tuple[Attacked, list]:
    seen = len(robust) - robust.count(None)
    return attacked(metric, kind, chosen=torch.arange(seen), **params), robust


def findings(*columns, **extra) -> tuple[str, ...]:
    size = len(columns[0][1])
    always = {"clean_correct": [True] * size, "label": [0] * size, "prediction": [0] * size}
    table = pd.DataFrame(always | extra)
    for found, robust in columns:
        dtype: Any = "boolean" if None in robust else bool
        table[f"{found.metric}_robust"] = pd.array(robust, dtype=dtype)
        if found.attack.family == "ensemble":
            table[f"{found.metric}_broken_by"] = pd.array(
                [None if value else "apgd_ce" for value in robust], dtype="string"
            )
    table["logit_gap"] = 1.0
    probes = dict.fromkeys(NAMES, "not here")
    checks = diagnose([found for found, _ in columns], table, probes)
    return tuple(check.text for check in checks if check.outcome == "tripped")


def flags_of(length: int, robust: int) -> list[bool]:
    return [i < robust for i in range(length)]


PGD = {"loss": "ce", "start": "uniform", "restarts": 1, "seed": 0}


def test_checks_compare_what_must_be_ordered():
    weak = entry("pgd20", "pgd", [True, False, False, True], steps=20, **PGD)
    strong = entry("pgd100", "pgd", [True, True, True, False], steps=100, **PGD)
    assert findings(weak, strong) == (
        "pgd100 is 25.00 points above pgd20, which is the weaker attack; both together leave "
        "25.00%. A larger step or more restarts, or gradient masking",
    )
    assert findings(weak, entry("p", "pgd", [True] * 4, steps=100, **PGD | {"loss": "cw"})) == ()
    assert findings(weak, entry("p", "pgd", [True] * 4, steps=100, **PGD, norm="l2")) == ()
    wide = entry("wide", "pgd", [True] * 4, steps=20, **PGD, eps=0.2)
    assert "wide is 50.00 points above pgd20" in findings(weak, wide)[0]
    fgsm = entry("fgsm", "fgsm", [False] * 4, steps=1)
    assert "pgd20 is 50.00 points above fgsm" in findings(weak, fgsm)[0]
    assert findings(weak) == ()


def test_checks_on_autoattack_and_its_parts():
    whole = entry("aa", "auto_attack", flags_of(100, 40))
    part = entry("apgd_ce", "apgd_ce", flags_of(100, 39))
    assert "aa is 1.00 points above apgd_ce, one of its parts" in findings(whole, part)[0]
    pgd20 = entry("pgd20", "pgd", flags_of(100, 60), steps=20, **PGD)
    better = entry("pgd50", "pgd", flags_of(100, 51), steps=50, **PGD)
    fine = entry("pgd100", "pgd", flags_of(100, 50), steps=100, **PGD)
    assert findings(whole, pgd20) == ("pgd20 is 20.0 points above aa: gradient masking is likely",)
    # Only the strongest PGD speaks.
    assert "pgd50 is 11.0 points above aa" in findings(whole, pgd20, better)[0]
    assert findings(whole, pgd20, fine) == ()


def test_checks_on_black_box_attacks_use_the_images_both_saw():
    square = entry("square", "square", flags_of(1000, 500))
    assert findings(square, entry("apgd_ce", "apgd_ce", flags_of(1000, 502))) == ()
    assert (
        "square is 0.30 points below apgd_ce: a black-box attack beats"
        in (findings(square, entry("apgd_ce", "apgd_ce", flags_of(1000, 503)))[0])
    )
    spsa = entry("spsa", "spsa", [True] * 10 + [None] * 990)
    assert findings(spsa, entry("pgd20", "pgd", flags_of(1000, 600), steps=20, **PGD)) == ()
    missed = entry("spsa", "spsa", [False] * 10 + [None] * 990)
    pgd20 = entry("pgd20", "pgd", flags_of(1000, 600), steps=20, **PGD)
    assert "spsa is 100.00 points below pgd20" in findings(missed, pgd20)[0]


def test_checks_on_zero_gradients():
    pgd20 = entry("pgd20", "pgd", [True] * 4, steps=20, **PGD)
    assert findings(pgd20, zero_gradient=[False] * 4) == ()
    found = findings(pgd20, zero_gradient=[True, False, False, False])
    assert found[0].startswith("25.00% of the correctly classified images have a zero input")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_verdicts_are_those_of_the_cpu(trained, data):
    import copy

    attacks = {"pgd": Pgd(5, 0.3, "uniform"), "apgd_ce": ApgdCe(8), "square": Square(60)}
    state = torch.cuda.get_rng_state()
    on_gpu = run(copy.deepcopy(trained).cuda(), data, attacks)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    on_cpu = run(trained, data, attacks)
    for metric, value in values(on_cpu).items():
        assert values(on_gpu)[metric] == pytest.approx(value, abs=2)
