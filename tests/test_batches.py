"""BatchLoader hold the chips that Raster Vision would give, can be made again from any place, and are ready."""

import random
import threading
import time
from collections import Counter

import albumentations as A
import numpy as np
import pytest
import stock_configs
import torch
from rastervision.core.box import Box
from rastervision.pytorch_learner import (
    SemanticSegmentationGeoDataConfig,
)
from rastervision.pytorch_learner.dataset.dataset import AlbumentationsDataset
from rastervision.pytorch_learner.dataset.transform import TransformType
from stock_configs import ZOO, grid, pipeline, random_windows
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

from rvtutorial.engine import batches
from rvtutorial.engine.batches import (
    BatchLoader,
    BatchTransform,
    _Collator,
    _Item,
    _parts_of,
    _plan,
    _PlannedDataset,
    _prefetched,
    _seeded,
    _symmetries,
    _turned,
    seed_everything,
    window_datasets,
)
from rvtutorial.engine.reading import SceneStore, build_scene

SYMMETRIES = ["RandomRotate90", "HorizontalFlip", "VerticalFlip"]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    "The scenes of configurations as strangers write them."
    folder = stock_configs.make_data(tmp_path_factory.mktemp("zoo"))
    with stock_configs.programs():
        yield folder


def data_of(zoo, folder, name=None, **parts) -> SemanticSegmentationGeoDataConfig:
    "The data configuration of one of the zoo, or of its usual one with other parts."
    config = ZOO[name].make(zoo, folder) if name else pipeline(zoo, folder, **parts)
    config.update()
    return config.backend.data


@pytest.fixture
def usual(zoo, tmp_path):
    "Random windows and the three symmetries."
    return data_of(
        zoo, tmp_path, windows=random_windows(), loader=dict(augmentors=SYMMETRIES)
    )


def dtype_of(dataset):
    return _parts_of(dataset)[0][0].scene.raster_source.dtype


def global_state():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()


def same_state(before, after):
    return before[:2] == after[:2] and torch.equal(before[2], after[2])


def stocks(part, item):
    "What Raster Vision's data set gives for the window of an item."
    return AlbumentationsDataset.__getitem__(part, item.window)


# --- chance


def test_chance_belongs_to_a_place_and_leaves_no_trace():
    def draw():
        return torch.rand(1).item(), np.random.rand(), random.random()

    before = global_state()
    with _seeded(0, 1):
        first = draw()
    assert same_state(before, global_state())
    draw()
    with _seeded(0, 1):
        assert draw() == first
    with _seeded(0, 2):
        other = draw()
    assert all(a != b for a, b in zip(first, other, strict=True))
    with pytest.raises(KeyError), _seeded(5):
        draw()
        raise KeyError
    with _seeded(0, 1):
        assert draw() == first
    assert seed_everything(1, 2) != seed_everything(2, 1) != seed_everything(1, 2, 0)
    before = global_state()
    with _seeded(None, 1):
        draw()
    assert not same_state(before, global_state())


@pytest.mark.parametrize(
    "name", ["random_inside", "aoi_random", "aoi_touched", "h_w_lims", "train_sz"]
)
def test_plans_are_made_again_by_place(name, zoo, tmp_path):
    data = data_of(zoo, tmp_path, name)
    dataset = window_datasets(data, "train", seed=3)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    first = _plan(dataset, True, 3, 1, 0)
    random.seed(2), np.random.seed(2), torch.manual_seed(2)
    before = global_state()
    assert _plan(dataset, True, 3, 1, 0) == first
    assert same_state(before, global_state())
    again = window_datasets(data, "train", seed=3)  # as after a restart
    assert _plan(again, True, 3, 1, 0) == first
    for place in ((3, 1, 1), (4, 1, 0)):
        other = _plan(dataset, True, *place)
        assert len(other) == len(first)
        assert [i.window for i in other] != [i.window for i in first]
        assert not {i.seed for i in other} & {i.seed for i in first}


def test_plans_without_a_seed_differ(usual):
    dataset = window_datasets(usual, "train")
    assert _plan(dataset, True, None, 1, 0) != _plan(dataset, True, None, 1, 0)


def test_a_plan_has_each_chip_once(usual):
    dataset = window_datasets(usual, "train")
    items = _plan(dataset, True, 0)
    assert sorted((i.part, i.index) for i in items) == _parts_of(dataset)[1]
    assert [(i.part, i.index) for i in items] != _parts_of(dataset)[1]
    in_order = _plan(dataset, False, 0)
    assert [(i.part, i.index) for i in in_order] == _parts_of(dataset)[1]
    assert len({i.seed for i in items}) == len(items)


@pytest.mark.parametrize("name", ["aoi_random", "aoi_touched", "aoi_sliding"])
def test_windows_respect_areas(name, zoo, tmp_path):
    data = data_of(zoo, tmp_path, name)
    dataset = window_datasets(data, "train")
    items = [i for epoch in range(4) for i in _plan(dataset, True, 0, 1, epoch)]
    assert items
    parts, _ = _parts_of(dataset)
    cut = 0
    for item in items:
        area = parts[item.part].scene.aoi_polygons_bbox_coords
        window = item.window.to_shapely()
        within = any(a.buffer(1e-6).contains(window) for a in area)
        cut += not within
        assert within or name == "aoi_touched"
        assert any(a.intersects(window) for a in area)
    assert cut or name != "aoi_touched"


def test_an_area_without_room_is_named(zoo, tmp_path):
    config = ZOO["aoi_random"].make(zoo, tmp_path)
    config.backend.data.sampling = random_windows(size_lims=(149, 150))
    config.update()
    dataset = window_datasets(config.backend.data, "train")
    name = _parts_of(dataset)[0][0].scene.id
    with pytest.raises(ValueError, match=f"scene {name}: no window of 149 x 149 "):
        _plan(dataset, False, 0)


@pytest.mark.parametrize(
    "lims", [dict(size_lims=(40, 44)), dict(h_lims=(40, 44), w_lims=(50, 52))]
)
def test_window_sizes_are_those_asked_for(lims, zoo, tmp_path):
    data = data_of(zoo, tmp_path, windows=random_windows(max_windows=60, **lims))
    items = _plan(window_datasets(data, "train"), True, 0)
    sizes = [i.window.size for i in items]
    heights, widths = ({s for s in side} for side in zip(*sizes, strict=True))
    assert heights == set(range(40, 44))
    assert widths == (set(range(40, 44)) if "size_lims" in lims else {50, 51})
    square = [i.window.height == i.window.width for i in items]
    assert all(square) == ("size_lims" in lims)


def test_subsets_are_stocks(zoo, tmp_path):
    for name in ("train_sz", "train_sz_rel"):
        data = data_of(zoo, tmp_path, name)
        before = global_state()
        ours = window_datasets(data, "train", seed=5)
        assert same_state(before, global_state())
        theirs = data.build_dataset("train")
        assert isinstance(ours, Subset) and isinstance(theirs, Subset)
        assert list(ours.indices) == list(theirs.indices)
        assert 0 < len(ours) < len(ours.dataset)
        places = [(i.part, i.index) for i in _plan(ours, False, 0)]
        every = _parts_of(ours.dataset)[1]
        assert places == [every[n] for n in ours.indices]


def test_parts_of_data_sets_within_data_sets():
    a, b, c = (TensorDataset(torch.arange(n)) for n in (3, 4, 2))
    whole = Subset(ConcatDataset([a, Subset(b, [3, 1]), c]), [4, 0, 5, 3])
    parts, places = _parts_of(whole)
    assert [parts[p][i] for p, i in places] == [whole[n] for n in range(4)]
    assert not any(isinstance(p, Subset | ConcatDataset) for p in parts)


# --- the same chips as stock


NAMES = [
    "random_defaults", "random_inside", "sliding", "sliding_both", "size_lims",
    "h_w_lims", "sampling_by_scene", "img_sz_smaller", "bands_chosen", "five_bands",
    "one_band", "multi_source", "multi_resolution", "mosaic", "tiled", "nodata",
    "alpha", "uint16", "float32", "nan", "min_max", "cast", "image_reclass", "cropped",
    "aoi_sliding", "raster_labels", "raster_reclass", "raster_colours", "vector_ids",
    "vector_names", "vector_filter", "vector_lines", "vector_shift", "all_touched",
    "sample_scenes", "base_transform", "train_sz",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_chips_equal_stock(name, zoo, tmp_path):
    "Whole batches where there is a BatchTransform, item by item where there is none."
    data = data_of(zoo, tmp_path, name)
    data.augmentors, data.aug_transform = [], None
    for split in ("train", "valid"):
        ours = window_datasets(data, split, SceneStore(100, tmp_path / "s"))
        theirs, _ = _parts_of(data.build_dataset(split))
        how = BatchTransform.of(data, dtype_of(ours), augment=split == "train")
        slow = ZOO[name].slow.get("chips") == "plain"
        assert isinstance(how, str) == slow, how
        loader = BatchLoader(ours, 3, 0, None if slow else how, train=split == "train")
        lists = loader.items(1)  # from the second chip of a scene on from memory
        assert lists
        for items, (x, y) in zip(lists, loader.epoch(1), strict=True):
            assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
            expected = [stocks(theirs[i.part], i) for i in items]
            tx, ty = (torch.stack(t) for t in zip(*expected, strict=True))
            most = max(1.0, tx.abs().max().item())
            torch.testing.assert_close(x, tx, rtol=0, atol=1e-6 * most)
            assert torch.equal(y, ty.long())


@pytest.mark.parametrize(
    "dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64", "uint32"]
)
@pytest.mark.parametrize("bands", [1, 3, 6])
@pytest.mark.parametrize("scaled", [None, "each", "all"])
def test_every_recipe_scales_as_stock(dtype, bands, scaled, usual):
    steps = None
    if scaled:
        mean, std = [0.2, 0.5, 0.1, 0.3, 0.4, 0.6], [0.3, 0.1, 0.2, 0.5, 0.4, 0.7]
        n = bands if scaled == "each" else 1
        if n != bands:
            mean, std = [0.3] * bands, [0.2] * bands
        most = 65_535.0 if dtype == "uint16" else 255.0
        how = dict(mean=mean[:bands], std=std[:bands], max_pixel_value=most)
        steps = A.to_dict(A.Normalize(**how))
    rng = np.random.default_rng(0)
    image = rng.integers(0, 200, (64, 64, bands)).astype(dtype)
    label = rng.integers(0, 3, (64, 64)).astype("uint8")
    usual.base_transform, usual.augmentors = steps, []
    part = FakePart(image, label)
    how = BatchTransform.of(usual, image.dtype, augment=True)
    assert isinstance(how, BatchTransform)
    base, _ = usual.get_data_transforms()
    stock = AlbumentationsDataset(
        [(image.astype("float32") if scaled and dtype in ODD else image, label)],
        base,
        TransformType.semantic_segmentation,
    )
    tx, ty = stock[0]
    x, y = _Collator([part], how, 2)([_Item(0, 0, Box(0, 0, 64, 64), 0)])
    most = max(1.0, tx.abs().max().item())
    torch.testing.assert_close(x[0], tx, rtol=0, atol=2e-6 * most)
    assert torch.equal(y[0], ty)


ODD = ("int16", "int32", "uint32", "float64")  # albumentations scales none of these


class FakePart:
    "A data set whose scene is two arrays."

    def __init__(self, image, label, windows=1):
        self.image, self.label, self.windows = image, label, windows
        self.scene = self.raster_source = self.label_source = self
        self.extent = Box(0, 0, *label.shape)

    def __len__(self):
        return self.windows

    def get_chip(self, window):
        return self.image[window.ymin : window.ymax, window.xmin : window.xmax]

    def get_label_arr(self, window):
        return self.label[window.ymin : window.ymax, window.xmin : window.xmax]


def test_rows_are_scaled_as_single_numbers_are():
    chips = torch.rand(2, 5, 7, 3)
    how = BatchTransform(7, (2.0, 3.0, 0.5), (0.1, 0.0, -1.0))
    expected = chips * torch.tensor(how.scale) + torch.tensor(how.shift)
    how.scale_rows(chips)
    torch.testing.assert_close(chips, expected)


def test_batches_lie_in_memory_as_convolutions_like_it(usual):
    dataset = window_datasets(usual, "train")
    loader = BatchLoader(dataset, 4, 0, BatchTransform.of(usual, "uint8", True))
    x, _ = next(iter(loader))
    assert x.is_contiguous(memory_format=torch.channels_last)


# --- the eight symmetries


def test_turns_are_the_symmetries_of_a_square():
    chip = np.arange(12).reshape(2, 2, 3)
    found = {_turned(chip, s).tobytes() for s in range(8)}
    rots = [np.rot90(c, k) for c in (chip, chip[:, ::-1]) for k in range(4)]
    assert found == {r.tobytes() for r in rots} and len(found) == 8


@pytest.mark.parametrize(
    "augmentors",
    [
        SYMMETRIES,
        SYMMETRIES[::-1],
        SYMMETRIES[:1],
        SYMMETRIES[1:],
        ["VerticalFlip"],
        [],
        ["HorizontalFlip", "HorizontalFlip"],
    ],
)
def test_symmetries_come_as_often_as_with_albumentations(augmentors, usual):
    usual.augmentors = augmentors
    usual.img_sz = 2
    _, pipeline = usual.get_data_transforms()
    state = np.random.default_rng(0), random.Random(0)
    pipeline.set_random_state(*state)  # stock sets none: its steps draw independently
    chip = np.arange(4, dtype="uint8").reshape(2, 2)
    names = {_turned(chip, s).tobytes(): s for s in range(8)}
    n = 4000
    theirs = Counter(
        names[pipeline(image=chip[..., None])["image"].tobytes()] for _ in range(n)
    )
    ways = _symmetries(tuple(augmentors))
    share = Counter(ways)
    assert set(theirs) == set(share)
    chi2 = sum(
        (theirs[s] - n * k / len(ways)) ** 2 / (n * k / len(ways))
        for s, k in share.items()
    )
    assert chi2 < 30  # 7 degrees of freedom: once in 10,000


@pytest.mark.parametrize(
    ("bands", "dtype"),
    [(1, "uint8"), (3, "uint16"), (6, "uint8"), (3, "float64"), (2, "int32")],
)
def test_image_and_label_are_turned_alike(bands, dtype):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 200, (16, 16)).astype("uint8")
    image = np.repeat(label[..., None], bands, axis=2).astype(dtype)
    how = BatchTransform(16, (1.0,), (0.0,), tuple(SYMMETRIES))
    collate = _Collator([FakePart(image, label)], how, 32)
    x, y = collate([_Item(0, 0, Box(0, 0, 16, 16), seed) for seed in range(32)])
    assert torch.equal(x, y[:, None].expand(-1, bands, -1, -1).float())
    assert [len(v) for v in (x, y)] == [32, 32]
    pictures = Counter(p.numpy().tobytes() for p in y)
    assert len(pictures) == 8 and set(pictures.values()) == {4}


def test_seeds_of_a_plan_take_all_symmetries_equally(usual):
    usual.sampling = random_windows(max_windows=1500)
    items = _plan(window_datasets(usual, "train"), True, 0)
    ways = _symmetries(tuple(SYMMETRIES))
    found = Counter(ways[i.seed % len(ways)] for i in items)
    n = len(items) / 8  # each picture as often as another
    assert sum((found[s] - n) ** 2 / n for s in range(8)) < 30


# --- recipes


def test_what_a_recipe_cannot_do_is_said(usual):
    def why(dtype="uint8", augment=True, **changes):
        changed = usual.copy()
        for name, value in changes.items():
            setattr(changed, name, value)
        return BatchTransform.of(changed, dtype, augment)

    assert isinstance(why(), BatchTransform)
    assert "resized" in why(img_sz=32)
    assert "resized" in why(sampling=grid(size=(64, 48)))
    assert "resized" in why(sampling=random_windows(size_lims=(40, 90)))
    assert "resized" in why(sampling=random_windows(size_lims=(60, 65)))
    assert "resized" in why(sampling=random_windows(size_lims=(64, 66)))
    assert "resized" in why(sampling=random_windows(h_lims=(64, 65), w_lims=(60, 65)))
    ids = [scene.id for scene in usual.scene_dataset.all_scenes]
    assert isinstance(why(sampling={i: grid() for i in ids}), BatchTransform)
    sizes = {i: grid(size=32 if n else 64) for n, i in enumerate(ids)}
    assert "resized" in why(sampling=sizes)
    assert "Blur" in why(augmentors=["HorizontalFlip", "Blur"])
    assert isinstance(why(augmentors=["Blur"], augment=False), BatchTransform)
    flip = A.to_dict(A.HorizontalFlip())
    assert "aug_transform" in why(aug_transform=flip)
    assert isinstance(why(aug_transform=flip, augment=False), BatchTransform)
    for step, text in (
        (A.Blur(p=1), "base_transform is Blur"),
        (A.Compose([A.Normalize()]), "base_transform is Compose"),
        (A.Normalize(p=0.5), "base_transform is Normalize"),
        (A.Normalize(normalization="min_max"), "base_transform is Normalize"),
    ):
        assert text in why(base_transform=A.to_dict(step))
    step = A.to_dict(A.Normalize())
    step["transform"]["max_pixel_value"] = None
    how = batches._scaling(step, np.dtype("uint8"))  # refused by stock from 2.0 on
    assert "largest value of each chip" in how
    assert isinstance(why(base_transform=A.to_dict(A.Normalize())), BatchTransform)


def test_recipes_know_the_range_of_whole_numbers(usual):
    assert BatchTransform.of(usual, "uint8", True).scale == (1 / 255,)
    assert BatchTransform.of(usual, "uint16", True).scale == (1 / 65_535,)
    assert BatchTransform.of(usual, "int16", True).scale == (1.0,)
    assert BatchTransform.of(usual, "float32", True).scale == (1.0,)
    assert BatchTransform.of(usual, "uint8", True).augmentors == tuple(SYMMETRIES)
    assert BatchTransform.of(usual, "uint8", False).augmentors == ()


def test_a_chip_of_another_size_is_an_error():
    part = FakePart(np.zeros((20, 20, 3), "uint8"), np.zeros((20, 20), "uint8"))
    collate = _Collator([part], BatchTransform(16, (1.0,), (0.0,)), 2)
    collate([_Item(0, 0, Box(0, 0, 16, 16), 0)])
    with pytest.raises(ValueError, match=r"shape \(15, 16, 3\), .* \(16, 16, 3\)"):
        collate([_Item(0, 0, Box(0, 0, 15, 16), 0)])


# --- batches


@pytest.mark.parametrize("batch_sz", [1, 2, 3, 4, 5, 11, 12, 13, 40])
@pytest.mark.parametrize("train", [True, False])
def test_the_last_batch_is_stocks(batch_sz, train, zoo, tmp_path):
    for windows in (
        random_windows(max_windows=6),
        grid(),
        random_windows(max_windows=1),
    ):
        data = data_of(zoo, tmp_path, windows=windows)
        split = "train" if train else "valid"
        dataset = window_datasets(data, split)
        n = len(dataset)
        # as Learner.build_dataloader decides it
        last = dict(drop_last=n % batch_sz == 1) if train else {}
        theirs = [len(b) for b in DataLoader(range(n), batch_sz, **last)]
        how = BatchTransform.of(data, "uint8", train)
        loader = BatchLoader(dataset, batch_sz, 0, how, train)
        assert [len(x) for x, _ in loader.epoch(1)] == theirs
        assert len(loader) == len(theirs)


def clones(batches):
    return [(x.clone(), y.clone()) for x, y in batches]


def same_batches(first, second):
    return len(first) == len(second) and all(
        torch.equal(a, b)
        for one, two in zip(first, second, strict=True)
        for a, b in zip(one, two, strict=True)
    )


@pytest.mark.parametrize("path", ["recipe", "plain", "two workers"])
def test_any_batch_on_equals_the_tail(path, zoo, tmp_path):
    more = [] if path == "recipe" else ["Blur", "GaussNoise"]
    data = data_of(
        zoo,
        tmp_path,
        windows=random_windows(),
        loader=dict(augmentors=SYMMETRIES + more),
    )
    store = SceneStore(100, tmp_path / "s")

    def loader():
        dataset = window_datasets(data, "train", store)
        how = BatchTransform.of(data, "uint8", True) if path == "recipe" else None
        return BatchLoader(
            dataset, 2, 7, how, workers=2 if path == "two workers" else 0
        )

    first = loader()
    torch.manual_seed(0)
    whole = clones(first.epoch(3))
    other = clones(first.epoch(4))
    assert len(whole) == 6 and not same_batches(whole, other)
    for start in range(7):
        torch.manual_seed(start)  # nobody else's chance matters
        again = loader() if start in (1, 4) else first
        assert same_batches(whole[start:], clones(again.epoch(3, start)))


def test_validation_is_the_same_each_time(usual):
    dataset = window_datasets(usual, "valid")
    loader = BatchLoader(
        dataset, 4, 0, BatchTransform.of(usual, "uint8", False), train=False
    )
    assert same_batches(clones(loader), clones(loader))
    assert loader.items(0) == loader.items(1)
    places = [(i.part, i.index) for items in loader.items(0) for i in items]
    assert places == _parts_of(dataset)[1]


@pytest.mark.parametrize("path", ["recipe", "plain"])
def test_making_batches_draws_nothing_from_the_generators(path, usual):
    # a training that goes on in the middle of an epoch must not draw once more
    dataset = window_datasets(usual, "train")
    how = BatchTransform.of(usual, "uint8", True) if path == "recipe" else None
    loader = BatchLoader(dataset, 4, 0, how)
    before = global_state()
    for _ in loader.epoch(0, 1):
        pass
    assert same_state(before, global_state())


def test_albumentations_steps_draw_independently(zoo, tmp_path):
    more = [*SYMMETRIES, "ToGray"]
    windows = random_windows(max_windows=400, padding=0)
    data = data_of(zoo, tmp_path, windows=windows, loader=dict(augmentors=more))
    dataset = window_datasets(data, "train")
    chosen = _PlannedDataset(dataset)
    chip = np.dstack([np.arange(0, 160, 40, dtype="uint8").reshape(2, 2)] * 3)
    pictures = {_turned(chip[..., 0], s).tobytes(): s for s in range(8)}
    for part in chosen.parts:
        part.orig_dataset = [(chip, chip[..., 0])]
    found = Counter()
    for item in _plan(dataset, True, 0):
        one = _Item(item.part, item.index, 0, item.seed)
        corners = chosen[one][1][::63, ::63].numpy().astype("uint8")  # of 64 pixels
        found[pictures.get(corners.tobytes())] += 1
    assert None not in found
    n = sum(found.values()) / 8
    assert sum((found[s] - n) ** 2 / n for s in range(8)) < 30


@pytest.mark.parametrize("name", ["more_augmentors", "aug_transform", "size_lims"])
def test_workers_do_not_change_chips(name, zoo, tmp_path):
    data = data_of(zoo, tmp_path, name)
    dataset = window_datasets(data, "train", SceneStore(100, tmp_path / "s"))
    alone = BatchLoader(dataset, 3, 0)
    two = BatchLoader(dataset, 3, 0, workers=2)
    epochs = [clones(alone.epoch(e)) for e in (0, 1)]
    for epoch in (0, 1):  # the workers stay for the second
        assert same_batches(epochs[epoch], clones(two.epoch(epoch)))
    assert not same_batches(*epochs)
    items = _plan(dataset, True, 0)[:3]
    chosen = _PlannedDataset(dataset)
    first = [chosen[i] for i in items]
    second = [chosen[i] for i in items[::-1]][::-1]
    assert same_batches(first, second)


def test_a_batch_is_left_alone_while_it_is_used(usual):
    usual.sampling = random_windows(max_windows=20)
    dataset = window_datasets(usual, "train", SceneStore(100))
    loader = BatchLoader(dataset, 2, 0, BatchTransform.of(usual, "uint8", True))
    expected = clones(loader.epoch(0))
    assert len(expected) > 3 * len(loader.collator.buffers)
    for (x, y), (ex, ey) in zip(loader.epoch(0), expected, strict=True):
        time.sleep(0.01)  # the thread runs ahead as far as it may
        assert torch.equal(x, ex) and torch.equal(y, ey)


def test_a_thread_runs_ahead_but_not_far():
    made = []

    def make(n):
        made.append(n)
        return n

    numbers = _prefetched([lambda n=n: make(n) for n in range(20)], depth=2)
    assert next(numbers) == 0
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.25)
    assert made == [0, 1, 2, 3]  # one used, two ready, one waiting for a place
    assert [*numbers] == [*range(1, 20)]


def threads():
    return [t for t in threading.enumerate() if t.name == "batches"]


def test_threads_end_when_nobody_asks_any_more(usual):
    assert not threads()
    dataset = window_datasets(usual, "train")
    loader = BatchLoader(dataset, 2, 0, BatchTransform.of(usual, "uint8", True))
    for _ in range(5):
        epoch = loader.epoch()
        next(epoch)
        assert len(threads()) == 1
        del epoch  # abandoned in the middle
        assert not threads()
    for x, _ in loader:
        assert len(x)
    assert not threads()
    with pytest.raises(KeyError):
        for _ in loader:
            raise KeyError
    assert not threads()


def test_errors_reach_the_one_who_waits(usual, monkeypatch):
    dataset = window_datasets(usual, "train")
    part = _parts_of(dataset)[0][0]

    def broken(window):
        raise OSError("the disk is gone")

    loader = BatchLoader(dataset, 2, 0, BatchTransform.of(usual, "uint8", True))
    got = iter(loader)
    next(got)
    monkeypatch.setattr(part.scene.raster_source, "get_chip", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        for _ in loader:
            pass
    del got
    assert not threads()

    def some():
        yield lambda: 1
        raise ValueError("no more")

    found = _prefetched(some())
    assert next(found) == 1
    with pytest.raises(ValueError, match="no more"):
        next(found)
    assert not threads()


def test_scenes_of_a_split(zoo, tmp_path):
    data = data_of(zoo, tmp_path, "no_test")
    assert len(window_datasets(data, "test")) == 0
    assert len(window_datasets(data, "train")) == len(data.build_dataset("train"))
    scene = _parts_of(window_datasets(data, "valid"))[0][0].scene
    config = data.scene_dataset.validation_scenes[0]
    assert scene.id == config.id
    theirs = build_scene(config, data.scene_dataset.class_config)
    assert type(theirs.raster_source) is type(scene.raster_source)
