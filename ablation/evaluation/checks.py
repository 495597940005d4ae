"""Does the evaluation contradict itself? Signs of gradient masking, from the results alone.

Pure functions of entries and examples. A check compares attacks of the same norm and radius on
the examples that both were run on; one whose attacks were not run says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations, product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from ablation.evaluation.evaluate import Entry

BLACK_BOX = ("square", "spsa")
WHITE_BOX = ("fgsm", "pgd", "apgd_ce", "apgd_dlr", "apgd_t", "fab_t")
PARTS = ("apgd_ce", "apgd_dlr", "apgd_t", "fab_t", "square")
BLACK_BOX_LEAD = 0.2
"""Points by which black box may beat white box: the tolerance of pyautoattack's own check."""
ROUNDING = 1e-9
AUTOATTACK_GAP = 10.0
"""Points from PGD down to AutoAttack. Adversarially trained networks show 2 to 8 (published MART
and margin-based runs are the upper end); far more means that PGD's gradients mislead."""


def diagnose(entries: Sequence[Entry], examples: pd.DataFrame) -> tuple[str, ...]:
    """All findings, one line each.

    Args:
        entries: of one evaluation.
        examples: its table.
    """
    attacked = [entry for entry in entries if f"{entry.metric}_robust" in examples]
    return (
        *weaker_wins(attacked, examples),
        *ensemble_above_part(attacked, examples),
        *black_box_wins(attacked, examples),
        *far_below_pgd(attacked, examples),
        *square_breaks(attacked, examples),
        *zero_gradients(examples),
    )


def weaker_wins(entries: Sequence[Entry], examples: pd.DataFrame) -> Iterator[str]:
    """More steps, or a larger radius, left more examples robust."""
    for weak, strong in permutations(entries, 2):
        if not _is_stronger(strong, weak):
            continue
        low, high, worst = _compare(weak, strong, examples)
        if high > low:
            yield (
                f"{strong.metric} is {high - low:.2f} points above {weak.metric}, which is the "
                f"weaker attack; both together leave {worst:.2f}%. A larger step or more "
                "restarts, or gradient masking"
            )


def ensemble_above_part(entries: Sequence[Entry], examples: pd.DataFrame) -> Iterator[str]:
    """AutoAttack left more examples robust than one of its parts alone."""
    for whole, part in product(_of(entries, "auto_attack"), _of(entries, *PARTS)):
        if not _same_threat(whole, part):
            continue
        low, high, worst = _compare(part, whole, examples)
        if high > low:
            yield (
                f"{whole.metric} is {high - low:.2f} points above {part.metric}, one of its "
                f"parts; both together leave {worst:.2f}%. Other settings or random starts can "
                "explain a few images"
            )


def black_box_wins(entries: Sequence[Entry], examples: pd.DataFrame) -> Iterator[str]:
    """An attack without gradients did better than the best one with them."""
    for black in _of(entries, *BLACK_BOX):
        rivals = [white for white in _of(entries, *WHITE_BOX) if _same_threat(white, black)]
        scored = [(_compare(black, white, examples), white) for white in rivals]
        leads = [(white_left - left, white) for (left, white_left, _), white in scored]
        if not leads:
            continue
        lead, best = min(leads, key=lambda pair: pair[0])
        if lead > BLACK_BOX_LEAD + ROUNDING:
            yield (
                f"{black.metric} is {lead:.2f} points below {best.metric}: a black-box attack "
                "beats the white-box ones, so gradient masking is likely"
            )


def far_below_pgd(entries: Sequence[Entry], examples: pd.DataFrame) -> Iterator[str]:
    """AutoAttack is far below the strongest PGD."""
    for whole in _of(entries, "auto_attack"):
        rivals = [entry for entry in _of(entries, "pgd") if _same_threat(entry, whole)]
        gaps = [(_gap(whole, rival, examples), rival) for rival in rivals]
        gap, rival = min(gaps, key=lambda pair: pair[0], default=(0.0, None))
        if rival is not None and gap > AUTOATTACK_GAP:
            yield (
                f"{rival.metric} is {gap:.1f} points above {whole.metric}: gradient masking is "
                "likely"
            )


def square_breaks(entries: Sequence[Entry], examples: pd.DataFrame) -> Iterator[str]:
    """Within AutoAttack, Square broke what the white-box parts had left."""
    for whole in _of(entries, "auto_attack"):
        broken_by = examples[f"{whole.metric}_broken_by"]
        share = 100 * int((broken_by == "square").sum()) / max(1, whole.n)
        if share > BLACK_BOX_LEAD + ROUNDING:
            yield (
                f"Square, the last part of {whole.metric}, broke {share:.2f}% that the white-box "
                "parts had left: gradient masking is likely, and more queries or an adaptive "
                "attack may break more"
            )


def zero_gradients(examples: pd.DataFrame) -> Iterator[str]:
    """Images at which the cross-entropy's gradient is exactly zero: gradient attacks stay there."""
    if "zero_gradient" not in examples:
        return
    among = examples.loc[examples["clean_correct"], "zero_gradient"]
    if among.any():
        yield (
            f"{100 * among.mean():.2f}% of the correctly classified images have a zero input "
            "gradient of the cross-entropy: attacks on it (FGSM, PGD, APGD-CE) may not move them"
        )


def _of(entries: Sequence[Entry], *attacks: str) -> list[Entry]:
    return [entry for entry in entries if entry.params["attack"] in attacks]


def _same_threat(a: Entry, b: Entry) -> bool:
    return all(a.params[key] == b.params[key] for key in ("norm", "eps"))


def _is_stronger(strong: Entry, weak: Entry) -> bool:
    """By construction: PGD after FGSM, or the same attack with only steps or eps raised."""
    a, b = strong.params, weak.params
    if (a["attack"], b["attack"]) == ("pgd", "fgsm"):
        return _same_threat(strong, weak) and a.get("loss") == "ce"
    fixed = ("attack", "norm", "loss", "start", "restarts", "seed")
    if a["attack"] not in ("fgsm", "pgd") or any(a.get(key) != b.get(key) for key in fixed):
        return False
    raised = [key for key in ("eps", "steps") if a[key] > b[key]]
    lowered = [key for key in ("eps", "steps") if a[key] < b[key]]
    return len(raised) == 1 and not lowered


def _compare(a: Entry, b: Entry, examples: pd.DataFrame) -> tuple[float, float, float]:
    """Robust accuracy in percent of both and of their union, on the examples they share."""
    pair = examples[[f"{a.metric}_robust", f"{b.metric}_robust"]].dropna().astype(bool)
    first, second = pair.iloc[:, 0], pair.iloc[:, 1]
    size = max(1, len(pair)) / 100
    return first.sum() / size, second.sum() / size, (first & second).sum() / size


def _gap(low: Entry, high: Entry, examples: pd.DataFrame) -> float:
    below, above, _ = _compare(low, high, examples)
    return above - below
