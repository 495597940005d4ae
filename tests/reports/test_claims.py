"""Claims of the papers: what they name is there, and verdicts follow from paired differences."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import yaml
from hydra import initialize_config_dir

from ablation.config import folders
from ablation.config.parser import Parser
from ablation.errors import ConfigError, InputError
from ablation.reports.claim_files import Pair, Paper, load_paper, paper_names
from ablation.reports.claim_texts import Ruling, as_json
from ablation.reports.claims import publish_claims
from ablation.reports.comparison import Cell, Comparison, Interval, Row, Sample
from ablation.reports.verdicts import borne_out, judge, side
from ablation.sweeps.planning import Planner
from ablation.sweeps.published import COLUMNS as CSV
from ablation.sweeps.published import Published, PublishedTable
from ablation.sweeps.request import open_table, table_folders
from tests.support.fake_runs import fake_run

pytestmark = pytest.mark.usefixtures("composed_once")

SHIPPED = table_folders()
PAPERS = {name: load_paper(name, SHIPPED) for name in paper_names(SHIPPED)}
CLAIMS = {claim.id: claim for paper in PAPERS.values() for claim in paper.claims}
MINIATURES = [(paper, name) for paper in PAPERS.values() for name in paper.miniatures]


@pytest.fixture(autouse=True)
def hydra():
    folders.register_components()
    with initialize_config_dir(version_base="1.3", config_dir=str(folders.conf_dir())):
        yield


# What is shipped ---------------------------------------------------------------------------------


def printed(pair: Pair) -> list[Decimal]:
    """A pair's numbers, straight from the CSV."""
    path = folders.sweeps_dir() / "published" / f"{pair.table}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == pair.metric]
    found = []
    for name in (pair.arm, pair.against):
        arm, _, model = name.partition("@")
        (row,) = [r for r in rows if r["arm"] == arm and r["model"] == (model or r["model"])]
        found.append(Decimal(row["value"]))
    return found


def test_every_paper_has_its_claims():
    assert {name: len(paper.claims) for name, paper in PAPERS.items()} == {
        "dose": 15,
        "emr": 16,
        "lma": 16,
        "mwpb": 15,
    }
    assert all(claim.id.startswith(f"{name}_") for name, p in PAPERS.items() for claim in p.claims)


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_a_claim_names_trained_rows_and_goes_with_the_print_or_says_so(claim):
    for pair in claim.pairs:
        rows = {row.key: row.arm for row in open_table(pair.table).lines()}
        assert rows[pair.arm] != rows[pair.against]
        arm, against = printed(pair)
        assert borne_out(pair, float(arm - against)) or any(
            "prints the opposite" in text for text in claim.footnotes
        )


@pytest.mark.parametrize(("paper", "name"), MINIATURES, ids=[name for _, name in MINIATURES])
def test_a_miniature_has_the_rows_and_the_data_that_are_said(paper, name):
    small, table = paper.miniatures[name], open_table(name)
    keys = {row.key for row in table.lines()}
    named = {change.arm for c in paper.claims if (change := c.miniature.get(name))}
    named |= {change.against for c in paper.claims if (change := c.miniature.get(name))}
    assert (named - {None}) | set(small.rows.values()) <= keys
    published = {row for claim in paper.claims for p in claim.pairs for row in (p.arm, p.against)}
    assert set(small.rows) <= published
    (first, *_) = Planner(table, rows=[next(iter(table.arms))], check=False).plan().jobs
    assert first.config.data.name == small.data


# Verdicts ----------------------------------------------------------------------------------------

HIGHER, LOWER = Pair("t", "a", "b", "aa", "higher"), Pair("t", "a", "b", "aa", "lower")
EQUAL = Pair("t", "a", "b", "aa", "equal", within=1)
LITTLE = Pair("t", "a", "b", "aa", "lower", within=2)


@pytest.mark.parametrize(
    ("pair", "mean", "half", "verdict"),
    [
        (HIGHER, 3, 2, "holds"),
        (HIGHER, -3, 2, "does not hold"),
        (HIGHER, 1, 2, "undecided"),
        (HIGHER, 2, 2, "undecided"),  # its end is 0
        (HIGHER, 0, 0, "undecided"),
        (LOWER, -3, 2, "holds"),
        (LOWER, 3, 2, "does not hold"),
        (LOWER, -1, 2, "undecided"),
        (LOWER, -2, 2, "undecided"),
        (EQUAL, 0, 0, "holds"),
        (EQUAL, 0.5, 0.4, "holds"),
        (EQUAL, 0.5, 0.6, "undecided"),
        (EQUAL, 2, 0.9, "does not hold"),
        (EQUAL, -2, 0.9, "does not hold"),
        (LITTLE, -1, 0.5, "holds"),
        (LITTLE, -1.8, 0.5, "undecided"),
        (LITTLE, -4, 1, "does not hold"),
        (LITTLE, 1, 0.5, "does not hold"),
        (HIGHER, 3, None, "undecided"),
    ],
)
def test_an_interval_is_held_against_what_bears_the_claim_out(pair, mean, half, verdict):
    assert side(pair, Interval(mean, half, 5)) == verdict


ARMS = {"at": (80, 30.0), "trades": (79, 32.5), "mart": (81, 28.0)}
"""Printed: clean accuracy; that under every attack."""
COLUMNS = ("clean", "apgd_ce", "aa")
CLAIM = {
    "id": "mine_1",
    "says": "TRADES is more robust than AT.",
    "place": "section 1",
    "table": "mine",
    "arm": "trades",
    "against": "at",
    "metric": "aa",
    "direction": "higher",
}


def numbers() -> PublishedTable:
    cells = {
        arm: {
            column: Published(float(value), str(value))
            for column in COLUMNS
            for value in [clean if column == "clean" else robust]
        }
        for arm, (clean, robust) in ARMS.items()
    }
    names = dict.fromkeys(ARMS, "digits"), dict.fromkeys(ARMS, "tiny_cnn")
    return PublishedTable(COLUMNS, dict.fromkeys(COLUMNS, "percent"), cells, *names)


def my_paper(*claims, **more) -> Paper:
    content = {"title": "My claims", "claims": [CLAIM | claim for claim in claims], **more}
    paper = Parser().parse(Paper, content, "")
    assert isinstance(paper, Paper)
    return paper


@pytest.fixture
def measured(tmp_path):
    """A comparison of runs on 200 images, of which the first so many percent are robust.

    ``values``: by arm a number per column, or one per seed.
    """

    def make(values, seeds=(0, 1), examples=True, tags=(), flags=(), **more) -> Comparison:
        rows = []
        for arm in ARMS:
            samples: dict[str, list[Sample]] = {}
            for column, value in values.get(arm, {}).items():
                for seed in seeds:
                    mine = value[seed] if isinstance(value, tuple) else value
                    file = tmp_path / f"{arm}-{seed}-{column}.parquet"
                    robust = np.arange(200) < 2 * mine
                    index = np.arange(200)
                    pd.DataFrame(
                        {"index": index, "label": index % 10, f"{column}_robust": robust}
                    ).to_parquet(file)
                    sample = Sample(f"seed={seed}", mine, 200, "run", file if examples else None)
                    samples.setdefault(column, []).append(sample)
            cells = {
                column: Cell(column, samples=tuple(samples[column]), tags=tags)
                if column in samples
                else Cell(column, absent={"missing": 2})
                for column in COLUMNS
            }
            rows.append(Row(arm, arm, arm, cells, flags=flags, data="digits"))
        return Comparison("mine", "Mine", COLUMNS, tuple(rows), **more)

    return make


def record(claims, comparison, strict=False):
    """What the JSON file says of each claim."""
    judged = judge(my_paper(*claims), {"mine": numbers()}, {"mine": comparison}, strict)
    return json.loads(as_json(Ruling("mine", "My claims", tuple(judged))))["claims"]


def verdict(comparison, strict=False, **claim):
    (found,) = record([claim], comparison, strict)
    return found["verdict"], found["why"]


@pytest.mark.parametrize(
    ("trades", "expected"),
    [((50, 51), "holds"), ((30, 31), "does not hold"), ((40, 42), "undecided")],
)
def test_a_claim_follows_the_paired_difference(measured, trades, expected):
    (claim,) = record([{}], measured({"at": {"aa": (40, 41)}, "trades": {"aa": trades}}))
    assert (claim["verdict"], claim["why"]) == (expected, "")
    (pair,) = claim["pairs"]
    assert pair["measured"]["arm"]["mean"] == sum(trades) / 2
    assert pair["difference"]["by_seed"]["mean"] == sum(trades) / 2 - 40.5
    assert pair["difference"]["by_seed"]["n"] == 2
    assert pair["difference"]["by_example"]["n"] == 200
    assert pair["published"]["arm"]["printed"] == "32.5"
    assert pair["published"]["difference"] == "+2.5"


def test_both_intervals_must_bear_a_claim_out(measured):
    # Alike in both seeds, but on two images.
    (claim,) = record([{}], measured({"at": {"aa": 40}, "trades": {"aa": 41}}))
    assert claim["pairs"][0]["difference"]["by_seed"] == {"mean": 1.0, "half_width": 0.0, "n": 2}
    assert claim["verdict"] == "undecided"


def test_one_seed_is_judged_by_its_examples_and_said(measured):
    (claim,) = record([{}], measured({"at": {"aa": 40}, "trades": {"aa": 50}}, seeds=(0,)))
    assert claim["verdict"] == "holds"
    assert any(text.startswith("one seed: ") for text in claim["pairs"][0]["remarks"])


def test_without_a_record_per_example_one_seed_decides_nothing(measured):
    values = {"at": {"aa": 40}, "trades": {"aa": 50}}
    found, why = verdict(measured(values, seeds=(0,), examples=False))
    assert found == "undecided"
    assert "no interval" in why


def test_what_is_not_measured_is_untested_and_why(measured):
    assert verdict(None) == ("untested", "missing")
    assert verdict(measured({"at": {"aa": 40}})) == ("untested", "trades: missing 2")


def test_other_seeds_are_no_pair(measured):
    first = measured({"at": {"aa": 40}}, seeds=(0,))
    second = measured({"trades": {"aa": 50}}, seeds=(1,))
    both = replace(first, rows=(first.rows[0], second.rows[1]))
    assert verdict(both) == ("untested", "no two runs that can be paired")


def test_numbers_off_the_recipe_are_tagged_and_hidden_by_strict(measured):
    found = measured({"at": {"aa": 40}, "trades": {"aa": 60}}, tags=("n=100",))
    (claim,) = record([{}], found)
    assert (claim["verdict"], claim["pairs"][0]["remarks"]) == ("holds", ["n=100"])
    expected = ("untested", "trades: hidden (n=100); at: hidden (n=100)")
    assert verdict(found, strict=True) == expected


def test_smoke_runs_judge_nothing(measured):
    found = measured({"at": {"aa": 40}, "trades": {"aa": 60}}, scale="smoke")
    assert verdict(found) == ("untested", "smoke runs only")


def test_warnings_of_a_run_stand_below(measured):
    found = measured({"at": {"aa": 40}, "trades": {"aa": 60}}, flags=("no gradient",))
    (claim,) = record([{}], found)
    assert "warning: trades: no gradient" in claim["pairs"][0]["remarks"]


def test_a_confounded_pair_is_not_decidable_with_or_without_runs(measured):
    expected = ("not decidable", "confounded: lambda changes too")
    for runs in (None, measured({"at": {"aa": 40}, "trades": {"aa": 60}})):
        assert verdict(runs, confounded="lambda changes too") == expected


@pytest.mark.parametrize(
    ("aa", "expected"), [(0.0, "not decidable"), (0.5, "not decidable"), (20.0, "holds")]
)
def test_apgd_ce_is_not_believed_where_autoattack_leaves_nothing(measured, aa, expected):
    runs = measured({"at": {"apgd_ce": 30, "aa": 20}, "trades": {"apgd_ce": 45, "aa": aa}})
    found, why = verdict(runs, metric="apgd_ce")
    assert found == expected
    assert ("AutoAttack leaves nothing in trades (45.0, " in why) == (expected != "holds")


def test_a_network_without_any_robustness_masks_nothing(measured):
    runs = measured({"at": {"apgd_ce": 0, "aa": 0}, "trades": {"apgd_ce": 45, "aa": 40}})
    assert verdict(runs, metric="apgd_ce")[0] == "holds"


def test_apgd_ce_without_autoattack_beside_it_is_not_decidable(measured):
    found, why = verdict(
        measured({"at": {"apgd_ce": 30}, "trades": {"apgd_ce": 45}}), metric="apgd_ce"
    )
    assert found == "not decidable"
    assert "no AutoAttack accuracy beside it" in why


def test_equal_means_within_a_margin(measured):
    runs = measured({"at": {"aa": (40, 41)}, "trades": {"aa": (41, 42)}})
    assert verdict(runs, direction="equal", within=5)[0] == "holds"


@pytest.mark.parametrize(
    ("mart", "claim", "expected"),
    [
        ((50, 51), {}, ("holds", "")),
        ((80, 81), {}, ("does not hold", "1 of 2 pairs")),
        ((60, 60), {}, ("undecided", "1 of 2 pairs")),
        (None, {}, ("untested", "1 of 2 pairs; mart: missing 2")),
        (None, {"direction": "lower"}, ("does not hold", "1 of 2 pairs")),
    ],
)
def test_a_claim_of_several_pairs_holds_where_all_do(measured, mart, claim, expected):
    values = {"at": {"aa": (40, 41)}, "trades": {"aa": (60, 61)}}
    values |= {} if mart is None else {"mart": {"aa": mart}}
    assert verdict(measured(values), also=[{"against": "mart"}], **claim) == expected


def test_a_pair_that_fails_outranks_one_that_cannot_be_decided(measured):
    runs = measured({"at": {"aa": 40}, "trades": {"aa": 60}})
    also = [{"against": "mart", "confounded": "all"}]
    assert verdict(runs, direction="lower", also=also) == ("does not hold", "1 of 2 pairs")
    assert verdict(runs, also=also) == ("not decidable", "1 of 2 pairs; confounded: all")


# A user's own table, its published numbers, claims and runs --------------------------------------

TABLE = {
    "title": "Mine",
    "set": ["evaluation=dose", "evaluation.val=[]", "epochs=5"],
    "axes": {"seed": [0, 1]},
    # A learning rate composes sooner than a method and is as good.
    "arms": {name: {"set": [f"lr=0.{at}"]} for at, name in enumerate(ARMS, 1)},
}


@pytest.fixture
def world(tmp_path):
    class World:
        tables, runs, out = tmp_path / "tables", tmp_path / "runs", tmp_path / "out"

        def __init__(self):
            for name in ("published", "claims"):
                (self.tables / name).mkdir(parents=True)
            self.table("mine", TABLE)
            with (self.tables / "published/mine.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(CSV)
                for arm, (clean, robust) in ARMS.items():
                    for metric in COLUMNS:
                        value = clean if metric == "clean" else robust
                        line = (arm, "digits", "tiny_cnn", metric, value, "", "percent", "")
                        writer.writerow(line)

        def table(self, name, content):
            (self.tables / f"{name}.yaml").write_text(yaml.safe_dump(content))

        def claim(self, *claims, **more):
            content = {"title": "My claims", "claims": [CLAIM | claim for claim in claims], **more}
            (self.tables / "claims/mine.yaml").write_text(yaml.safe_dump(content))

        def train(self, values, name="mine"):
            table, place = open_table(name, self.tables), [f"++runs_dir={self.runs}"]
            for job in Planner(table, place, list(values), check=False).plan().jobs:
                fake_run(job.config, {"clean": 90, **values[job.points[0].arm]})

        def judge(self, table=None):
            publish_claims(["mine"], table, self.runs, str(self.out), (), str(self.tables))
            folder = self.out / ("claims_mine" if table is None else f"claims_mine_{table}")
            return json.loads((folder / "claims.json").read_text())

    return World()


# Miniatures --------------------------------------------------------------------------------------

SMALL = {
    **TABLE,
    "title": "Mine in miniature",
    "axes": {"seed": [0]},
    "arms": {"at": {"set": ["lr=0.1"]}, "small_trades": {"set": ["lr=0.2"]}},
}


def test_a_miniature_asks_the_claims_on_its_data_that_it_has_rows_for(world, capsys):
    world.table("small", SMALL)
    other = {"id": "mine_2", "against": "mart"}
    third = {"id": "mine_3", "confounded": "much", "miniature": {"small": {"confounded": ""}}}
    rows = {"trades": "small_trades"}
    world.claim({}, other, third, miniatures={"small": {"data": "digits", "rows": rows}})
    world.train({"at": {"aa": 40}, "small_trades": {"aa": 60}}, "small")
    found = world.judge("small")
    assert found["miniature"]
    assert [(c["id"], c["verdict"]) for c in found["claims"]] == [
        *(("mine_1", "holds"), ("mine_3", "holds")),
    ]
    (pair,) = found["claims"][0]["pairs"]
    assert (pair["table"], pair["arm"], pair["against"]) == ("small", "small_trades", "at")
    assert (pair["published"]["table"], pair["published"]["difference"]) == ("mine", "+2.5")
    out = capsys.readouterr().out
    assert "judged on Mine in miniature, which is not the paper's setting" in out
    assert "not asked in small: mine_2" in out
    world.claim({}, miniatures={"small": {"data": "mnist", "rows": rows}})
    assert world.judge("small")["claims"] == []


def test_a_table_of_the_paper_is_judged_alone(world, capsys):
    world.table("second", TABLE)
    published = world.tables / "published"
    (published / "second.csv").write_text((published / "mine.csv").read_text())
    world.claim({}, {"id": "mine_2", "table": "second"})
    assert [c["id"] for c in world.judge("second")["claims"]] == ["mine_2"]
    assert [c["id"] for c in world.judge()["claims"]] == ["mine_1", "mine_2"]
    assert f"no runs in {world.runs}" in capsys.readouterr().out


# What is printed ---------------------------------------------------------------------------------


def test_the_three_texts_say_the_same(world, capsys):
    odd = "The text says 30 % | the table another."
    world.claim({"direction": "lower", "footnotes": [odd]}, notes=["A note on the paper."])
    world.train({"at": {"aa": 40}, "trades": {"aa": 50}})
    world.judge()
    out = capsys.readouterr().out
    folder = world.out / "claims_mine"
    text, tex = (folder / "claims.md").read_text(), (folder / "claims.tex").read_text()
    assert "mine_1: does not hold" in out
    assert "TRADES is more robust than AT. [section 1] (a)" in out
    assert f"a: {odd}" in out
    assert "b: the printed numbers do not bear this out" in out
    assert "A note on the paper." in out
    row = next(line for line in out.splitlines() if line.startswith("mine_1 b"))
    assert "32.5     30.0   +2.5" in row
    assert "- **mine_1: does not hold.** TRADES is more robust than AT." in text
    assert r"<sup>a</sup> The text says 30 % \| the table another." in text
    assert "| mine_1 <sup>b</sup> | mine | aa | does not hold | 32.5 | 30.0 | +2.5 |" in text
    assert r"\item[mine\_1] \textbf{does not hold.} TRADES is more robust than AT." in tex
    assert r"\textsuperscript{a} The text says 30 \% \textbar{} the table another." in tex
    assert tex.count("{") == tex.count("}")


# Refusals ----------------------------------------------------------------------------------------


def test_an_unknown_paper_is_refused(world):
    with pytest.raises(InputError, match=r"^claims=dos: did you mean dose\?$"):
        publish_claims(["dos"], None, world.runs, str(world.out))


def test_a_table_that_no_claim_rests_on_is_refused(world):
    with pytest.raises(InputError, match="table=demo: no claim of emr rests on it; choose from"):
        publish_claims(["emr"], "demo", world.runs, str(world.out))


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"arm": "trade"}, r"mine_1\.arm=trade: mine prints no such row; did you mean trades\?"),
        ({"metric": "cw"}, r"mine_1\.arm=trades: it has no printed cw; choose from"),
        ({"table": "min"}, r"table=min: did you mean mine\?"),
        ({"direction": "equal"}, "direction=equal: say within="),
        ({"direction": "above"}, r"claims\[0\]\.direction='above': choose from higher"),
        ({"also": [{"direction": "equal"}]}, "mine_1: direction=equal: say within="),
        ({"within": 0}, "within=0.0: above 0"),
        ({"miniature": {"tiny": {}}}, r"mine_1\.miniature\.tiny: choose from none"),
        ({"sais": "?"}, r"claims\[0\]\.sais='\?': unknown key; did you mean says\?"),
    ],
)
def test_a_wrong_claim_file_is_refused_before_anything_is_judged(world, claim, message):
    world.claim(claim)
    with pytest.raises(InputError, match=message):
        world.judge()
    assert not world.out.exists()


def test_a_claim_that_is_there_twice_is_refused(world):
    world.claim({}, {})
    with pytest.raises(ConfigError, match="mine_1 is there twice"):
        world.judge()


def test_an_unwritable_folder_is_refused(world):
    world.claim({})
    world.out.write_text("a file")
    with pytest.raises(InputError, match="cannot be written"):
        publish_claims(["mine"], None, world.runs, str(world.out), (), str(world.tables))
