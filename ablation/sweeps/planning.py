"""From a table (or a plain sweep) and a command line to jobs: expanded, composed, checked.

Every job is a complete list of Hydra overrides, layered: the table's, the arm's, the axes', the
command line's; later layers win key by key. Jobs with the same ``train_id`` are one job.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hydra.errors import HydraException

from ablation.config import evaluations, surroundings, validation
from ablation.config.compose import Composer
from ablation.config.experiment import Config
from ablation.config.extension import extension_problems
from ablation.config.overrides import alternatives, bare, crossed, key_of, layered
from ablation.data import Extent
from ablation.errors import ConfigError
from ablation.jobs import state
from ablation.runs.directory import Run
from ablation.sweeps import slurm
from ablation.sweeps.claims import JobState, claimed
from ablation.sweeps.tables import Arm, Select, Table
from ablation.text import did_you_mean, one_line


@dataclass(frozen=True)
class Point:
    """One training that an arm asks for.

    Attributes:
        arm: its name; empty in a plain sweep.
        grid: the arm's own swept overrides, for example ``lr=0.1``.
        axis: the table's axes, for example ``seed=0``.
        overrides: complete.
        config: ``None`` if it has problems.
        problems: one line each.
    """

    arm: str
    grid: tuple[str, ...]
    axis: tuple[str, ...]
    overrides: tuple[str, ...]
    config: Config | None = None
    problems: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """``trades lr=0.1 seed=0``."""
        return " ".join(text for text in (self.arm, *self.grid, *self.axis) if text)


@dataclass(frozen=True)
class Job:
    """One run, for all the points that it serves.

    Attributes:
        points: at least one, all with the same ``train_id`` and evaluation.
        config: theirs.
        state: what its run directory says, other sweeps that have it, and the queue.
        queued: its job in SLURM's queue, as ``7_0 PENDING``.
    """

    points: tuple[Point, ...]
    config: Config
    state: JobState
    queued: str = ""

    @property
    def run(self) -> Run:
        """Its run directory."""
        return Run(self.config.run_dir, self.config.train_id)

    @property
    def key(self) -> tuple[str, ...]:
        """What tells it from other jobs: its run and its evaluations."""
        return (str(self.config.run_dir), *evaluations.evaluation_ids(self.config))

    @property
    def title(self) -> str:
        """The first point's; with the other arms that it serves."""
        others = sorted({point.arm for point in self.points[1:]} - {self.points[0].arm})
        same = f" (also {', '.join(others)})" if others else ""
        return self.points[0].title + same


@dataclass(frozen=True)
class Pending:
    """An arm that waits for another: its grid points cannot be chosen yet."""

    arm: str
    top: int
    candidates: int
    source: str


@dataclass(frozen=True)
class Plan:
    """State of a sweep: its jobs, what waits, what is wrong.

    Attributes:
        points: by arm, all that are decided.
        jobs: in order, each run once.
        pending: arms that wait.
        notices: what the user should know, one line each.
        problems: what is wrong, grouped by row; nothing may start while there are any.
    """

    points: Mapping[str, list[Point]]
    jobs: list[Job]
    pending: list[Pending]
    notices: list[str]
    problems: list[str]


class Planner:
    """Plans a table again and again while its jobs get done; configs are composed once.

    Args:
        table: what to run.
        cli: overrides of the command line, sweeps included.
        rows: arms to run; ``None`` means all.
        check: also look at data folders and devices.
        composer: of another planner, which knows its choices of groups; ``None`` makes one.
        place: where the jobs run.
    """

    def __init__(
        self,
        table: Table,
        cli: Sequence[str] = (),
        rows: Sequence[str] | None = None,
        check: bool = True,
        composer: Composer | None = None,
        place: surroundings.Place = "here",
    ) -> None:
        self._table, self._check, self._place = table, check, place
        self._composer = composer or Composer()
        self._points: dict[tuple[str, ...], Point] = {}
        self._outside: dict[tuple[object, ...], tuple[list[str], Extent | None]] = {}
        self.notices: list[str] = []
        self._wanted = list(table.arms) if rows is None else list(rows)
        self.cli = list(cli)
        self.axes = {key: [str(value) for value in values] for key, values in table.axes.items()}
        chosen = {key_of(text): text for text in self.cli if key_of(text) in self.axes}
        self._axes = [
            chosen.get(key, f"{key}={','.join(values)}") for key, values in self.axes.items()
        ]
        self._rest = [text for text in self.cli if key_of(text) not in self.axes]
        own = [*table.set, *(text for arm in table.arms.values() for text in arm.set)]
        self.notices += [
            f"{text}: fills in only what the table and its rows do not set themselves"
            for text in self.cli
            if own and key_of(text) == "recipe"
        ]

    def plan(self) -> Plan:
        """Where the table stands now."""
        points: dict[str, list[Point]] = {}
        pending: list[Pending] = []
        candidates: list[Point] = []
        problems: list[str] = []
        for name in self._with_sources():
            arm = self._table.arms[name]
            if arm.source is None:
                points[name] = self._expand(name, [(arm.set, ())], problems)
                continue
            found, waiting = self._continued(name, arm, points, problems)
            if waiting is None:
                points[name] = found
            else:
                pending.append(waiting)
                candidates += found
        every = [point for found in points.values() for point in found]
        problems += _grouped([*every, *candidates])
        ready, notices = ([], []) if problems else _with_queue(_deduplicated(every))
        notices = list(dict.fromkeys([*self.notices, *notices]))
        return Plan(points, ready, pending, notices, problems)

    def _with_sources(self) -> list[str]:
        """The wanted arms, each after the arm that it continues."""
        order: dict[str, None] = {}
        for name in self._wanted:
            source = self._table.arms[name].source
            if source is not None and source.arm not in order:
                if source.arm not in self._wanted:
                    self.notices.append(f"{name} continues {source.arm}: it runs too")
                order[source.arm] = None
            order[name] = None
        return list(order)

    def _expand(
        self,
        name: str,
        layers: Sequence[tuple[Sequence[str], tuple[str, ...]]],
        problems: list[str],
        complete: bool = True,
    ) -> list[Point]:
        """All points of an arm.

        Args:
            name: of the arm.
            layers: its own overrides, and the grid point of another arm that they continue.
            problems: grows by overrides that cannot be read.
            complete: check what lies outside the config, too.
        """
        found = []
        for own, inherited in layers:
            try:
                texts = self._kept(name, layered(self._below(), inherited, own))
                texts = layered(texts, self._rest, self._axes)
                many = [(text, alternatives(text)) for text in texts]
                choices = crossed([values for _, values in many])
            except HydraException as error:
                problems.append(f"{name}: {one_line(error)}" if name else one_line(error))
                continue
            empty = [bare(text) for text, values in many if not values]
            if empty:
                problems += [f"{name}: {text}: an empty grid" for text in empty]
                continue
            swept = [text for text, values in many if len(values) > 1 or text in self._axes]
            for choice in choices:
                point = _point(name, [text for text, _ in many], choice, swept, self.axes)
                grid = (*[bare(text) for text in inherited], *point.grid)
                found.append(self._composed(replace(point, grid=grid), complete))
        return found

    def _below(self) -> list[str]:
        """List the overrides that every arm starts from."""
        table = self._table
        chosen = [f"evaluation={table.evaluation}"] if table.evaluation else []
        return [*table.set, *chosen]

    def _kept(self, name: str, texts: Sequence[str]) -> list[str]:
        """An arm's overrides without the keys of components that the command line disables."""
        off = [key_of(text) for text in self._rest if text.endswith("=disabled")]
        prefixes = tuple(f"{key.replace('/', '.')}." for key in off if key.startswith("component/"))
        kept = []
        for text in texts:
            if prefixes and key_of(text).startswith(prefixes):
                component = key_of(text).split(".")[1]
                self.notices.append(
                    f"{name}: {bare(text)} is dropped, component/{component}=disabled wins"
                )
            else:
                kept.append(text)
        return kept

    def _continued(
        self, name: str, arm: Arm, points: Mapping[str, list[Point]], problems: list[str]
    ) -> tuple[list[Point], Pending | None]:
        """The points of an arm that continues another; all candidates while they are not chosen."""
        source = arm.source
        assert source is not None  # noqa: S101
        before = points.get(source.arm, [])
        settings = self._table.arms[source.arm].set
        ranked = ranking(before, source.by)
        grids = list(dict.fromkeys(point.grid for point in before))
        chosen = grids if ranked is None else ranked[: source.top]
        fixed = [text for text in settings if len(alternatives(text)) == 1]
        layers = [([*fixed, *arm.set], grid) for grid in chosen]
        found = self._expand(name, layers, problems, complete=ranked is not None)
        if ranked is None:
            return found, Pending(name, min(source.top, len(grids)), len(grids), source.arm)
        if source.weights:
            found = [self._from_weights(point, before) for point in found]
        return found, None

    def _from_weights(self, point: Point, before: Sequence[Point]) -> Point:
        """The point, started from the run that it continues: the same grid point and axis."""
        for other in before:
            same = other.axis == point.axis and point.grid[: len(other.grid)] == other.grid
            if same and other.config is not None:
                texts = layered(point.overrides, [f"++init_from='{other.config.run_dir}'"])
                return self._composed(replace(point, overrides=tuple(texts)), True)
        return point

    def _composed(self, point: Point, complete: bool) -> Point:
        key = (*point.overrides, str(complete))
        if key not in self._points:
            try:
                container = self._composer.plain(point.overrides)
                config, problems = validation.check(container)
            except ConfigError as error:
                config, problems = None, list(error.problems)
            if config is not None and self._check and complete:
                problems = [*problems, *self._surroundings(config)]
            self._points[key] = replace(
                point, config=None if problems else config, problems=tuple(problems)
            )
        known = self._points[key]
        return replace(point, config=known.config, problems=known.problems)

    def _surroundings(self, config: Config) -> list[str]:
        """Data folder and device are looked at once, not once per job."""
        key = (repr(config.data.source), config.data_dir, config.runtime.device, config.init_from)
        if key not in self._outside:
            extent = config.data.source.extent(config.data_root)
            self._outside[key] = (surroundings.outside_problems(config, self._place), extent)
        problems, extent = self._outside[key]
        sizes = surroundings.size_problems(config, extent, self._place)
        return [*problems, *sizes, *extension_problems(config)]


def _point(
    name: str,
    texts: Sequence[str],
    choice: Sequence[str],
    swept: Sequence[str],
    axes: Mapping[str, object],
) -> Point:
    pairs = [(key_of(text), text, value) for text, value in zip(texts, choice, strict=True)]
    grid = [bare(v) for key, text, v in pairs if text in swept and key not in axes]
    axis = [bare(v) for key, text, v in pairs if key in axes]
    return Point(name, tuple(grid), tuple(axis), tuple(choice))


def _grouped(points: Sequence[Point]) -> list[str]:
    """Each problem once, with the row it is in and the number of its jobs."""
    totals: dict[str, int] = {}
    found: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        totals[point.arm] = totals.get(point.arm, 0) + 1
        for problem in point.problems:
            found.setdefault((problem, point.arm), []).append(point)
    rows: dict[str, list[str]] = {}
    for (problem, arm), which in found.items():
        place = arm
        if len(which) < totals[arm]:
            example = " ".join((*which[0].grid, *which[0].axis))
            more = f" and {len(which) - 1} more" if len(which) > 1 else ""
            place = f"{arm} (job {example}{more})" if arm else f"job {example}{more}"
        rows.setdefault(problem, []).append(place)
    everywhere = list(totals)
    where = "in" if everywhere == [""] else "in row"  # a plain sweep has no rows
    return [
        f"{problem} ({where} {', '.join(places)})" if places != everywhere
        else problem
        for problem, places in rows.items()
    ]  # fmt: skip


def _deduplicated(points: Sequence[Point]) -> list[Job]:
    """One job per training and evaluation; two evaluations of one training stay two."""
    served: dict[tuple[str, ...], list[Point]] = {}
    for point in points:
        assert point.config is not None  # noqa: S101  there were no problems
        keys = evaluations.evaluation_ids(point.config)
        served.setdefault((str(point.config.run_dir), *keys), []).append(point)
    found = []
    for which in served.values():
        config = which[0].config
        assert config is not None  # noqa: S101
        job = Job(tuple(which), config, state_of(config))
        waits = job.state != "done" and claimed(job.run)
        found.append(replace(job, state="running") if waits else job)
    return found


def _with_queue(jobs: list[Job]) -> tuple[list[Job], list[str]]:
    """The jobs, with those that wait in SLURM's queue as such; what the user should know."""
    waits = {
        job.key: job.run for job in jobs
        if job.state in ("new", "partial") or (job.state == "failed" and job.config.retry)
    }  # fmt: skip
    queue, notices = slurm.queued(list(waits.values()))
    found = [
        replace(job, state="queued", queued=queue[job.config.run_name])
        if job.key in waits and job.config.run_name in queue
        else job
        for job in jobs
    ]
    return found, notices


def state_of(config: Config) -> JobState:
    """Read a job's state from its run directory."""
    run = Run(config.run_dir, config.train_id)
    status = run.status()
    if status is not None and status.state == "done" and not state.missing(config, run):
        return "done"
    if run.worker():
        return "running"
    if status is not None and status.state == "failed":
        return "failed"
    trained = status is not None and status.state == "done"
    return "partial" if trained or any(run.checkpoints.folder.glob("*")) else "new"


def score(config: Config, select: Select) -> float | None:
    """The validation number of a finished run that a selection looks at."""
    result = Run(config.run_dir, config.train_id).result()
    wanted = (select.metric, select.split, evaluations.checkpoints(config)[0])
    for entry in result["entries"] if result else ():
        found = (entry["metric"], entry["split"], entry["checkpoint"], entry["weights"])
        own = "attack_from" not in entry["params"]
        if own and found == (*wanted, evaluations.chosen_weights(config)):
            return float(entry["value"])
    return None


def ranking(points: Sequence[Point], select: Select) -> list[tuple[str, ...]] | None:
    """Grid points, best first by the mean over the axes; ``None`` while a run is not done.

    A run that failed for good takes its grid point out; ties keep the file's order. A single grid
    point is the best whatever its numbers.
    """
    alone = len({point.grid for point in points}) == 1
    values: dict[tuple[str, ...], list[float]] = {}
    failed = set()
    for point in points:
        if point.config is None:
            return None
        state = state_of(point.config)
        found = None
        if state == "done":
            found = 0.0 if alone else score(point.config, select)
        if state == "failed":
            failed.add(point.grid)
        elif found is None:
            return None
        else:
            values.setdefault(point.grid, []).append(found)
    means = {grid: statistics.fmean(v) for grid, v in values.items() if grid not in failed}
    return sorted(means, key=lambda grid: -means[grid])


def choose_rows(table: Table, names: Sequence[str]) -> list[str]:
    """Arms for what ``row=`` names: arms, or keys of printed rows.

    Raises:
        ConfigError: one of them is neither.
    """
    arms = {row.key: row.arm for row in table.lines()} | {name: name for name in table.arms}
    wrong = [name for name in names if name not in arms]
    if wrong:
        raise ConfigError(
            [f"row={name}: {did_you_mean(name, list(table.arms))}; "
             f"rows: {', '.join(table.arms)}" for name in wrong]
        )  # fmt: skip
    return list(dict.fromkeys(arms[name] for name in names))
