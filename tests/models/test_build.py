"""Architectures against published counts, torchvision and the official files; the seams of Net."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn

from ablation.config.parser import Parser, plain
from ablation.errors import InputError
from ablation.models import (
    HEADS,
    Cnn,
    LinearHead,
    Mlp,
    ModelSpec,
    Net,
    PreActResNet,
    ResNet,
    TinyCnn,
    Vgg,
    WideResNet,
    build_model,
)
from ablation.models.wide_resnet import PoolAndPad
from ablation.numerics.modes import BatchNormReplay, buffers
from ablation.types import Classifier, Output
from tests.support.options import options

CONF = Path(__file__).parents[2] / "conf" / "model"
COUNTS = {
    "mlp": (1, 28, 3_962_890),
    "cnn": (3, 32, 2_360_138),
    "vgg16_bn": (3, 32, 14_728_266),
    "resnet18": (3, 32, 11_173_962),
    "preact_resnet18": (3, 32, 11_172_170),
    "wrn34_10": (3, 32, 46_160_474),
    "wrn34_10_emr": (3, 32, 45_901_914),
    "tiny_cnn": (1, 8, 24_058),
}
"""Preset -> channels, size, parameters with ten classes."""

SMALL: dict[str, ModelSpec] = {
    "mlp": Mlp(hidden=2, width=16),
    "cnn": Cnn(width=4, dense=16),
    "vgg": Vgg(width=4),
    "resnet": ResNet(width=4),
    "preact_resnet": PreActResNet(width=4),
    "wide_resnet": WideResNet(depth=10, width=1),
    "wide_resnet_emr": WideResNet(depth=10, width=2, variant="emr"),
    "tiny_cnn": TinyCnn(width=4),
}
RESIDUAL_AND_VGG = ["resnet", "preact_resnet", "wide_resnet", "wide_resnet_emr", "vgg"]
"""Architectures whose in-place activations meet double backward."""


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Layers this small lose more to waiting threads than they gain, on busy cores above all."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def preset(name: str) -> dict[str, Any]:
    node = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    assert isinstance(node, dict)
    return {str(key): value for key, value in node.items()}


def parsed(name: str) -> ModelSpec:
    parser = Parser()
    spec: ModelSpec = parser.parse(ModelSpec, preset(name)["spec"], "model.spec")
    assert parser.problems == []
    return spec


def small(name: str, size: int = 32, classes: int = 10, **options: Any) -> Net:
    return build_model(SMALL[name], channels=3, size=size, classes=classes, **options)


def images(n: int = 2, size: int = 32, channels: int = 3, dtype=torch.float32) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.rand(n, channels, size, size, generator=g, dtype=dtype)


def stir(net: Net) -> Net:
    """Move BatchNorm away from mean 0, variance 1, scale 1, shift 0: else it hides mistakes."""
    g = torch.Generator().manual_seed(1)
    state = net.state_dict()
    layers = [name for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for name in layers:
            for key in ("weight", "running_var"):
                t = state[f"{name}.{key}"]
                t.copy_(0.5 + torch.rand(t.shape, generator=g))
            for key in ("bias", "running_mean"):
                t = state[f"{name}.{key}"]
                t.copy_(0.2 * torch.randn(t.shape, generator=g))
    return net


# --- presets -------------------------------------------------------------------------------------


def test_every_preset_is_listed_and_has_the_same_keys():
    assert set(options("model")) == set(COUNTS)
    for name in COUNTS:
        node = preset(name)
        assert list(node) == ["name", "spec", "head", "normalize"]
        assert node["name"] == name
        assert node["head"] in HEADS
        assert node["normalize"] is (name in ("vgg16_bn", "preact_resnet18"))
        assert plain(parsed(name), part=True) == node["spec"], "every key is spelled out"


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    channels, size, count = COUNTS[name]
    with torch.device("meta"):
        net = build_model(parsed(name), channels=channels, size=size, classes=10)
    assert sum(p.numel() for p in net.parameters()) == count


@pytest.mark.parametrize("name", COUNTS)
def test_full_size_forward(name):
    channels, size, _ = COUNTS[name]
    net = build_model(parsed(name), channels=channels, size=size, classes=10).eval()
    with torch.no_grad():
        z = net(images(1, size, channels))
    assert z.shape == (1, 10)
    assert z.isfinite().all()


# --- shapes and structure ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size"),
    [(name, size) for name in SMALL for size in (28, 32, 64) if (name, size) != ("vgg", 28)],
)
def test_shapes(name, size):
    net = small(name, size=size, classes=7)
    out = net.output(images(2, size))
    assert out.logits.shape == (2, 7)
    assert out.features.shape == (2, net.body.features)


def test_resnet18_is_torchvisions_with_a_small_stem():
    import torchvision  # takes seconds

    theirs = torchvision.models.resnet18(num_classes=10)
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    ours = stir(build_model(ResNet(), channels=3, size=32, classes=10)).eval()
    values = ours.state_dict().values()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), values, strict=True)))
    x = images(2)
    torch.testing.assert_close(ours(x), theirs.eval()(x))
    convs = [m for m in ours.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 17 + 3, "17 convolutions and 3 projections"


def test_vgg16_is_torchvisions_with_one_linear_layer():
    import torchvision

    layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"], batch_norm=True)
    ours = stir(build_model(Vgg(), channels=3, size=32, classes=10)).eval()
    values = ours.body.state_dict().values()
    layers.load_state_dict(dict(zip(layers.state_dict(), values, strict=True)))
    x = images(2)
    torch.testing.assert_close(ours.output(x).features, layers.eval()(x).flatten(1))


GOLDEN: dict[str, tuple[ModelSpec, list[float]]] = {
    "preact": (PreActResNet(blocks=(1, 1, 1, 1)), [-27.4255535832, 22.5883814741, -16.3106744825]),
    "wrn": (WideResNet(10, 2), [-7.06013940216, 2.78024259963, 3.46107086487]),
    "emr": (WideResNet(10, 2, "emr"), [-9.029668703, 3.36764999048, 4.48567914232]),
}
"""First logits of the official networks in float64, filled with sines as below: preactresnet.py of
Rice et al. as two forks of it have it, wideresnet.py of TRADES, and the file that the EMR code's
madry_model.py comes from. Full-size networks agreed to 2e-15 in logits and gradients, both modes.
"""


@pytest.mark.parametrize("name", GOLDEN)
def test_pre_activation_networks_agree_with_the_official_files(name):
    spec, expected = GOLDEN[name]
    net = build_model(spec, channels=3, size=32, classes=10).double().eval()
    tensors = [(k, t) for k, t in net.state_dict().items() if t.is_floating_point()]
    with torch.no_grad():
        for i, (key, t) in enumerate(tensors):
            wave = torch.sin(1.7 * torch.arange(t.numel(), dtype=torch.float64) + i).view(t.shape)
            if key.endswith("running_var"):
                wave = 1 + 0.5 * wave
            elif t.dim() > 1:
                wave = wave * 1.4 * (2 / t[0].numel()) ** 0.5
            t.copy_(wave)
        x = 0.5 + 0.5 * torch.sin(0.37 * torch.arange(2 * 3 * 32 * 32, dtype=torch.float64))
        z = net(x.view(2, 3, 32, 32))
    wanted = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(z[0, :3], wanted, rtol=1e-9, atol=0)


def test_emr_shortcuts_by_hand():
    """With the second convolutions at zero only stem and shortcuts are left."""
    net = build_model(WideResNet(10, 3, "emr"), channels=1, size=8, classes=10).double().eval()
    for name, weight in net.named_parameters():
        if name.endswith("conv2.weight"):
            nn.init.zeros_(weight)
    x = images(2, 8, 1, torch.float64)
    stem = net.get_submodule("body.layers.stem")
    h = stem(x).detach().numpy()
    for width, stride in ((48, 1), (96, 2), (192, 2)):
        h = h / np.sqrt(1 + 1e-5)  # BatchNorm at mean 0, variance 1
        h = np.where(h > 0, h, 0.1 * h)
        n, c, height, _ = h.shape
        pooled = np.zeros((n, c, height // stride, height // stride))
        for i in range(stride):
            for j in range(stride):
                pooled += h[:, :, i::stride, j::stride] / stride**2
        h = np.zeros((n, width, *pooled.shape[2:]))
        side = (width - c) // 2
        h[:, side : side + c] = pooled
    h = h / np.sqrt(1 + 1e-5)
    features = np.where(h > 0, h, 0.1 * h).mean((2, 3))
    np.testing.assert_allclose(net.output(x).features.detach().numpy(), features, atol=1e-15)
    assert np.abs(features).max() > 1e-3
    assert PoolAndPad(3, 7, 1)(torch.ones(1, 3, 2, 2))[0, :, 0, 0].tolist() == [0, 0, 1, 1, 1, 0, 0]


def test_mlp_ignores_the_order_of_pixels():
    net = small("mlp", size=8)
    order = torch.randperm(192, generator=torch.Generator().manual_seed(0))
    mixed = copy.deepcopy(net)
    with torch.no_grad():
        first = mixed.get_parameter("body.layers.hidden1.0.weight")
        first.copy_(first[:, order])
    x = images(3, 8)
    shuffled = x.flatten(1)[:, order].view_as(x)
    torch.testing.assert_close(mixed(shuffled), net(x))
    assert not torch.allclose(net(shuffled), net(x))


@pytest.mark.parametrize("name", SMALL)
def test_rows_do_not_see_each_other_in_evaluation(name):
    net = stir(small(name)).double().eval()
    x = images(4, dtype=torch.float64)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(net(x[order]), net(x)[order], rtol=0, atol=1e-12)
    torch.testing.assert_close(net(x[1:2]), net(x)[1:2], rtol=0, atol=1e-12)


# --- initialisation ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_build_model_depends_on_the_seed_alone(name):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a = small(name, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before), "the global generator moved"
    torch.manual_seed(6)
    b = small(name, seed=3).state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)
    other = small(name, seed=4).state_dict()
    assert not torch.equal(a["head.linear.weight"], other["head.linear.weight"])


def test_another_head_leaves_the_body_as_it_is():
    a = small("resnet").body.state_dict()
    b = small("resnet", head=CosineHead).body.state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("variant", ["standard", "emr"])
def test_wide_resnet_initialisation(variant):
    net = build_model(WideResNet(10, 4, variant), channels=3, size=32, classes=10)
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            std = (2 / (m.kernel_size[0] ** 2 * m.out_channels)) ** 0.5
            tolerance = 4 / (2 * m.weight.numel()) ** 0.5
            assert abs(m.weight.std().item() / std - 1) < tolerance
        elif isinstance(m, nn.BatchNorm2d):
            assert m.weight.unique().tolist() == [1]
            assert m.bias.unique().tolist() == [0]
        elif isinstance(m, nn.Linear):
            assert m.bias.unique().tolist() == [0]
            assert m.weight.abs().max() <= m.in_features**-0.5
    assert small("resnet").get_parameter("head.linear.bias").abs().min() > 0


# --- precision, layout, derivatives --------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_precision_of_the_logits(name):
    net = stir(small(name, mean=[0.5] * 3, std=[0.2] * 3)).eval()
    x = images()
    z = net(x)
    assert z.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        low = net.output(x)
    assert low.logits.dtype == torch.float32
    assert low.features.dtype == torch.bfloat16, "the body ran in bf16"
    torch.testing.assert_close(low.logits, z, atol=0.1, rtol=0.1)
    double = copy.deepcopy(net).double()
    assert double(x.double()).dtype == torch.float64
    torch.testing.assert_close(double(x.double()).float(), z, atol=1e-4, rtol=1e-4)
    assert net.bfloat16()(x.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("name", ["cnn", "mlp", *RESIDUAL_AND_VGG])
def test_channels_last(name):
    net = stir(small(name)).double().eval()
    x = images(dtype=torch.float64)
    z = net(x)
    net.to(memory_format=torch.channels_last)
    torch.testing.assert_close(net(x.to(memory_format=torch.channels_last)), z)


@pytest.mark.parametrize("name", ["cnn", "tiny_cnn", *RESIDUAL_AND_VGG])
def test_double_backward(name):
    """d/dtheta ||grad_x sum_j c_j z_j||^2 in evaluation mode, against a central difference."""
    net = stir(small(name)).double().eval()
    g = torch.Generator().manual_seed(2)
    c = torch.randn(10, generator=g, dtype=torch.float64)
    parameters: list[Tensor] = list(net.parameters())
    direction = [torch.randn(p.shape, generator=g, dtype=torch.float64) for p in parameters]

    def penalty(create_graph: bool) -> Tensor:
        x = images(2, dtype=torch.float64).requires_grad_()
        (grad,) = torch.autograd.grad((net(x) @ c).sum(), x, create_graph=create_graph)
        return grad.square().sum()

    gradients = torch.autograd.grad(penalty(True), parameters, allow_unused=True)
    pairs = zip(gradients, direction, strict=True)
    slope = sum(((a * b).sum() for a, b in pairs if a is not None), start=torch.zeros(()))
    h, ends = 1e-9, []  # small: a ReLU that changes sides in between would break the difference
    for step in (h, -2 * h):
        with torch.no_grad():
            torch._foreach_add_(parameters, direction, alpha=step)
        ends.append(penalty(False))
    torch.testing.assert_close((ends[0] - ends[1]) / (2 * h), slope, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", ["tiny_cnn", "wide_resnet_emr"])
def test_compiles_as_one_graph(name):
    """No Python that depends on data: Dynamo finds no reason to break the graph."""
    net = small(name, mean=[0.5] * 3, std=[0.2] * 3).eval()
    x = images()
    for function in (net, net.output):
        seen = torch.compile(function, backend="eager", fullgraph=True)(x)
        z = seen.logits if isinstance(seen, Output) else seen
        torch.testing.assert_close(z, net(x))


# --- Net: normalisation, heads, BatchNorm --------------------------------------------------------


def test_normalisation():
    mean, std = [0.4914, 0.4822, 0.4465], [0.2471, 0.2435, 0.2616]
    net, raw = small("resnet", mean=mean, std=std).eval(), small("resnet").eval()
    x = images()
    by_hand = torch.stack([(x[:, i] - mean[i]) / std[i] for i in range(3)], dim=1)
    torch.testing.assert_close(net(x), raw(by_hand))
    assert raw.mean is None
    assert {"mean", "std"} & set(raw.state_dict()) == set()
    assert len(list(net.parameters())) == len(list(raw.parameters()))
    assert net.mean is not None
    assert net.mean.shape == (1, 3, 1, 1)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(net(x).sum(), x)
    by_hand.requires_grad_()
    (inner,) = torch.autograd.grad(raw(by_hand).sum(), by_hand)
    torch.testing.assert_close(grad, inner / torch.tensor(std).view(1, 3, 1, 1))
    with pytest.raises(RuntimeError, match="mean"):
        raw.load_state_dict(net.state_dict())


class CosineHead(nn.Module):
    """A head as hypersphere embedding needs it: no bias, cosines, a margin in training."""

    def __init__(self, features: int, classes: int, margin: float = 0.2, scale: float = 10) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, features))
        nn.init.xavier_uniform_(self.weight)
        self.margin, self.scale = margin, scale

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(features), F.normalize(self.weight))

    def loss_logits(self, features: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        assert features.dtype == logits.dtype
        return logits - self.scale * self.margin * F.one_hot(y, logits.shape[1])


class NormHead(LinearHead):
    """A head whose margin needs features and weights, as L-Softmax does."""

    def loss_logits(self, features: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        weight = self.linear.weight
        norms = features.norm(dim=1) * weight[y].norm(dim=1)
        cosine = (F.linear(features, weight).gather(1, y[:, None]).squeeze(1)) / norms
        return logits.scatter(1, y[:, None], (norms * (2 * cosine.square() - 1))[:, None])


def test_head_seam():
    net = small("resnet", head=CosineHead).eval()
    classifier: Classifier = net
    x, y = images(3), torch.tensor([1, 0, 9])
    out = classifier.output(x)
    torch.testing.assert_close(classifier(x), out.logits)
    assert out.logits.abs().max() <= 10
    adjusted = classifier.loss_logits(out, y)
    moved = (out.logits - adjusted).nonzero()
    assert moved.tolist() == [[0, 1], [1, 0], [2, 9]]
    net.get_parameter("head.weight").data.mul_(7)
    torch.testing.assert_close(net(x), out.logits)


def test_margins_work_outside_the_autocast_region():
    net = small("resnet", head=NormHead).eval()
    x, y = images(3), torch.tensor([1, 0, 9])
    with torch.autocast("cpu", torch.bfloat16):
        out = net.output(x)
    adjusted = net.loss_logits(out, y)
    assert adjusted.dtype == torch.float32
    adjusted.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_heads_without_a_margin_give_the_plain_logits():
    x, y = images(), torch.tensor([0, 1])
    bare = Net(
        SMALL["mlp"].build(channels=3, size=(32, 32), classes=10), nn.Linear(16, 10), None, None
    )
    for net in (bare, small("mlp")):
        out = net.output(x)
        assert net.loss_logits(out, y) is out.logits


def test_batchnorm_replay_equals_a_second_forward():
    twice = build_model(TinyCnn(), channels=1, size=8, classes=10).double().train()
    replayed = copy.deepcopy(twice)
    clean, adversarial = images(8, 8, 1, torch.float64), images(8, 8, 1, torch.float64) ** 2
    for x in (clean, adversarial, clean):
        twice(x)
    replay = BatchNormReplay(replayed)
    replayed(clean)
    replay.mark()
    replayed(adversarial)
    replay.replay()
    for a, b in zip(buffers(replayed), buffers(twice), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", SMALL)
def test_only_batchnorm_has_state(name):
    net = small(name, mean=[0.5] * 3, std=[0.2] * 3)
    layers = dict(net.named_modules())
    for key, _ in net.named_buffers():
        owner = layers[key.rpartition(".")[0]]
        assert isinstance(owner, nn.BatchNorm2d) or key in ("mean", "std")
    saved = buffers(net.eval())
    net(images())
    assert all(torch.equal(a, b) for a, b in zip(saved, net.buffers(), strict=True))


@pytest.mark.slow
def test_tiny_cnn_learns_the_digits_in_seconds():
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x = (torch.tensor(pixels).float() / 16).view(-1, 1, 8, 8)[order]
    y = torch.tensor(labels)[order]
    net = build_model(TinyCnn(), channels=1, size=8, classes=10)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(5):
        for rows in torch.arange(1437).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    net.eval()
    assert (net(x[1437:]).argmax(1) == y[1437:]).float().mean() > 0.95


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "size", "least"),
    [
        (Vgg(), 8, 32),
        (Vgg(), 28, 32),
        (ResNet(), 4, 8),
        (PreActResNet(), 7, 8),
        (WideResNet(10, 1), 2, 4),
        (Cnn(), 3, 4),
        (TinyCnn(), 2, 4),
    ],
)
def test_small_images_are_refused(spec, size, least):
    with pytest.raises(InputError, match=rf"{least}x{least}.*{size}x{size}.*model=tiny_cnn"):
        build_model(spec, channels=3, size=size, classes=10)
    build_model(SMALL["mlp"], channels=3, size=size, classes=10)


def test_bad_input_to_build_model():
    def build(spec: ModelSpec = SMALL["tiny_cnn"], **changes: Any) -> Net:
        return build_model(spec, **{"channels": 3, "size": 30, "classes": 10, **changes})

    with pytest.raises(InputError, match=r"model.head=liner: unknown; choose from .*linear"):
        build(head="liner")
    with pytest.raises(
        InputError, match=r"height and width that 4 divides, not 30x30.*variant=standard"
    ):
        build(WideResNet(10, 1, "emr"))
    with pytest.raises(InputError, match=r"data.mean=\[0.1\] has 1 entries for images of 3"):
        build(mean=[0.1], std=[0.3])
    with pytest.raises(InputError, match="both or neither"):
        build(mean=[0.1] * 3)
    with pytest.raises(InputError, match="must be positive"):
        build(mean=[0.1] * 3, std=[0.1, 0.0, 0.1])
    with pytest.raises(InputError, match="channels=0"):
        build(channels=0)
    with pytest.raises(InputError, match="classes=1"):
        build(classes=1)
    body = Mlp(1, 4).build(channels=3, size=(2, 2), classes=10)
    with pytest.raises(ValueError, match="one per channel"):
        Net(body, LinearHead(4, 10), [0.1] * 3, [0.1])


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (WideResNet, {"depth": 33}, r"depth=33 must be 6n \+ 4"),
        (WideResNet, {"depth": 4}, r"depth=4 must be 6n \+ 4"),
        (WideResNet, {"width": 0}, "width=0 must be 1 or more"),
        (ResNet, {"blocks": ()}, r"blocks=\[\] must be"),
        (PreActResNet, {"blocks": (2, 0)}, r"blocks=\[2, 0\] must be"),
        (Vgg, {"convs": (0,)}, r"convs=\[0\] must be"),
        (Mlp, {"hidden": 0}, "hidden=0"),
        (Cnn, {"dense": 0}, "dense=0"),
        (TinyCnn, {"width": -1}, "width=-1"),
    ],
)
def test_bad_hyperparameters(cls, settings, message):
    with pytest.raises(ValueError, match=message):
        cls(**settings)
