"""A comparison as LaTeX floats."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ablation.reports.comparison import Comparison, Contrast
from ablation.reports.style import paper_name
from ablation.reports.text_tables import (
    SMOKE,
    Group,
    Table,
    Text,
    across,
    between_banners,
    in_blocks,
    tables_of,
)

LATEX_WIDTH = 110
"""Characters of a block of a LaTeX table that ``\\scriptsize`` sets on 14 cm."""

LATEX_LINES = 56
"""Lines of blocks that fit in one LaTeX float."""

GREEK = (
    "alpha beta gamma delta varepsilon zeta eta theta iota kappa lambda mu nu xi o pi rho "
    "varsigma sigma tau upsilon varphi chi psi omega"
)
"""LaTeX's names from U+03B1 on."""

LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        **{char: rf"\{char}" for char in "{}$&%#_"},
        **{char: f"{{{char}}}" for char in "[]*"},  # else a row that begins so is an argument of \\
        "±": r"$\pm$",
        "\u00d7": r"$\times$",
        "\u2113": r"$\ell$",
        "\u2212": "$-$",
        "\u221e": r"$\infty$",
        "\u2264": r"$\leq$",
        "\u2265": r"$\geq$",
        **{chr(0x3B1 + at): rf"$\{name}$" for at, name in enumerate(GREEK.split()) if name != "o"},
    }
)
"""What pdflatex would misread, or has no letter for."""


def latex(comparison: Comparison, strict: bool = False, contrasts: Sequence[Contrast] = ()) -> str:
    r"""Floats for a document with ``\usepackage{booktabs}``; the label is ``tab:<name>``.

    Args:
        comparison: the table.
        strict: hide measured numbers with tags.
        contrasts: of its rows; a second float, labelled ``tab:<name>:<other row's key>``.
    """
    caption = rf"\textbf{{{SMOKE}.}} " if comparison.scale == "smoke" else ""
    tables = tables_of(comparison, strict, contrasts)
    return between_banners(comparison, [as_latex(table, caption) for table in tables], f"% {SMOKE}")


def as_latex(table: Table, warning: str) -> str:
    """One float, or several with the same number if the blocks are too many for a page."""
    label = re.sub(r"[^\w:.+-]", "-", table.label, flags=re.ASCII)
    blocks = [_tabular([table.stub, *block]) for block in in_blocks(table, LATEX_WIDTH)]
    per_float = max(1, LATEX_LINES // (len(table.stub.rows) + 4))
    floats = []
    for at in range(0, len(blocks), per_float):
        legend = "continued" if at else table.legend
        body = "\n\\par\\medskip\n".join(blocks[at : at + per_float])
        floats.append(
            [
                r"\begin{table}[tbp]",
                r"\centering",
                r"\addtocounter{table}{-1}" if at else "",
                rf"\caption{{{warning}{latex_text(f'{table.title} ({legend}).')}}}",
                "" if at else rf"\label{{tab:{label}}}",
                r"\scriptsize\setlength{\tabcolsep}{2.5pt}",
                body,
                r"\end{table}",
            ]
        )
    floats[-1].insert(-1, _latex_notes(table))
    return "\n\n".join("\n".join(filter(None, lines)) for lines in floats)


def _latex_notes(table: Table) -> str:
    notes = [
        rf"\textsuperscript{{{letter}}} {latex_text(text)}"
        for letter, text in table.footnotes.items()
    ]
    notes += map(latex_text, table.notes)
    return "\n\n".join([r"\begin{flushleft}", *notes, r"\end{flushleft}"]) if notes else ""


def _tabular(groups: Sequence[Group]) -> str:
    spec = "".join(("l" if group.words else "r") * len(group.names) for group in groups)
    rows = [map(_latex_cell, row) for row in across(group.rows for group in groups)]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{@{{}}{spec}@{{}}}}",
            r"\toprule",
            *_latex_header(groups),
            r"\midrule",
            *(rf"{' & '.join(row)} \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def _latex_header(groups: Sequence[Group]) -> list[str]:
    """One line; or two, with a rule below each metric that has several columns."""
    metrics = groups[1:]
    if all(len(group.names) == 1 for group in metrics):
        names = [latex_text(paper_name(name)) for group in groups for name in group.header]
        return [rf"{' & '.join(names)} \\"]
    below = [latex_text(name) for name in groups[0].header]
    above, rules, at = [""] * len(below), [], len(below) + 1
    for group in metrics:
        span = len(group.names)
        above.append(rf"\multicolumn{{{span}}}{{c}}{{{latex_text(paper_name(group.heading))}}}")
        below += map(latex_text, group.names)
        if span > 1:
            rules.append(rf"\cmidrule(lr){{{at}-{at + span - 1}}}")
        at += span
    return [rf"{' & '.join(above)} \\", " ".join(rules), rf"{' & '.join(below)} \\"]


def _latex_cell(cell: Text) -> str:
    mark = rf"\textsuperscript{{{cell.marks}}}" if cell.marks else ""
    return latex_text(cell.text) + mark


def latex_text(text: str) -> str:
    """Escaped; the hyphen of a negative number becomes a minus."""
    return re.sub(r"(?<![\w)])-(?=\d)", "$-$", " ".join(text.split()).translate(LATEX))
