"""Stacks that are no volume are refused with a code; several volumes of one series are told apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from pipelines.errors import Refused
from pipelines.ingest.frames import Frame
from pipelines.ingest.split import split


def stack(count: int = 6, step: float = 5.0, axes: np.ndarray | None = None, **marks: object) -> list[Frame]:
    axes = np.eye(3) if axes is None else axes
    return [Frame(index, 0, (8, 8), tuple(np.round(np.r_[axes[:, 0], axes[:, 1]], 6)), tuple(np.round(index * step * axes[:, 2], 6)), (1.0, 1.0),
                  order=(index, 0), marks=marks) for index in range(count)]


def changed(index: int, count: int = 6, **values: object) -> list[Frame]:
    frames = stack(count)
    frames[index] = replace(frames[index], **values)
    return frames


def moved(*depths: float, sideways: float = 0.0) -> list[Frame]:
    """Slices at these depths, each `sideways` mm further along y than the one before."""
    return [replace(frame, position=(0.0, index * sideways, depths[index])) for index, frame in enumerate(stack(len(depths)))]


def volumes(*marks: dict[str, object], interleaved: bool = False) -> list[Frame]:
    """One stack for each set of marks, acquired one after the other, or slice by slice."""
    frames = [(replace(frame, marks=one), number, slot) for number, one in enumerate(marks) for slot, frame in enumerate(stack())]
    return [replace(frame, order=(slot * len(marks) + number if interleaved else number * 6 + slot, 0)) for frame, number, slot in frames]


COPIED = [*stack(), replace(stack()[2], order=(9, 0))]
DAMAGED = [
    ("missing-slices", moved(0, 5, 15, 20, 25), "1 of 6 slices missing at 10.0 mm"),
    ("missing-slices", moved(0, 2, 4, 6, 8, 10, 12, 18, 20), "2 of 11 slices missing at 14.0 and 16.0 mm"),
    ("uneven-spacing", moved(0, 5, 10, 16, 20, 25), "from 4 to 6 mm"),
    ("uneven-spacing", moved(0, 41.0, 67.0, 68.0), "from 1 to 41 mm"),  # whole numbers of 1 mm, but no stack of 69 slices
    ("uneven-spacing", moved(*np.cumsum([0, *[4.97] * 10, *[5.03] * 10])), "from where an even step would put it"),
    ("duplicate-position", COPIED, "1 of its 7 slices lie where another one does, first at place 3 of 6"),
    ("several-volumes", [replace(frame, order=(0, 0)) for frame in volumes({}, {})], "same instance number"),
    ("several-volumes", [replace(frame, order=(index * 7 % 13, 0)) for index, frame in enumerate(volumes({}, {}))], "do not follow each other"),
    ("incomplete-volumes", volumes({}, {}, {})[:-2], "2 image(s) are missing"),
    ("several-stacks", moved(0, 2, 4, 6, 17.3, 19.3, 21.3), "two stacks of slices (4 + 3)"),
    ("several-stacks", [*moved(0, 2, 4), *[replace(frame, position=(9.0, 0.0, depth)) for frame, depth in zip(stack(3), (6, 8, 10), strict=True)]],
     "2 stacks of slices (3 + 3)"),
    ("mixed-orientation", changed(0, orientation=(1.0, 0, 0, 0, 0, 1.0)), "2 different orientations (5 + 1 slices"),
    ("mixed-spacing", changed(0, spacing=(2.0, 2.0)), "1 mm between slices"),
    ("mixed-matrix", changed(0, size=(8, 9)), "2 different matrix sizes (5 + 1 slices)"),
    ("mixed-rescale", changed(0, rescaled=True), "kinds of rescaling"),
    ("mixed-echo", changed(0, marks={"echo": 20.0}), "echo times"),
    ("mixed-b-value", changed(0, marks={"b_value": 1000.0}), "b-values"),
    ("tilted-stack", moved(0, 5, 10, 15, 20, 25, sideways=5 * np.tan(np.radians(12))), "12.0 degrees"),
    ("single-slice", stack(1), "one slice"),
    ("no-geometry", [replace(frame, orientation=(1.0, 0, 0, 1.0, 0, 0)) for frame in stack()], "perpendicular"),
    ("no-geometry", changed(0, position=(np.nan, 0.0, 0.0)), "no numbers in 1 of 6"),
    ("no-geometry", [replace(frame, spacing=(0.0, 0.0)) for frame in stack()], "0 mm"),
]


@pytest.mark.parametrize(("code", "frames", "words"), DAMAGED, ids=[f"{code}-{number}" for number, (code, *_) in enumerate(DAMAGED)])
def test_damaged_stack_is_refused_with_code_and_numbers(code, frames, words):
    with pytest.raises(Refused) as refused:
        split(frames)
    assert refused.value.code == code
    assert words in refused.value.reason
    assert refused.value.remedy


@given(rotation=st.integers(0, 2**32 - 1), seed=st.integers(0, 99), count=st.integers(2, 40), step=st.floats(0.5, 10))
@settings(max_examples=30, deadline=None)
def test_regular_stack_is_one_volume_in_any_orientation_and_order(rotation, seed, count, step):
    frames = stack(count, step, Rotation.random(random_state=rotation).as_matrix())
    part, = split([frames[index] for index in np.random.default_rng(seed).permutation(count)])
    assert part.refused is None
    assert part.name == ""
    placed = [part.frames[index].position for index in part.stack.order]
    assert placed in ([frame.position for frame in frames], [frame.position for frame in frames[::-1]])


SPLIT = [
    (volumes({"echo": 10.0}, {"echo": 20.0}), ["echo-1", "echo-2"]),
    (volumes({"echo": 20.0}, {"echo": 10.0}, interleaved=True), ["echo-2", "echo-1"]),
    (volumes({}, {}, {}), ["time-1", "time-2", "time-3"]),
    (volumes({}, {}, interleaved=True), ["time-1", "time-2"]),
    (volumes({"b_value": 0.0}, {"b_value": 1000.0, "direction": (1.0, 0.0, 0.0)}, {"b_value": 1000.0, "direction": (0.0, 1.0, 0.0)}),
     ["b-0", "b-1000_dir-1", "b-1000_dir-2"]),
    (volumes({"b_value": 0.0}, {"b_value": 0.0}, {"b_value": 500.0}), ["b-0_time-1", "b-0_time-2", "b-500_time-1"]),
    (volumes({"component": "magnitude"}, {"component": "phase"}), ["part-magnitude", "part-phase"]),
    ([replace(frame, marks={"trigger": float(index)}) for index, frame in enumerate(volumes({}, {}))], ["time-1", "time-2"]),  # a mark of each slice
]


@pytest.mark.parametrize(("frames", "names"), SPLIT, ids=["-".join(names) for _, names in SPLIT])
def test_several_volumes_are_told_apart_and_named(frames, names):
    shuffled = [frames[index] for index in np.random.default_rng(0).permutation(len(frames))]
    parts = split(shuffled)
    assert [part.name for part in parts] == names
    for number, part in enumerate(parts):
        assert part.refused is None
        assert sorted(frame.order for frame in part.frames) == sorted(frame.order for frame in frames[number * 6:number * 6 + 6])


def test_whole_volume_beside_an_incomplete_one_is_kept():
    first, second = split(volumes({"echo": 10.0}, {"echo": 20.0})[:-1])
    assert (first.name, first.refused) == ("echo-1", None)
    assert (second.name, second.refused.code) == ("echo-2", "missing-slices")
    assert "1 of 6 slices" in second.refused.reason


def test_stacks_that_the_header_names_are_volumes_of_their_own():
    other = [replace(frame, orientation=(0.0, 1.0, 0, 0, 0, 1.0), position=(frame.position[2], 0.0, 0.0), marks={"stack": "2"}) for frame in stack()]
    assert [part.name for part in split([*stack(stack="1"), *other])] == ["stack-1", "stack-2"]
