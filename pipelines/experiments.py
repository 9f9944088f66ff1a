"""What params.yaml says of experiments: how cases are drawn, single experiments, and the sweep, a matrix of them.

A sweep is data: arms (a system with its params and the part it plays in the comparison) times protocols, shots, sites and seeds. Everything that
can be refused without looking at the cases is refused here, in one error.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pipelines.section import Section

#: within: the target site's shots alone; transfer: all labelled cases of other sites too; pooled: shots of all sites in one pool.
ProtocolKind = Literal["within", "transfer", "pooled"]
#: headline: what the others are compared with; ablation: a part taken away; control: what could prove the claim wrong.
Role = Literal["headline", "baseline", "ablation", "control"]
ROLES: tuple[str, ...] = ("headline", "baseline", "ablation", "control")
ALL = "all"

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
Shots = Annotated[int, Field(ge=0)]


def check_shots(shots: int, kind: str | None) -> int:
    """`shots`, or a `ValueError` where the protocol has nothing to learn from."""
    if shots == 0 and kind != "transfer":
        raise ValueError("0 shots need 'protocol: transfer' beside them, where cases of other sites teach; otherwise give at least 1")
    return shots


class Protocol(Section):
    """How cases are drawn, shared by every experiment so that they are compared on the same draws."""

    kind: ProtocolKind = "within"
    seeds: list[int] = Field(min_length=1)
    calibration_cases: int = Field(ge=0)
    min_query_cases: int = Field(1, ge=1)


class Experiment(Section):
    """One system at one number of shots."""

    system: str
    params: dict = Field({}, description="what differs from the defaults of the system")
    protocol: ProtocolKind | None = Field(None, description="instead of protocol.kind")
    shots: Shots

    @field_validator("shots")
    @classmethod
    def _something_to_learn_from(cls, shots: int, info: ValidationInfo) -> int:
        return check_shots(shots, info.data.get("protocol"))


class Arm(Section):
    """A system with its params, as one line of the comparison."""

    system: str
    params: dict = Field({}, description="what differs from the defaults of the system")
    shuffled: str = Field("", description="a modality that every case takes from another patient: a control")
    role: Role = "headline"
    title: str = Field("", description="its name in the report; by default the system's own, followed by the arm's where it has params")


class Choice(Section):
    """Some arms under one protocol at some numbers of shots."""

    arms: list[str] | Literal["all"] = Field(description="names of arms, or of roles: every arm of that role")
    protocol: ProtocolKind = "within"
    shots: list[Shots] = Field(min_length=1)

    @field_validator("shots")
    @classmethod
    def _something_to_learn_from(cls, shots: list[int], info: ValidationInfo) -> list[int]:
        return [check_shots(number, info.data.get("protocol")) for number in shots]

    @field_validator("arms")
    @classmethod
    def _some_arm(cls, arms: list[str] | str) -> list[str] | str:
        if not arms:
            raise ValueError("it names no arm; give names, roles or 'all'")
        return arms


class Grid(Choice):
    """A block of the matrix."""

    seeds: list[int] | None = Field(None, min_length=1, description="support draws; by default protocol.seeds")
    sites: list[str] | Literal["all"] | None = Field(None, description="by default cohort.targets; without effect on pooled draws")


class Sweep(Section):
    """Systems x protocols x shots x sites x seeds."""

    arms: dict[Name, Arm] = Field(min_length=1)
    grids: list[Grid] = Field(min_length=1)
    missing_modalities: Choice | None = Field(None, description="fits whose query cases are predicted from every subset of their modalities too")

    @model_validator(mode="after")
    def _names_are_arms(self):
        if taken := {ALL, *ROLES} & set(self.arms):
            raise ValueError(f"an arm is named {min(taken)!r}, which stands for several arms; give it another name")
        leading = [name for name, arm in self.arms.items() if arm.role == "headline"]
        if len(leading) != 1:
            raise ValueError(f"exactly one arm has the role 'headline', the one that the others are compared with; here "
                             f"{len(leading)} have it ({', '.join(leading) or 'none'}): give the others role baseline, ablation or control")
        cells = {cell for grid in self.grids for cell in self.cells(grid)}
        for cell in self.cells(self.missing_modalities) if self.missing_modalities else []:
            if cell not in cells:
                raise ValueError(f"missing_modalities wants arm {cell[0]!r} with {cell[2]} shot(s) under protocol {cell[1]!r}, which no grid has; "
                                 "add it to a grid or take it out")
        return self

    @property
    def headline(self) -> str:
        """The arm that the others are compared with."""
        return next(name for name, arm in self.arms.items() if arm.role == "headline")

    def chosen(self, arms: list[str] | str) -> list[str]:
        """The arms that names, roles or 'all' stand for, in the order of `arms` of params."""
        if arms == ALL:
            return list(self.arms)
        roles = {arm.role for arm in self.arms.values()}
        for name in arms:
            if name not in self.arms and name not in roles:
                raise ValueError(f"{name!r} is no arm of the sweep and no role that one of them has; arms: {', '.join(self.arms)}; "
                                 f"roles: {', '.join(sorted(roles))}")
        return [name for name, arm in self.arms.items() if name in arms or arm.role in arms]

    def cells(self, choice: Choice) -> list[tuple[str, ProtocolKind, int]]:
        """Arm, protocol and shots of each cell that `choice` stands for."""
        return [(arm, choice.protocol, shots) for arm in self.chosen(choice.arms) for shots in choice.shots]


class ContinualArm(Section):
    """A method of the continual protocol."""

    system: str
    params: dict = Field({}, description="what differs from the defaults of the system")
    learns: Literal["incremental", "rehearsal", "joint", "per-site"] = Field(
        "incremental", description="incremental: the model goes on; rehearsal: anew, the newest site's shots beside all earlier ones; joint: anew, "
                                   "all shots in one pool; per-site: a model a site")
    title: str = ""


class Continual(Section):
    """Sites one after another: methods x scenarios x orders x seeds, for `make continual`."""

    arms: dict[Name, ContinualArm] = Field(min_length=1)
    headline: str = Field("itl", description="the arm that the report speaks of")
    against: list[str] = Field(["sequential", "replay-2"], description="arms that every other one is compared with, chain by chain")
    untrained: str = Field("untrained", description="the arm that learns nothing, for the forward transfer; none where there is no such arm")
    sites: list[str] | Literal["all"] = ALL
    orders: int | list[list[str]] = Field(3, description="orders of the sites, or how many turns of the sorted ones")
    seeds: list[int] = Field(min_length=1)
    shots: int = Field(3, ge=1, description="labelled cases of every site")
    query_cases: int | None = Field(None, ge=1, description="of every site at most so many are looked at; predicting them is half of the time")
    scenarios: dict[Name, dict[str, dict[str, str]]] = Field(
        {"as-acquired": {}}, min_length=1, description="name -> site -> what its images are called there: modality -> the image that is meant; a "
                                                       "modality that is not named was not acquired, a site that is not named is as it is")

    @model_validator(mode="after")
    def _names_are_arms(self):
        for name in (self.headline, *self.against):
            if name not in self.arms:
                raise ValueError(f"{name!r} is no arm of it; it has {', '.join(self.arms)}")
        if isinstance(self.orders, int) and self.orders < 1:
            raise ValueError(f"orders has to be 1 or more, got {self.orders}")
        return self
