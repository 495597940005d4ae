"""LMA's margin loss: the specification's numbers, torch's, and its gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ablation.crafters import AttackMarginLoss
from ablation.numerics.functional import margin_loss
from ablation.terms import MarginLoss
from tests.support.logits import Z_ADV, Y, Z, given


def test_t5_1_the_papers_example():
    z, y = torch.tensor([[12.0, -6.0, 11.0]]), torch.tensor([0])
    assert margin_loss(z, y, 8.0).item() == 49
    assert MarginLoss(8.0, "sum")(given(z, z, y)).item() == 49
    assert MarginLoss(8.0, "classes")(given(z, z, y)).item() == pytest.approx(49 / 3)


def test_t5_2_the_fixture():
    views = given(Z, Z_ADV, Y)
    assert MarginLoss(reduction="sum")(views).tolist() == pytest.approx([0, 2.12])
    assert MarginLoss()(views).tolist() == pytest.approx([0, 0.706667], abs=1e-6)


def test_t5_3_its_gradient():
    z = Z_ADV.clone().requires_grad_()
    margin_loss(z, Y, 0.9).sum().backward()
    assert z.grad is not None
    assert z.grad[0].tolist() == [0, 0, 0]
    assert z.grad[1].tolist() == pytest.approx([0.8, 2.8, -3.6])


@pytest.mark.parametrize("classes", [2, 3, 10, 200])
def test_divided_it_is_torchs(classes):
    g = torch.Generator().manual_seed(classes)
    z = 3 * torch.randn(50, classes, generator=g, dtype=torch.float64)
    y = torch.randint(classes, (50,), generator=g)
    wanted = F.multi_margin_loss(z, y, p=2, margin=0.9, reduction="none")
    torch.testing.assert_close(MarginLoss()(given(z, z, y)), wanted)
    torch.testing.assert_close(AttackMarginLoss().bind(given(z, z, y))(z), wanted)
    summed = AttackMarginLoss(reduction="sum").bind(given(z, z, y))(z)
    torch.testing.assert_close(summed, classes * wanted)


@pytest.mark.parametrize(("classes", "total"), [(10, 7.29), (100, 80.19), (200, 161.19)])
def test_at_initialisation_the_sum_grows_with_the_classes(classes, total):
    z, y = torch.zeros(1, classes, dtype=torch.float64), torch.tensor([0])
    assert margin_loss(z, y, 0.9).item() == pytest.approx(total)


def test_top_k_takes_the_largest_false_classes():
    z = torch.tensor([[1.0, 0.9, 0.8, 0.5]])
    y = torch.tensor([1])  # its own logit is never among them
    gaps = [(0.1 + 0.9) ** 2, (-0.1 + 0.9) ** 2, (-0.4 + 0.9) ** 2]
    for k, wanted in ((1, sum(gaps[:1])), (2, sum(gaps[:2])), (3, sum(gaps)), (99, sum(gaps))):
        assert margin_loss(z, y, 0.9, k).item() == pytest.approx(wanted)
        attack = AttackMarginLoss(reduction="sum", top_k=k).bind(given(z, z, y))
        assert attack(z).item() == pytest.approx(wanted)


def test_it_is_zero_with_no_gradient_where_every_margin_is_kept():
    z = torch.tensor([[5.0, 4.1, 0.0]], requires_grad=True)
    loss = margin_loss(z, torch.tensor([0]), 0.9)
    loss.sum().backward()
    assert loss.item() == 0
    assert z.grad is not None
    assert not z.grad.any()
