"""``ablation-doctor`` as a whole: its report is complete, and nothing that fails ends it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose
from hydra.core.global_hydra import GlobalHydra

from ablation.commands import cli, doctor
from ablation.config.compose import to_plain
from ablation.doctor import examination
from ablation.doctor.examination import SECTIONS, Section, Show, examine
from ablation.doctor.lines import Line, below, judged, measured, skipped
from ablation.doctor.setting import Setting
from ablation.doctor.table import WIDTH, shown
from ablation.errors import DONE, JOB_FAILED, ConfigError, InputError


def go(*arguments: str) -> int:
    """The command, without what Hydra prints."""
    texts = [cli.as_list(text, doctor.LISTS) for text in arguments]
    with cli.searching(None):
        container = to_plain(compose("doctor", texts))
    try:
        return doctor.run(container)
    finally:
        GlobalHydra.instance().clear()


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def good(setting: Setting) -> Iterator[Line]:
    yield judged("good", True, "it is")


def bad(setting: Setting) -> Iterator[Line]:
    yield judged("first", True, "it is")
    raise ArithmeticError("a planted fault")


def wrong(setting: Setting) -> Iterator[Line]:
    yield below("wrong", {"weights": 0.5}, 1e-8)


def section(examine: Any, seconds: float = 1.0, gpu: str | None = None) -> Section:
    return Section(examine.__name__, "?", seconds, examine, gpu)


def test_on_a_cpu_the_report_is_complete(small, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = Path("found") / "doctor.json"
    assert go("device=cpu", f"out={out}") == DONE
    report = read(out)
    assert report["finished"]
    assert report["tiny"]
    assert [each["name"] for each in report["sections"]] == [each.name for each in SECTIONS]
    lines = [line for each in report["sections"] for line in each["lines"]]
    assert report["counts"] == {"ok": 0, "FAILED": 0, "skipped": 0, "measured": 0} | Counter(
        line["verdict"] for line in lines
    )
    by_name = {each["name"]: each["lines"] for each in report["sections"]}
    for name in ("same_step", "verdicts", "waits"):
        assert [line["verdict"] for line in by_name[name]] == ["skipped"]
    assert {line["verdict"] for line in by_name["bits"]} == {"ok"}
    assert {line["verdict"] for line in by_name["precision"]} == {"ok"}
    assert all(by_name.values())
    assert report["facts"]["peak bf16, TFLOP/s"] > 0
    for name, key in (("speed", "epoch_seconds"), ("attacks", "seconds_per_1000")):
        assert all(line["figures"][key] > 0 for line in by_name[name])
    assert all(line["figures"]["ratio"] > 0 for line in by_name["ratios"][1:])
    text = capsys.readouterr().out
    assert "what needs a GPU is skipped" in text
    assert max(map(len, text.splitlines())) <= WIDTH
    assert text.count("\n  ok ") == report["counts"]["ok"]


def test_what_raises_has_failed_and_the_next_begins(on_cpu, tmp_path):
    report = examine(on_cpu, [section(bad), section(good)], 60, tmp_path / "out.json")
    assert [(name, line.text) for name, line in report.failures()] == [
        ("bad", "ArithmeticError: a planted fault")
    ]
    assert report.counts() == {"ok": 2, "FAILED": 1, "skipped": 0, "measured": 0}
    assert read(tmp_path / "out.json") == report.plain()


def test_what_does_not_fit_is_skipped(on_cpu, tmp_path):
    sections = [section(good), section(wrong, 1000.0), section(good, 5.0)]
    report = examine(on_cpu, sections, 10, tmp_path / "out.json")
    assert [line.verdict for _, _, (line,) in report.sections] == ["ok", "skipped", "ok"]
    assert "are left, it takes 1000" in report.sections[1][2][0].text


def test_a_cpu_says_what_it_leaves_out(on_cpu, tmp_path):
    report = examine(on_cpu, [section(wrong, gpu="reason")], 60, tmp_path / "out.json")
    assert report.sections[0][2] == [skipped("wrong", "this is a CPU: reason")]


def test_the_report_is_there_after_each_section(on_cpu, tmp_path):
    out = tmp_path / "out.json"

    class Reading(Show):
        seen: list[int] = []  # noqa: RUF012

        def section(self, section: Section) -> None:
            found = read(out)
            assert not found["finished"]
            self.seen.append(len(found["sections"]))

    examine(on_cpu, [section(good)] * 3, 60, out, Reading())
    assert Reading.seen == [0, 1, 2]
    assert read(out)["finished"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_more_time_is_more_for_each(on_cpu, tmp_path):
    left = []

    def patient(setting: Setting) -> Iterator[Line]:
        left.append(setting.left())
        yield from good(setting)

    for seconds in (60, 2 * examination.SECONDS):
        examine(on_cpu, [section(patient, 20.0)], seconds, tmp_path / "out.json")
    assert 19 < left[0] <= 20
    assert 39 < left[1] <= 40


@pytest.mark.parametrize(("check", "code"), [(good, DONE), (wrong, JOB_FAILED), (bad, JOB_FAILED)])
def test_the_exit_code_says_whether_a_check_failed(
    check, code, small, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(examination, "SECTIONS", (section(check),))
    assert go("device=cpu", f"out={tmp_path / 'out.json'}") == code
    ending = capsys.readouterr().out.splitlines()[-1]
    assert ending.lstrip().startswith("FAILED") == bool(code)


def test_only_some_sections(small, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert go("device=cpu", "only=machine,waits", f"out={out}") == DONE
    assert [each["name"] for each in read(out)["sections"]] == ["machine", "waits"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("only=wait", "only=wait: no such section; did you mean waits?"),
        ("seconds=0", "seconds=0: give more than 0"),
        ("device=tpu", "device=tpu: no such device"),
        ("device=cuda:7", "device=cuda:7: torch can use"),
        ("out=.", "out=.: a folder"),
    ],
)
def test_mistakes_are_said_before_anything_starts(argument, message, tmp_path):
    with pytest.raises(ConfigError) as raised:
        go("device=cpu", *([] if argument == "out=." else [f"out={tmp_path}/x.json"]), argument)
    assert message in str(raised.value)
    assert len(raised.value.problems) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written_is_said_at_once(on_cpu, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((InputError, OSError)):
        examine(on_cpu, [section(good)], 60, tmp_path / "file" / "out.json")


@pytest.mark.parametrize("value", [1e-8, 1.0, float("nan"), float("inf")])
def test_an_error_at_its_limit_or_not_a_number_has_failed(value):
    assert below("x", {"weights": 0.0, "losses": value}, 1e-8).verdict == "FAILED"
    assert below("x", {"weights": 0.0, "losses": 9e-9}, 1e-8).verdict == "ok"


def test_long_texts_are_wrapped_beside_their_name():
    text = shown(measured("name", "word " * 40)).splitlines()
    assert max(map(len, text)) <= WIDTH
    assert len({len(line) - len(line.lstrip()) for line in text[1:]}) == 1
