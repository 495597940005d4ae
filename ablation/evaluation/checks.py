"""Check an evaluation for gradient masking and collapse, with values and limits.

Pure functions of attacks, examples and probes (see ``probes``). An attack's ``family`` decides in
which checks it takes part, so that a new class takes part by declaring one. A check compares
attacks of the same norm and radius on the examples that both were run on; one whose attacks were
not run says which it needs. Shares and differences are in percent and percentage points.

Sources: Carlini et al. (2019, arXiv:1902.06705), section 5; Athalye et al. (2018,
arXiv:1802.00420), section 3.1; for logit scales and the boundary, DOSE.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from typing import TYPE_CHECKING

from torch import Tensor

from ablation.evaluation.results import Attacked, Check, Probe

if TYPE_CHECKING:
    import pandas as pd

    from ablation.evaluation.attacks import Family


BLACK_BOX_LEAD = 0.2
"""Points by which black box may beat white box: the tolerance of pyautoattack's own check."""
ROUNDING = 1e-9
AUTOATTACK_GAP = 10.0
"""Points from PGD down to AutoAttack. Adversarially trained networks show 2 to 8 (published MART
and margin-based runs are the upper end); far more means that PGD's gradients mislead."""
SATURATED_GAP = 24 * math.log(2)
"""Logit gap, 16.6, from which fp32 cross-entropy loses its y component: sum_j exp(z_j - z_y) =
1 + exp(-gap) rounds to 1 once exp(-gap) < 2^-24, so that p_y - 1 is exactly 0."""
SATURATED_SHARE = AUTOATTACK_GAP
"""Percent of correct images beyond ``SATURATED_GAP``. As many may be counted robust for no other
reason; more than this exceeds what else separates PGD from AutoAttack."""
RESCALED_LEAD = 5.0
"""Points by which APGD-CE may do better on rescaled logits. Another scale weighs the rivals
otherwise, which is worth no more than another loss: margin losses gain 2 to 4 on adversarially
trained networks (Croce and Hein, 2020, Table 2)."""
LARGE_RADIUS_LEFT = 5.0
"""Percent that may survive a radius at which every image can become uniformly grey."""
BOUNDARY_GAP = 2.0
"""Points between AutoAttack and the share of images farther than eps from FAB's boundary."""
UNPREDICTED = 5.0
"""Percent of images whose class may never be predicted. A network that answers with a few classes
keeps their images whatever the attack: robust accuracy that no one would use."""
IMAGES_PER_CLASS = 10
"""On fewer a sound network may miss a class by chance."""


@dataclass(frozen=True)
class _Finding:
    """Excess over what should be, in points, and the text for one that is too large."""

    excess: float
    text: str


def diagnose(
    attacked: Sequence[Attacked], examples: pd.DataFrame, probes: Mapping[str, Probe | str]
) -> tuple[Check, ...]:
    """Run all checks, always the same ones in the same order.

    Args:
        attacked: the attacks of one evaluation, in order.
        examples: its table.
        probes: by the name of their check; text says what one would have needed.
    """
    return (
        logit_gap(examples),
        zero_gradient(examples),
        rescaled_apgd(probes["rescaled_apgd"]),
        ordering(attacked, examples),
        autoattack_lowest(attacked, examples),
        black_box(attacked, examples),
        pgd_gap(attacked, examples),
        square_last(attacked, examples),
        zero_radius(probes["zero_radius"]),
        large_radius(probes["large_radius"]),
        boundary_distance(probes["boundary_distance"]),
        predicted_classes(examples),
    )


def logit_gap(examples: pd.DataFrame) -> Check:
    """Count images whose logit gap z_(1) - z_(2) saturates the cross-entropy in fp32."""
    name = "logit_gap"
    if not examples["clean_correct"].any():
        return _not_run(name, "needs a correctly classified image")
    gaps = examples["logit_gap"]
    saturated = gaps[examples["clean_correct"]] > SATURATED_GAP
    values = {
        "saturated": 100 * float(saturated.mean()),
        "mean": float(gaps.mean()),
        "p99": float(gaps.quantile(0.99)),
    }
    text = (
        f"{values['saturated']:.2f}% of the correctly classified images have a logit gap above "
        f"{SATURATED_GAP:.1f} (mean {values['mean']:.4g}, 99th percentile {values['p99']:.4g})"
    )
    consequence = (
        ": p_y rounds to 1 in fp32, so attacks on the cross-entropy (FGSM, PGD, APGD-CE) may "
        "report robustness that is not there"
    )
    return _judged(name, values, SATURATED_SHARE, text, text + consequence)


def zero_gradient(examples: pd.DataFrame) -> Check:
    """Count images at which the cross-entropy's gradient is exactly zero: attacks stay there."""
    name = "zero_gradient"
    if "zero_gradient" not in examples:
        return _not_run(name, "needs an attack")
    if not examples["clean_correct"].any():
        return _not_run(name, "needs a correctly classified image")
    share = 100 * float(examples.loc[examples["clean_correct"], "zero_gradient"].mean())
    text = (
        f"{share:.2f}% of the correctly classified images have a zero input gradient of the "
        "cross-entropy"
    )
    consequence = ": attacks on it (FGSM, PGD, APGD-CE) may not move them"
    return _judged(name, {"share": share}, 0.0, text, text + consequence)


def rescaled_apgd(probe: Probe | str) -> Check:
    """Limit what APGD-CE on rescaled logits breaks beyond what APGD-CE broke."""
    name = "rescaled_apgd"
    if isinstance(probe, str):
        return _not_run(name, probe)
    values = {
        "broken_more": _percent(probe.before & ~probe.after),
        "plain": _percent(probe.before),
        "worst_case": _percent(probe.before & probe.after),
    }
    text = (
        f"APGD-CE on rescaled logits breaks {values['broken_more']:.2f} points more than APGD-CE "
        f"({probe.against}) on the same {len(probe.before)} images; both together leave "
        f"{values['worst_case']:.2f}%"
    )
    threshold = RESCALED_LEAD + _chance(probe)
    return _judged(
        name, values, threshold, text, f"{text}: its accuracy depends on the scale of the logits"
    )


def ordering(attacked: Sequence[Attacked], examples: pd.DataFrame) -> Check:
    """Require that more steps, or a larger radius, leave no more examples robust."""
    findings = [
        _Finding(
            high - low,
            f"{strong.metric} is {high - low:.2f} points above {weak.metric}, which is the "
            f"weaker attack; both together leave {worst:.2f}%. A larger step or more "
            "restarts, or gradient masking",
        )
        for weak, strong in permutations(attacked, 2)
        if _is_stronger(strong, weak)
        for low, high, worst in [_compare(weak, strong, examples)]
    ]
    return _worst(
        "ordering",
        findings,
        0.0,
        needs="needs fgsm and pgd20, or attacks that differ in steps or radius only",
        fine="no attack with more steps or a larger radius leaves more images robust",
    )


def autoattack_lowest(attacked: Sequence[Attacked], examples: pd.DataFrame) -> Check:
    """Require that AutoAttack leaves no more examples robust than another attack at its radius."""
    findings = []
    for whole, other in product(_of(attacked, "ensemble"), attacked):
        if other.attack.family == "ensemble" or not _same_threat(whole, other):
            continue
        low, high, worst = _compare(other, whole, examples)
        kinds = {part.kind for part in whole.verdict.parts.values()}
        role = "one of its parts" if other.attack.kind in kinds else "at the same radius"
        text = (
            f"{whole.metric} is {high - low:.2f} points above {other.metric}, {role}; both "
            f"together leave {worst:.2f}%. Other settings or random starts can explain a few images"
        )
        findings.append(_Finding(high - low, text))
    return _worst(
        "autoattack_lowest",
        findings,
        0.0,
        needs="needs aa and another attack at the same radius",
        fine="AutoAttack leaves no more images robust than any other attack at its radius",
    )


def black_box(attacked: Sequence[Attacked], examples: pd.DataFrame) -> Check:
    """Require that no attack without gradients does better than the best one with them."""
    findings = []
    white_box = [a for a in attacked if a.attack.family not in ("black box", "ensemble")]
    for black in _of(attacked, "black box"):
        rivals = [white for white in white_box if _same_threat(white, black)]
        leads = [(_gap(black, white, examples), white.metric) for white in rivals]
        if leads:
            lead, best = min(leads)
            text = (
                f"{black.metric} is {lead:.2f} points below {best}: a black-box attack beats the "
                "white-box ones, so gradient masking is likely"
            )
            findings.append(_Finding(lead, text))
    return _worst(
        "black_box",
        findings,
        BLACK_BOX_LEAD,
        needs="needs square or spsa, and a gradient attack at the same radius",
        fine="no black-box attack beats the gradient attacks",
    )


def pgd_gap(attacked: Sequence[Attacked], examples: pd.DataFrame) -> Check:
    """Limit how far AutoAttack is below the strongest PGD."""
    findings = []
    for whole in _of(attacked, "ensemble"):
        rivals = [pgd for pgd in _of(attacked, "fixed steps") if _same_threat(pgd, whole)]
        gaps = [(_gap(whole, rival, examples), rival.metric) for rival in rivals]
        if gaps:
            gap, rival = min(gaps)
            text = f"{rival} is {gap:.1f} points above {whole.metric}: gradient masking is likely"
            findings.append(_Finding(gap, text))
    return _worst(
        "pgd_gap",
        findings,
        AUTOATTACK_GAP,
        needs="needs aa and a PGD at the same radius",
        fine="AutoAttack is not far below the strongest PGD",
    )


def square_last(attacked: Sequence[Attacked], examples: pd.DataFrame) -> Check:
    """Limit what Square breaks within AutoAttack after the white-box parts."""
    findings = []
    for whole in _of(attacked, "ensemble"):
        parts = whole.verdict.parts.items()
        queries = [name for name, part in parts if part.family == "black box"]
        broken = examples[f"{whole.metric}_broken_by"].isin(queries)
        share = 100 * int(broken.sum()) / len(whole.verdict.chosen)
        text = (
            f"Square, the last part of {whole.metric}, broke {share:.2f}% that the white-box "
            "parts had left: gradient masking is likely, and more queries or an adaptive "
            "attack may break more"
        )
        findings.append(_Finding(share, text))
    return _worst(
        "square_last",
        findings,
        BLACK_BOX_LEAD,
        needs="needs aa",
        fine="Square broke nothing that AutoAttack's white-box parts had left",
    )


def zero_radius(probe: Probe | str) -> Check:
    """Require that a PGD with radius 0 gives clean accuracy."""
    name = "zero_radius"
    if isinstance(probe, str):
        return _not_run(name, probe)
    values = {
        "changed": _percent(probe.before != probe.after),
        "accuracy": _percent(probe.after),
        "clean": _percent(probe.before),
    }
    text = (
        f"with radius 0 PGD leaves {values['accuracy']:.2f}%, clean accuracy is "
        f"{values['clean']:.2f}% on the same {len(probe.before)} images"
    )
    return _judged(name, values, 0.0, text, f"{text}: the network's answers are not reproducible")


def large_radius(probe: Probe | str) -> Check:
    """Require that a PGD that may turn every image grey breaks about all of them."""
    name = "large_radius"
    if isinstance(probe, str):
        return _not_run(name, probe)
    robust = _percent(probe.after)
    text = (
        f"PGD with radius {probe.eps:.4g}, enough to turn any image grey, leaves {robust:.2f}% of "
        f"{len(probe.after)} images"
    )
    return _judged(
        name,
        {"robust": robust, "clean": _percent(probe.before)},
        LARGE_RADIUS_LEFT,
        text,
        f"{text}: the gradients do not lead to adversarial examples",
    )


def boundary_distance(probe: Probe | str) -> Check:
    """Compare the share of images farther than eps from the boundary with AutoAttack's."""
    name = "boundary_distance"
    if isinstance(probe, str):
        return _not_run(name, probe)
    farther, robust = _percent(probe.after), _percent(probe.before)
    text = (
        f"{farther:.2f}% are farther than eps from FAB's boundary and correct, {robust:.2f}% "
        f"survive {probe.against}, of the same {len(probe.before)} images"
    )
    return _judged(
        name,
        {"difference": abs(farther - robust), "farther": farther, "autoattack": robust},
        BOUNDARY_GAP + _chance(probe),
        text,
        f"{text}: one of the two searches fails, so gradient masking is likely",
    )


def predicted_classes(examples: pd.DataFrame) -> Check:
    """Limit the share of images whose class is never predicted: a collapse to a few classes."""
    name = "predicted_classes"
    labels, predictions = examples["label"], examples["prediction"]
    if len(labels) < IMAGES_PER_CLASS * labels.nunique():
        return _not_run(name, f"needs {IMAGES_PER_CLASS} images per class")
    missed = ~labels.isin(predictions.unique())
    values = {
        "unpredicted": 100 * float(missed.mean()),
        "classes": float(labels[~missed].nunique()),
    }
    text = f"{values['classes']:.0f} of {labels.nunique()} classes are predicted"
    consequence = (
        f": the images of the others ({values['unpredicted']:.1f}%) are all wrong, and robust "
        "accuracy on the rest comes cheap"
    )
    return _judged(name, values, UNPREDICTED, text, text + consequence)


def transfer(pairs: Mapping[str, Probe]) -> Check:
    """Limit how far an attack by another network's points is below the same attack on this one.

    Its own gradients should lead an attack at least as far as another network's (Athalye et al.,
    section 3.1; Carlini et al., section 5.3); "clearly" is two standard errors and the lead that
    ``black_box`` allows.

    Args:
        pairs: by metric; ``before`` under the attack on the network itself, ``after`` under the
            transferred one.
    """
    findings = []
    for metric, probe in pairs.items():
        own, other = _percent(probe.before), _percent(probe.after)
        text = (
            f"{metric} by another network's points leaves {other:.2f}%, on the network itself "
            f"{own:.2f}% of the same {len(probe.before)} images; both together leave "
            f"{_percent(probe.before & probe.after):.2f}%: its gradients mislead attacks, so "
            "gradient masking is likely"
        )
        findings.append(_Finding(own - other - _chance(probe), text))
    return _worst(
        "transfer",
        findings,
        BLACK_BOX_LEAD,
        needs="needs the same attack on the network itself first: leave out attack_from",
        fine="no attack by another network's points beats the same attack on the network itself",
    )


def _not_run(name: str, needs: str) -> Check:
    return Check(name, "not run", needs)


def _judged(name: str, values: Mapping[str, float], threshold: float, fine: str, bad: str) -> Check:
    """Compare the first value with its limit."""
    tripped = next(iter(values.values())) > threshold + ROUNDING
    return Check(
        name, "tripped" if tripped else "passed", bad if tripped else fine, values, threshold
    )


def _worst(
    name: str, findings: Sequence[_Finding], threshold: float, *, needs: str, fine: str
) -> Check:
    """Compare the largest excess with its limit; the text has all that are too large."""
    if not findings:
        return _not_run(name, needs)
    said = [finding.text for finding in findings if finding.excess > threshold + ROUNDING]
    excess = max(finding.excess for finding in findings)
    return _judged(name, {"excess": excess}, threshold, fine, "; ".join(said))


def _percent(mask: Tensor) -> float:
    """Return the share of a mask [n], in percent."""
    return 100 * mask.double().mean().item()


def _chance(probe: Probe) -> float:
    """Return two standard errors, in points, of a difference of two shares over the same images.

    McNemar's: sqrt(b + c) / n with b + c images on which the verdicts differ.
    """
    differing = int((probe.before != probe.after).sum())
    return 200 * math.sqrt(differing) / len(probe.before)


def _of(attacked: Sequence[Attacked], family: Family) -> list[Attacked]:
    return [one for one in attacked if one.attack.family == family]


def _same_threat(a: Attacked, b: Attacked) -> bool:
    return (a.norm, a.eps) == (b.norm, b.eps)


def _is_stronger(strong: Attacked, weak: Attacked) -> bool:
    """Tell what construction orders: PGD after FGSM, or one attack with only steps or eps raised.

    Only of attacks whose steps have a fixed length: more steps of APGD also move its checkpoints.
    """
    families = strong.attack.family, weak.attack.family
    a, b = strong.params, weak.params
    if families == ("fixed steps", "one step"):
        return _same_threat(strong, weak) and a.get("loss") == "ce"
    fixed = ("attack", "norm", "loss", "start", "restarts", "seed")
    if families[0] not in ("one step", "fixed steps") or any(a.get(k) != b.get(k) for k in fixed):
        return False
    strengths = [key for key in ("eps", "steps") if key in a and key in b]
    raised = [key for key in strengths if a[key] > b[key]]
    lowered = [key for key in strengths if a[key] < b[key]]
    return len(raised) == 1 and not lowered


def _compare(a: Attacked, b: Attacked, examples: pd.DataFrame) -> tuple[float, float, float]:
    """Return robust accuracy in percent of both and of their union, on the examples they share."""
    pair = examples[[f"{a.metric}_robust", f"{b.metric}_robust"]].dropna().astype(bool)
    first, second = pair.iloc[:, 0], pair.iloc[:, 1]
    size = len(pair) / 100
    counts = (int(mask.sum()) for mask in (first, second, first & second))
    low, high, both = (count / size for count in counts)
    return low, high, both


def _gap(low: Attacked, high: Attacked, examples: pd.DataFrame) -> float:
    below, above, _ = _compare(low, high, examples)
    return above - below
