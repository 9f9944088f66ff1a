"""From params' section `sweep` to the list of fits, with their draws. Nothing is trained before all of it is known to be possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.cohort import Case
from pipelines.errors import DataError, UsageError
from pipelines.experiments import Arm, Grid, ProtocolKind
from pipelines.params import Params
from pipelines.systems import params_model
from pipelines.train.one import Job
from pipelines.train.split import Split, TooFewCases, draw, sites_of


@dataclass(frozen=True)
class Cell:
    """What becomes one folder of the output: an arm under a protocol at a number of shots."""

    arm: str
    protocol: ProtocolKind
    shots: int

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.shots}" + ("" if self.protocol == "within" else f"-{self.protocol}")


@dataclass(frozen=True)
class Fit:
    """One fit of the matrix. `overlays`: keep slices to draw; `subsets`: predict from every subset of modalities too; `keep`: keep the model;
    `shuffled`: a modality that every case takes from another patient."""

    cell: Cell
    job: Job
    overlays: bool
    subsets: bool
    keep: bool
    shuffled: str = ""

    @property
    def place(self) -> str:
        """Its name without what it depends on: equal for the same fit after a change of code or data."""
        return f"{self.job.protocol}_{self.job.shots}_{self.job.site}_seed-{self.job.seed}"


@dataclass(frozen=True)
class LeftOut:
    """A site that cannot give the shots a grid asks for."""

    protocol: ProtocolKind
    shots: int
    site: str
    reason: str


def expand(params: Params, cases: Sequence[Case]) -> tuple[list[Fit], list[LeftOut]]:
    """The fits of the sweep in the order of params (each once, however many grids name it), and the sites left out.

    A cohort grows, and its matrix may ask for more shots than it can give yet. Raises `UsageError` where params have no sweep, `DataError` where a
    site does not exist or where nothing of the matrix can be done.
    """
    sweep = params.sweep
    if sweep is None:
        raise UsageError("params.yaml has no section 'sweep'; add one with arms and grids (conf/cohort/ has examples)")
    with_subsets = set(sweep.cells(sweep.missing_modalities)) if sweep.missing_modalities else set()
    fits: dict[tuple[Cell, str, int], Fit] = {}
    left_out: dict[LeftOut, None] = {}
    for grid in sweep.grids:
        seeds = grid.seeds or params.protocol.seeds
        draws, small = _draws(grid, seeds, cases, params)
        left_out |= dict.fromkeys(small)
        for arm in sweep.chosen(grid.arms):
            for (shots, site, seed), split in draws.items():
                cell = Cell(arm, grid.protocol, shots)
                fits.setdefault((cell, site, seed), Fit(
                    cell, _job(cell, sweep.arms[arm], site, seed, split=split, band_mm=params.evaluate.band_mm), overlays=seed == min(seeds),
                    subsets=(arm, grid.protocol, shots) in with_subsets, keep=arm == sweep.headline, shuffled=sweep.arms[arm].shuffled))
    if not fits:
        few = next(iter(left_out))
        raise DataError(f"sweep: {few.shots} shot(s) under protocol {few.protocol!r} are more than any site has ({few.reason}), and no other grid "
                        "asks for less; lower the shots of the grids or add labelled cases")
    return list(fits.values()), list(left_out)


def _draws(grid: Grid, seeds: Sequence[int], cases: Sequence[Case], params: Params) -> tuple[dict[tuple[int, str, int], Split], list[LeftOut]]:
    """The split of each (shots, site, seed) of a grid, the same for all its arms."""
    sites = sites_of(cases, grid.sites or params.cohort.targets, grid.protocol, key="sweep.grids.sites" if grid.sites else "cohort.targets")
    splits, small = {}, []
    for shots in grid.shots:
        for site in sites:
            try:
                own = {(shots, site, seed): draw(cases, site, shots, seed, params.protocol, split_by=params.cohort.split_by, experiment="sweep",
                                                 kind=grid.protocol) for seed in seeds}
            except TooFewCases as error:
                small.append(LeftOut(grid.protocol, shots, site, error.what))
                continue
            splits |= own
    return splits, small


def _job(cell: Cell, arm: Arm, site: str, seed: int, *, split: Split, band_mm: float) -> Job:
    settings = params_model(arm.system)(**arm.params).model_dump(mode="json")
    return Job(cell.name, arm.system, settings, cell.shots, site, seed, split, band_mm, cell.protocol)


def title(name: str, arm: Arm) -> str:
    """What the report calls an arm."""
    system = params_model(arm.system).model_config.get("title") or arm.system
    return arm.title or (system if name == arm.system or not arm.params else f"{system}, {name}")


def cells_of(fits: Sequence[Fit]) -> dict[Cell, list[Fit]]:
    """The fits of each cell, by site and seed."""
    cells: dict[Cell, list[Fit]] = {}
    for fit in sorted(fits, key=lambda fit: (fit.job.site, fit.job.seed)):
        cells.setdefault(fit.cell, []).append(fit)
    return cells
