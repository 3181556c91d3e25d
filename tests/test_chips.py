"""Windows against brute force, against Raster Vision itself, and the known figures."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rvtutorial import chips

sides = st.integers(1, 60)
strides = st.integers(1, 40)


def slide(length, chip_sz, stride, pad):
    "Windows found by walking, one pixel question at a time."
    starts, start = [], 0
    pad = pad and stride <= chip_sz
    while True:
        fits = start + chip_sz <= length
        done = bool(starts) and starts[-1] + chip_sz >= length
        if not fits and (not pad or done):
            return starts
        if pad and done:
            return starts
        starts.append(start)
        start += stride


@given(sides, sides, strides, st.booleans())
@example(650, 300, 300, True)
@example(650, 300, 300, False)
@example(10, 10, 3, True)
@example(5, 9, 9, True)
@example(5, 9, 9, False)
def test_windows_against_walking(length, chip_sz, stride, pad):
    assert chips.windows(length, chip_sz, stride, pad) == slide(
        length, chip_sz, stride, pad
    )


@given(st.tuples(sides, sides), st.integers(1, 40), strides, st.booleans())
def test_coverage_against_painting(shape, chip_sz, stride, pad):
    painted = np.zeros(shape, dtype=int)
    for row in slide(shape[0], chip_sz, stride, pad):
        for col in slide(shape[1], chip_sz, stride, pad):
            painted[row : row + chip_sz, col : col + chip_sz] += 1
    grid = chips.grid_windows(shape, chip_sz, stride, pad)
    assert (chips.times_seen(shape, grid) == painted).all()
    share = (painted > 0).mean()
    assert chips.coverage(shape, chip_sz, stride, pad) == pytest.approx(share)
    pushed = len(grid) * chip_sz**2 / painted.size
    assert chips.work(shape, chip_sz, stride, pad) == pytest.approx(pushed)


@given(st.tuples(sides, sides), st.integers(1, 40), strides)
def test_padding_covers_everything_but_gaps(shape, chip_sz, stride):
    full = chips.coverage(shape, chip_sz, stride) == 1
    assert full if stride <= chip_sz else full == (shape == (chip_sz, chip_sz))


@pytest.mark.parametrize(
    ("chip_sz", "stride", "n", "missed_030", "missed_031"),
    [
        (300, 300, 9, 0.1479, 0),
        (220, 215, 9, 0, 0),
        (300, 175, 9, 0, 0),
        (300, 70, 36, 0, 0),
        (126, 126, 36, 0.0606, 0),
        (220, 220, 9, 0.5418, 0),
        (220, 300, 4, 0.5418, 0.5418),
        (130, 130, 25, 0, 0),
        (325, 325, 4, 0, 0),
        (162, 162, 25, 1 - (648 / 650) ** 2, 0),
    ],
)
def test_known_figures(chip_sz, stride, n, missed_030, missed_031):
    shape = (650, 650)
    assert len(chips.grid_windows(shape, chip_sz, stride)) == n
    old = 1 - chips.coverage(shape, chip_sz, stride, pad=False)
    assert old == pytest.approx(missed_030, abs=5e-5)
    assert 1 - chips.coverage(shape, chip_sz, stride) == pytest.approx(
        missed_031, abs=5e-5
    )


def test_what_is_left_over():
    left = {
        c: 650 - (chips.windows(650, c, c, pad=False)[-1] + c)
        for c in (130, 325, 162, 126)
    }
    assert left == {130: 0, 325: 0, 162: 2, 126: 20}


def test_grid_goes_row_by_row():
    assert chips.grid_windows((4, 6, 3), 2, 2).tolist() == [
        [0, 0, 2, 2],
        [0, 2, 2, 2],
        [0, 4, 2, 2],
        [2, 0, 2, 2],
        [2, 2, 2, 2],
        [2, 4, 2, 2],
    ]
    assert chips.grid_windows((4, 6), 9, 9, pad=False).shape == (0, 4)


@given(
    st.tuples(st.integers(8, 60), st.integers(8, 60)),
    st.integers(1, 7),
    st.integers(0, 10),
    st.integers(0, 5),
    st.integers(0, 9),
)
def test_random_windows_stay_inside(shape, chip_sz, n, padding, seed):
    drawn = chips.random_windows(shape, chip_sz, n, seed, padding)
    assert drawn.shape == (n, 4) and (drawn[:, 2:] == chip_sz).all()
    assert (drawn[:, :2] >= -padding).all()
    assert (drawn[:, :2] + drawn[:, 2:] < np.array(shape) + padding).all()
    assert (drawn == chips.random_windows(shape, chip_sz, n, seed, padding)).all()


def test_padding_makes_room_for_larger_chips():
    assert len(chips.random_windows((50, 60), 99, 1, 0, padding=25)) == 1


def test_random_windows_go_everywhere():
    drawn = chips.random_windows((12, 9), 5, n=2000, seed=0)
    assert set(drawn[:, 0]) == set(range(7)) and set(drawn[:, 1]) == set(range(4))
    other = chips.random_windows((12, 9), 5, n=2000, seed=1)
    assert (drawn != other).any()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: chips.windows(650, 0, 5),
            "chip_sz must be a whole number from 1 up, got 0",
        ),
        (lambda: chips.windows(650, 5, -1), "stride .* got -1"),
        (lambda: chips.windows(650.0, 5, 1), "length .* got 650.0"),
        (lambda: chips.windows(True, 1, 1), "length .* got True"),
        (
            lambda: chips.coverage(650, 5, 1),
            r"shape must be \(height, width\), got 650",
        ),
        (lambda: chips.coverage((650, 0), 5, 1), "width .* got 0"),
        (lambda: chips.random_windows((50, 60), 50, 1, 0), "at most 49 here, got 50"),
        (lambda: chips.random_windows((50, 60), 100, 1, 0, padding=25), "at most 99"),
        (lambda: chips.random_windows((50, 60), 5, -1, 0), "0 or more, got -1"),
    ],
)
def test_bad_sizes_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_plot_marks_exactly_what_is_missed():
    grid = chips.grid_windows((65, 65), 30, 30, pad=False)
    figure = chips.plot_windows((65, 65), grid, "a title")
    (axes,) = figure.axes
    orange = axes.images[1].get_array()[..., 3] > 0
    assert (orange == (chips.times_seen((65, 65), grid) == 0)).all()
    assert len(axes.patches) == 4 + 1  # chips, and the scene's edge
    assert axes.get_title() == "a title\n4 chips, 85.2% covered"
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # rows run down


def test_plot_makes_room_for_what_hangs_over():
    image = np.zeros((65, 65, 3))
    figure = chips.plot_windows(image, chips.grid_windows(image.shape, 30, 30))
    assert figure.axes[0].get_xlim()[1] > 89
    assert figure.axes[0].images[0].get_array().shape == (65, 65, 3)
    chips.plot_windows((65, 65), np.empty((0, 4)))


def test_import_is_light():
    code = "import sys, rvtutorial.chips; print([m for m in sys.modules if m in ('torch', 'rastervision', 'matplotlib', 'pandas')])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def raster_vision():
    from rastervision.core.box import Box
    from rastervision.pytorch_learner.dataset import (
        SemanticSegmentationRandomWindowGeoDataset,
        SemanticSegmentationSlidingWindowGeoDataset,
    )

    def scene(height, width):
        return SimpleNamespace(
            extent=Box(0, 0, height, width), aoi_polygons_bbox_coords=[]
        )

    return SimpleNamespace(
        scene=scene,
        sliding=SemanticSegmentationSlidingWindowGeoDataset,
        random=SemanticSegmentationRandomWindowGeoDataset,
    )


def as_rows(windows):
    return [(w.ymin, w.xmin, w.height, w.width) for w in windows]


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(sides, sides, st.integers(1, 50), strides, st.booleans())
@example(650, 650, 300, 300, True)
@example(650, 650, 300, 300, False)
@example(650, 650, 220, 215, True)
@example(650, 650, 220, 300, True)
@example(260, 650, 300, 300, True)
def test_windows_are_raster_visions(raster_vision, height, width, chip_sz, stride, pad):
    padding = None if pad else 0
    theirs = raster_vision.sliding(
        raster_vision.scene(height, width), size=chip_sz, stride=stride, padding=padding
    )
    ours = chips.grid_windows((height, width), chip_sz, stride, pad)
    assert as_rows(theirs.windows) == [tuple(row) for row in ours.tolist()]


@pytest.mark.slow
@pytest.mark.parametrize("padding", [0, 2, None])
def test_random_range_is_raster_visions(raster_vision, padding):
    theirs = raster_vision.random(
        raster_vision.scene(14, 11),
        size_lims=(5, 6),
        out_size=5,
        padding=padding,
        max_windows=1,
    )
    drawn = np.array(as_rows(theirs.sample_window() for _ in range(2000)))
    ours = chips.random_windows(
        (14, 11), 5, 2000, 0, (5 + 1) // 2 if padding is None else padding
    )
    for axis in (0, 1):
        assert set(ours[:, axis]) == set(drawn[:, axis])


@pytest.mark.slow
def test_raster_vision_cannot_draw_the_whole_scene(raster_vision):
    theirs = raster_vision.random(
        raster_vision.scene(9, 9),
        size_lims=(9, 10),
        out_size=9,
        padding=0,
        max_windows=1,
    )
    with pytest.raises(RuntimeError):
        theirs.sample_window()
    with pytest.raises(ValueError, match="at most 8"):
        chips.random_windows((9, 9), 9, 1, 0)
