"""The W&B workspace of a table: what its spec asks for, and that pushing cannot fail a report."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ablation.errors import DONE, InputError
from ablation.jobs import train as job
from ablation.reports.comparison import Cell, Comparison, Row, Sample
from ablation.reports.dashboard import CURVES, TERMS, dashboard, summary_keys
from ablation.runs.tracking import NoTracker, TrackingConfig
from tests.support.configs import compose_plain

OFFLINE = TrackingConfig(mode="offline", project="margins")
ONLINE = TrackingConfig(mode="online", init_timeout=2)


def cell(column: str, unit: str = "percent", checkpoint: str = "best_robust") -> Cell:
    file = Path(f"runs/run-s0/evaluations/{checkpoint}-0123456789.parquet")
    return Cell(column, unit, (Sample("seed=0", 50.0, 100, "run-s0", file),))


def comparison(*cells: Cell, **changes: Any) -> Comparison:
    cells = cells or (cell("clean_val"), cell("clean"), cell("aa"), cell("margin_test", "margin"))
    columns = tuple(cell.column for cell in cells)
    measured = Row("at", "PGD-AT", "at", {cell.column: cell for cell in cells}, chosen="lr=0.1")
    empty = Row("dyart", "DyART", "dyart", {name: Cell(name) for name in columns})
    arguments = {"name": "t1", "title": "Table 1", "columns": columns, "rows": (empty, measured)}
    return Comparison(**{**arguments, **changes})


@pytest.fixture
def wandb(tmp_path, monkeypatch) -> Iterator[Any]:
    """A wandb with the library of workspaces, that knows nothing of this machine's user."""
    pytest.importorskip("wandb_workspaces")
    import wandb

    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    wandb.teardown()
    yield wandb
    wandb.teardown()


def section_of(spec: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The configs of the panels by section."""
    found = spec["spec"]["section"]["panelBankConfig"]["sections"]
    return {each["name"]: [panel["config"] for panel in each["panels"]] for each in found}


def written(path: Path, found: Comparison) -> dict[str, Any]:
    assert dashboard(found, OFFLINE, path) is None
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def test_without_the_extra_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(InputError) as caught:
        dashboard(comparison(), OFFLINE, tmp_path / "spec.json")
    assert "pip install 'ablation[dashboard]'" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


class Recorder(NoTracker):
    """What a run tells W&B."""

    def __init__(self) -> None:
        self.logged: set[str] = set()
        self.final: set[str] = set()

    def log(self, row: Mapping[str, float], epoch: int) -> None:
        self.logged |= set(row)

    def summary(self, values: Mapping[str, Any]) -> None:
        self.final |= set(values)


@pytest.mark.parametrize(("split", "robust"), [("test", "pgd20"), ("train", "pgd20_train")])
def test_panels_ask_for_keys_that_runs_log(tmp_path, monkeypatch, split, robust):
    tracker = Recorder()
    monkeypatch.setattr("ablation.jobs.setup.start", lambda *args, **options: tracker)
    small = ["epochs=1", "data.train_size=200", "selection.n=20", "evaluation.n=20"]
    small += ["attack.steps=1", "selection.attack.steps=1", "evaluation.val=[clean]"]
    small += [f"evaluation.split={split}"]
    offline = ["tracking.images=0", "runtime.device=cpu", f"runs_dir={tmp_path}"]
    assert job.train(compose_plain("method=trades", *small, *offline)) == DONE
    assert set(CURVES) <= tracker.logged
    assert {key for key in tracker.logged if re.fullmatch(TERMS, key)} == {"loss_ce", "loss_kl"}
    clean = robust.replace("pgd20", "clean")
    table = comparison(cell(clean), cell(robust), cell("clean_val"))
    asked = {key for column in table.columns for key in summary_keys(table, column)}
    assert asked == {f"best_robust/{name}" for name in (clean, robust, "clean_val")}
    assert asked <= tracker.final


@pytest.mark.extra
def test_the_spec_shows_the_runs_of_the_table_with_seeds_grouped(wandb, tmp_path, capfd):
    spec = written(tmp_path / "spec.json", comparison())
    assert (spec["displayName"], spec["project"], spec["url"]) == ("t1", "margins", None)
    (runs,) = spec["spec"]["section"]["runSets"]
    assert [(f["key"]["name"], f["op"], f["value"]) for f in runs["filters"]["filters"]] == [
        ("tags", "IN", ["table:t1"]),
        ("tags", "NIN", ["smoke"]),
        ("jobType", "!=", "report"),
    ]
    assert runs["grouping"] == [{"section": "run", "name": "group"}]
    assert runs["runFeed"]["columnOrder"] == [
        *("run:displayName", "run:tags", "summary:best_robust/clean_val"),
        *(f"summary:best_robust/{name}" for name in ("clean", "aa", "margin_test")),
    ]
    settings = spec["spec"]["section"]["settings"]
    assert (settings["xAxis"], settings["maxRuns"]) == ("epoch", 100)
    assert settings["useRunsTableGroupingInPanels"] is True
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.extra
def test_the_sections_hold_curves_final_numbers_a_scatter_and_margins(wandb, tmp_path):
    found = section_of(written(tmp_path / "spec.json", comparison(notes=("Two seeds.",))))
    names = ["Table", "Curves", "Final metrics", "Clean against robust", "Margins"]
    assert list(found) == names
    text = found["Table"][0]["value"]
    assert text.startswith("# Table 1\n\nTwo seeds.")
    assert "* **PGD-AT** lr=0.1: `run-s0`" in text
    assert "* **DyART** : no runs" in text
    assert all(panel["xAxis"] == "epoch" for panel in found["Curves"])
    drawn = [panel["metrics"] for panel in found["Curves"]]
    assert drawn == [["val_robust"], ["val_clean"], ["loss"], []]
    assert found["Curves"][3]["metricRegex"] == "loss_.*"
    bars = [panel["metrics"] for panel in found["Final metrics"]]
    assert bars == [["best_robust/clean_val"], ["best_robust/clean"], ["best_robust/aa"]]
    (scatter,) = found["Clean against robust"]
    x, y = scatter["xAxis"], scatter["yAxis"]
    assert (x, y) == ("summary:best_robust/clean", "summary:best_robust/aa")
    assert [panel["metrics"] for panel in found["Margins"]] == [["best_robust/margin_test"]]
    seconds = cell("seconds_per_step", "s")  # not among what a run logs
    table = comparison(cell("clean"), cell("loss_rise", "correlation"), seconds)
    spec = written(tmp_path / "other.json", table)
    (panel,) = section_of(spec)["Correlations"]
    assert panel["metrics"] == ["best_robust/loss_rise"]
    assert "seconds_per_step" not in json.dumps(spec["spec"])


@pytest.mark.extra
def test_a_name_with_symbols_keeps_its_tag(wandb, tmp_path):
    spec = written(tmp_path / "spec.json", comparison(name="at+awp_v2"))
    assert spec["displayName"] == "at awp_v2"
    assert "table:at+awp_v2" in json.dumps(spec)


@pytest.mark.extra
def test_a_table_has_no_empty_section(wandb, tmp_path):
    found = section_of(written(tmp_path / "spec.json", comparison(cell("aa"))))
    assert list(found) == ["Table", "Curves", "Final metrics"]


@pytest.mark.extra
def test_every_checkpoint_of_the_table_is_shown_the_usual_one_first(wandb, tmp_path):
    cells = [cell("clean", checkpoint="last"), cell("cw"), cell("aa")]
    found = section_of(written(tmp_path / "spec.json", comparison(*cells)))
    assert found["Final metrics"][0]["metrics"] == ["best_robust/clean", "last/clean"]
    places = [(panel["xAxis"], panel["yAxis"]) for panel in found["Clean against robust"]]
    assert places[:2] == [
        ("summary:best_robust/clean", "summary:best_robust/cw"),
        ("summary:last/clean", "summary:last/cw"),
    ]


@pytest.mark.extra
def test_smoke_runs_have_a_workspace_of_their_own(wandb, tmp_path):
    spec = written(tmp_path / "spec.json", comparison(name="t1-smoke", scale="smoke"))
    (runs,) = spec["spec"]["section"]["runSets"]
    values = [(f["op"], f["value"]) for f in runs["filters"]["filters"]]
    assert values[:2] == [("IN", ["table:t1"]), ("IN", ["smoke"])]
    assert spec["displayName"] == "t1-smoke"
    assert "these numbers mean nothing" in section_of(spec)["Table"][0]["value"]


class Views(BaseHTTPRequestHandler):
    """As much of a W&B server as saving and finding a workspace asks for."""

    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        # Telemetry comes here too, and is no JSON.
        data = self.answer(json.loads(body)) if self.path == "/graphql" else {}
        content = json.dumps({"data": data}).encode()
        self.send_response(self.server.status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        query, values = request["query"], request.get("variables") or {}
        if "upsertView" in query:
            found = {**values, "id": values.get("id") or f"V{len(self.server.views)}"}
            self.server.views[found["name"]] = found
            return {"upsertView": {"view": found, "inserted": "id" not in values}}
        if "allViews" in query:
            view = self.server.views.get(values["viewName"])
            return {"project": {"allViews": {"edges": [{"node": view}] if view else []}}}
        return {"viewer": {"id": "u", "username": "u", "entity": "team", "teams": {"edges": []}}}

    def log_message(self, *arguments: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Views)
        self.views: dict[str, dict[str, Any]] = {}
        self.status = 200
        self.address = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def server(wandb, monkeypatch) -> Iterator[Server]:
    found = Server()
    threading.Thread(target=found.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", found.address)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
    yield found
    found.shutdown()
    found.server_close()


@pytest.mark.extra
def test_online_the_workspace_is_saved_and_the_next_time_updated(server, tmp_path, capfd):
    path = tmp_path / "spec.json"
    url = dashboard(comparison(), ONLINE, path)
    (view,) = server.views.values()
    assert (view["entityName"], view["projectName"]) == ("team", "ablation")
    code = view["name"].removeprefix("nw-").removesuffix("-v")
    assert url == f"{server.address}/team/ablation?nw={code}"
    spec = json.loads(path.read_text())
    assert spec["url"] == url
    assert spec["spec"] == json.loads(view["spec"])
    assert dashboard(comparison(cell("cw"), name="t2"), ONLINE, path) == url
    (again,) = server.views.values()
    assert (again["id"], again["displayName"]) == (view["id"], "t2")
    assert "best_robust/cw" in again["spec"]
    assert "best_robust/aa" not in again["spec"]
    assert "table:t2" in again["spec"]
    server.views.clear()  # as if deleted
    anew = dashboard(comparison(), ONLINE, path)
    assert anew != url
    assert len(server.views) == 1
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.extra
def test_another_project_gets_a_workspace_of_its_own(server, tmp_path):
    path = tmp_path / "spec.json"
    first = dashboard(comparison(), ONLINE, path)
    second = dashboard(comparison(), TrackingConfig(mode="online", project="other"), path)
    assert first != second
    assert {view["projectName"] for view in server.views.values()} == {"ablation", "other"}


@pytest.mark.extra
def test_offline_sends_nothing_and_keeps_the_address(server, tmp_path):
    path = tmp_path / "spec.json"
    url = dashboard(comparison(), ONLINE, path)
    server.views.clear()
    assert written(path, comparison())["url"] == url
    assert server.views == {}


def check_failure(path: Path, captured: str) -> None:
    """One line, and the spec is there."""
    assert section_of(json.loads(path.read_text()))["Final metrics"]
    assert captured.startswith("warning: dashboard not saved to W&B: ")
    assert captured.endswith(f"its spec is {path}\n")
    assert captured.count("\n") == 1


@pytest.mark.extra
@pytest.mark.parametrize("status", [401, 404])
def test_a_push_that_fails_is_one_line_and_the_spec_stays(server, tmp_path, capfd, status):
    server.status = status
    assert dashboard(comparison(), ONLINE, tmp_path / "spec.json") is None
    check_failure(tmp_path / "spec.json", capfd.readouterr().err)


@pytest.mark.extra
def test_a_push_without_a_key_says_how_to_log_in(wandb, tmp_path, capfd):
    assert dashboard(comparison(), ONLINE, tmp_path / "spec.json") is None
    error = capfd.readouterr().err
    check_failure(tmp_path / "spec.json", error)
    assert "wandb login" in error


@pytest.mark.extra
@pytest.mark.parametrize("content", ["", "{", "[]", '{"url": 3}', '{"spec": {}}'])
def test_a_damaged_spec_is_replaced(wandb, tmp_path, content):
    path = tmp_path / "spec.json"
    path.write_text(content)
    assert written(path, comparison())["url"] is None
