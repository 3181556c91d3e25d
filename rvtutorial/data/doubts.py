"""What can be trained on and is probably a mistake: in scenes, and in settings that do not suit them.

Written by hand: `rvtutorial check` says it, beside what is refused. Each function returns
sentences that say what was found and what would help; none of them changes anything.
"""

import hashlib
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.features import rasterize
from rasterio.windows import Window
from scipy import fft, ndimage

from rvtutorial.core.hyperparams import Hyperparams, seconds
from rvtutorial.data.label_values import Meaning
from rvtutorial.data.labels import class_ids, image_info, is_raster, open_image
from rvtutorial.data.labels import read_shapes, target_class
from rvtutorial.data.pairing import Scene, undeclared_fills
from rvtutorial.data.validity import Validity

MOST = 40  # Scenes whose pixels are looked at; of more, some that are evenly apart
SIDE = 1024  # Pixels along a side of what is looked at of one scene, its middle
FARTHEST = 32  # Pixels by which labels may be shifted and are still found
NEAREST = 4  # Shifts below are usual: roofs lean away from where they stand
FEW_OBJECTS = 15  # One of them more or less moves recall by 7 %
EMPTY = 0.05  # Share of pixels without data in training that is worth a word
LARGEST_LR = {"adam": 0.02, "adamw": 0.02, "sgd": 1.0}  # Adam on sample scenes, 20 seeds
# each: at .01 F1 of .91 and falls of .04 between epochs (medians), at .08 .87 and .20, and
# one seed ends at .47 (tests/bench/results/halving.json); of SGD it is a guess
FASTEST = {"gpu": 20e12, "core": 50e9}  # Operations a second that training may reach


@dataclass(frozen=True)
class Seen:
    """The middle of one scene.

    `pixels` (bands, height, width) as stored, `data` (bool) where they hold data, `codes`
    the class of each pixel (any whole numbers that differ where classes do; None: not
    known), `target` (bool) where the class is that is looked for (None: not known),
    `whole` whether this is all of the scene.
    """

    scene: Scene
    pixels: np.ndarray
    data: np.ndarray
    codes: np.ndarray | None
    target: np.ndarray | None
    whole: bool

    @classmethod
    def of(
        cls,
        scene: Scene,
        how: dict,  # class_field, classes, label_values, layer, zeros, as check_scenes
        order: list[int] | None = None,  # Used bands, counted from 0
    ) -> "Seen":
        "Look at a scene."
        info = image_info(scene.image)
        (rows, columns), side = info.shape, SIDE
        y, x = max(0, (rows - side) // 2), max(0, (columns - side) // 2)
        window = Window(x, y, min(side, columns), min(side, rows))
        with open_image(scene.image) as file:
            check = Validity(file, order, how.get("zeros", "empty"))
            pixels = file.read([band + 1 for band in check.bands], window=window)
            data = check.valid(window, pixels=pixels)
        codes, target = _labels_in(scene, info, window, how)
        whole = (window.height, window.width) == (rows, columns)
        return cls(scene, pixels, data, codes, target, whole)


def _labels_in(scene, info, window, how):
    "The classes in a window of an image, and where the one is that is looked for."
    classes = how.get("classes") or ("building", "background")
    if scene.label is None:
        return None, None
    shape = int(window.height), int(window.width)
    if not is_raster(scene.label):
        frame, _ = read_shapes(scene.label, info, how.get("layer"), scene.shared)
        ids = class_ids(frame, how.get("class_field"), classes, scene.label)
        drawn = [(s, i + 1) for s, i in zip(frame.geometry, ids, strict=True)]
        place = info.transform @ info.transform.translation(
            window.col_off, window.row_off
        )
        codes = np.zeros(shape, np.uint8)
        if drawn:
            codes = rasterize(drawn, shape, transform=place, dtype="uint8")
        return codes, codes == target_class(classes) + 1
    if info.shape[0] * info.shape[1] > 64 * SIDE**2:
        return None, None  # which would take long
    meaning, part = Meaning.of(how.get("label_values"), classes), window.toslices()
    if meaning is not None:
        codes = meaning.read(scene.label, image=info)[part]
        return codes, codes == target_class(meaning.names) + 1
    with open_image(scene.label) as file:
        if file.count > 1 or file.shape != info.shape:
            return None, None
        codes = file.read(1)[part]
    values = np.unique(codes)
    return codes, codes == values[-1] if len(values) == 2 else None


# --- scenes


def about_scenes(
    splits: dict[str, list[Scene]],
    table,  # DataFrame of `check_scenes`
    how: dict,  # As `check_scenes` takes it
    order: list[int] | None = None,  # Used bands, counted from 0
) -> tuple[list[str], list[Seen]]:  # Sentences; what was looked at
    "What is strange about scenes that can be used."
    from tqdm import tqdm

    every = [scene for some in splits.values() for scene in some]
    chosen = np.unique(
        np.linspace(0, len(every) - 1, min(MOST, len(every))).astype(int)
    )
    bar = tqdm(chosen, desc="looking", unit="scene", disable=len(every) < 100)
    seen = []
    for i in bar:
        with suppress(ValueError, FileNotFoundError, RasterioError):
            seen.append(Seen.of(every[i], how, order))
    found = [*_mixed_places(table), *_copies(splits), *_look_alike(seen)]
    found += parts_of_one_tile(splits)
    found += [*_absent_classes(table, how), *_few_for_validation(splits, table, seen)]
    found += [*_inverted(seen), *_shifted(seen), *_filled(seen, how)]
    return found, seen


def _named(ids, most=4) -> str:
    "Some names in words."
    ids = [str(i) for i in ids]
    more = f" and {len(ids) - most} more" if len(ids) > most else ""
    what = "scene" if len(ids) == 1 else "scenes"
    return f"{what} {', '.join(ids[:most])}{more}"


def _mixed_places(table):
    "Scenes in another reference system than the others, or of other pixels."
    placed = table[table.crs != ""]
    kinds = Counter(placed.crs)
    if len(kinds) > 1:
        usual, often = kinds.most_common(1)[0]
        odd = placed[placed.crs != usual]
        zones = all(_is_utm(crs) for crs in kinds)
        if not zones or len(odd) * 5 <= len(placed) or odd.crs.nunique() == len(odd):
            told = ", ".join(sorted({*odd.crs}))
            yield (
                f"reference systems are mixed: {often} scenes are in {usual}, and "
                f"{_named(odd.id)} in {told}; if that is not meant, say the right one "
                f"(gdal_edit.py -a_srs {usual} FILE) or warp them (gdalwarp -t_srs {usual})"
            )
    if 0 < len(placed) < len(table):
        yield (
            f"{_named(table[table.crs == ''].id)} of {len(table)} have no georeference, "
            "the others have one: their place and size on the ground is not known"
        )
    sizes = placed[placed.pixel_m > 0].pixel_m
    if len(sizes):
        odd = placed.loc[sizes.index[(sizes / sizes.median() - 1).abs() > 0.5]]
        if len(odd):
            yield (
                f"pixels differ in size: half of the scenes have {sizes.median():.2f} m or "
                f"less, and {_named(odd.id)} {odd.pixel_m.min():.2f} to "
                f"{odd.pixel_m.max():.2f} m, so buildings there are larger or smaller "
                "than the network knows them: resample them (gdalwarp -tr)"
            )


def _is_utm(crs):
    code = crs.removeprefix("EPSG:")
    return code.isdigit() and int(code) // 100 in (326, 327, 269, 258)


def _copies(splits):
    "Images that are the same file, byte for byte, in two splits or in one."
    every = [(split, scene) for split, some in splits.items() for scene in some]
    same = {None: every}
    for digest in (_file_size, _middle, _whole_file):  # ever slower, of ever fewer
        finer = defaultdict(list)
        for key, some in same.items():
            for split, scene in some if len(some) > 1 else ():
                with suppress(OSError):
                    finer[key, digest(scene.image)].append((split, scene))
        same = finer
    copies = [
        some for some in same.values() if len({scene.image for _, scene in some}) > 1
    ]
    leaked = [some for some in copies if len({split for split, _ in some}) > 1]
    for some in leaked[:3]:
        told = " and ".join(f"{scene.id} of {split}" for split, scene in some[:3])
        yield (
            f"{told} are the same image: scores there are memory. Remove one of them"
            + (
                f" ({len(leaked)} images are met in two splits)"
                if len(leaked) > 1
                else ""
            )
        )
    for some in [some for some in copies if some not in leaked][:3]:
        yield (
            f"{_named(scene.id for _, scene in some)} of {some[0][0]} are the same image, "
            "which counts more than others: remove one of them"
        )


def _file_size(path):
    return path.stat().st_size


def _middle(path):
    with open(path, "rb") as file:
        file.seek(_file_size(path) // 2)
        return file.read(2**14)


def _whole_file(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _look_alike(seen):
    "Images that show the same, although their files differ."
    small = {}
    for one in seen:
        if min(one.data.shape) < 32 or not one.data.all():
            continue
        rows, columns = (np.linspace(0, n, 33).astype(int)[:-1] for n in one.data.shape)
        means = np.add.reduceat(one.pixels.mean(0, dtype=float), rows, 0)
        means = np.add.reduceat(means, columns, 1)
        if means.std() > 0:
            small[one.scene.image] = one.scene, (means - means.mean()) / means.std()
    for (one, a), (other, b) in combinations(small.values(), 2):
        if np.mean(a * b) > 0.98 and not _same_file(one.image, other.image):
            yield (
                f"{one.id} of {one.split} and {other.id} of {other.split} show the same: a "
                "copy that was written again. Remove one of them"
            )


def _same_file(one, other):
    return _file_size(one) == _file_size(other) and _middle(one) == _middle(other)


def parts_of_one_tile(splits):
    "Scenes of two splits that are parts of one tile."
    tiles = defaultdict(dict)
    for split, some in splits.items():
        for scene in some:
            if scene.tile:
                tiles[scene.tile].setdefault(split, scene.id)
    shared = {tile: some for tile, some in tiles.items() if len(some) > 1}
    if shared:
        tile, some = next(iter(shared.items()))
        told = " and ".join(f"{scene} of {split}" for split, scene in some.items())
        yield (
            f"the splits share {len(shared)} of {len(tiles)} tiles, so scores will be "
            f"partly memory: {told} are parts of {tile}. Split by tile "
            "(split_scenes(..., by='tile'))"
        )


def _absent_classes(table, how):
    "Classes that training or validation never shows."
    wanted = [
        name
        for name in how.get("classes") or ("building", "background")
        if name not in ("background", "null")
    ]
    shown = {split: Counter() for split in table.split.unique()}
    known = True
    for split, present in zip(table.split, table.attrs["present"], strict=True):
        known &= present is not None
        shown[split].update(present or {})
    if not known:
        return
    for split in [name for name in ("train", "val", "all") if name in shown]:
        absent = [name for name in wanted if not shown[split][name]]
        if absent:
            what = (
                "nothing can be learned of it"
                if split != "val"
                else "nothing tells how well it is found"
            )
            yield (
                f"no label of {split} shows {' or '.join(absent)}: {what}. Is it spelled as "
                "in the labels? Else move scenes that show it there, or leave it out of "
                "classes"
            )


def _few_for_validation(splits, table, seen):
    "A validation that a few buildings more or less would move."
    scenes = splits.get("val") or []
    if not scenes or len(splits.get("train") or []) <= len(scenes):
        return
    rows = table[table.split == "val"]
    if (rows.labels == "vector").all():
        shapes = int(rows.polygons.sum())
        if {s.label for s in scenes if s.shared}:
            return
    else:
        found = [s for s in seen if s.scene.split == "val" and s.target is not None]
        if len(found) < len(scenes) or not all(s.whole for s in found):
            return
        if any(s.target.mean() > 0.3 for s in found):
            return  # of land that is covered by a class there are no objects to count
        shapes = sum(ndimage.label(s.target)[1] for s in found)
    if shapes < FEW_OBJECTS:
        yield (
            f"validation has {shapes} labelled objects in {len(scenes)} scene"
            f"{'s' * (len(scenes) > 1)}: one more or less that is found moves recall by "
            f"{1 / max(shapes, 1):.0%}, so the score will jump from epoch to epoch and "
            "cannot tell models apart. Move more scenes to val"
        )


def _inverted(seen):
    "Masks where the class that is looked for is what lies around it."
    known = [s for s in seen if s.target is not None and s.target.any()]
    known = [s for s in known if min(s.target.shape) >= 32]
    odd = [s.scene.id for s in known if _is_inside_out(s.target, 3)]
    likely = [s for s in known if _is_inside_out(s.target, 2)]
    shares = [s.target.mean() for s in known]
    for i, one in enumerate(known):
        usual = np.median(shares[:i] + shares[i + 1 :]) if len(known) > 1 else 1
        if shares[i] > 0.55 and usual < 0.5 and _largest(one.target) > 0.9:
            odd.append(one.scene.id)
    odd = [*dict.fromkeys(odd)]
    every = len(known) > 2 and min(shares) > 0.5
    if every and 2 * len(likely) >= len(known):
        odd = [s.scene.id for s in known]
    if odd:
        all_of_them = "all scenes" if len(odd) == len(known) > 1 else _named(odd)
        yield (
            f"the mask looks inverted in {all_of_them}: most pixels are of the class that "
            "is looked for, in one piece with patches of the rest in it. Exchange the "
            "values (label_values, such as 0:building,255:background)"
        )


def _is_inside_out(target, least: int):
    "Whether a class covers most of a scene and encloses so many patches of the rest."
    share = target.mean()
    if share < 0.5 or share > 0.995:
        return share > 0.5
    outside, _ = ndimage.label(~target)
    patches = np.bincount(outside.ravel())
    edge = np.concatenate([outside[0], outside[-1], outside[:, 0], outside[:, -1]])
    patches[0], patches[np.unique(edge)] = 0, 0
    enclosed = patches[patches > 9]
    mostly = enclosed.sum() > 0.2 * (~target).sum()
    return bool(_largest(target) > 0.9 and len(enclosed) >= least and mostly)


def _largest(target):
    "Which part of a class is in its largest piece."
    return np.bincount(ndimage.label(target)[0].ravel())[1:].max() / target.sum()


def _edges_on_image(one: Seen):
    """How strong an image changes under the outlines of its labels, if they were moved.

    (2 * FARTHEST + 1) squared: the mean over the outlines of the strength of edges, in
    standard deviations over the scene, for every shift; and the number of outline pixels.
    """
    codes, most = one.codes, FARTHEST
    if codes is None or min(codes.shape) < 4 * most:
        return None
    light = ndimage.gaussian_filter(one.pixels.mean(0, dtype=np.float32), 1)
    edges = np.hypot(ndimage.sobel(light, 0), ndimage.sobel(light, 1))
    edges[ndimage.binary_dilation(~one.data, iterations=4)] = 0
    edges = np.minimum(edges, np.percentile(edges, 99))
    lines = np.zeros(codes.shape, bool)
    lines[1:] |= codes[1:] != codes[:-1]
    lines[:, 1:] |= codes[:, 1:] != codes[:, :-1]
    inner = np.zeros_like(lines)
    inner[most:-most, most:-most] = True
    lines &= inner
    if lines.sum() < 100 or not np.isfinite(edges).all() or edges.std() == 0:
        return None
    edges = (edges - edges.mean()) / edges.std()
    sides = [fft.next_fast_len(n, real=True) for n in edges.shape]
    moved = np.conj(fft.rfft2(lines.astype(np.float32), sides))
    found = fft.irfft2(fft.rfft2(edges, sides) * moved, sides)
    found = np.roll(found, (most, most), (0, 1))[: 2 * most + 1, : 2 * most + 1]
    return ndimage.gaussian_filter(found / lines.sum(), 1), int(lines.sum())


def _best_shift(strength, clear: float, alone: float = 1):
    """Rows and columns by which labels fit better, if it is far and clear; else None.

    Clear: so many standard deviations over all shifts, labels that lie where they are
    have less than two thirds of it, and no shift farther than 6 pixels from it has more
    than the part `alone` of it. For one scene 5 and 0.7 gave no false alarm on 326
    scenes of six data sets.
    """
    most = FARTHEST
    at = np.unravel_index(strength.argmax(), strength.shape)
    shift = int(at[0] - most), int(at[1] - most)
    here, best = strength[most, most], strength.max()
    rows, columns = np.ogrid[: strength.shape[0], : strength.shape[1]]
    others = strength[np.hypot(rows - at[0], columns - at[1]) > 6]
    far = np.hypot(*shift) >= NEAREST and max(map(abs, shift)) < most
    sure = best > clear * strength.std() and others.max() <= alone * best
    return shift if far and sure and here < 0.67 * best else None


def _shifted(seen):
    "Labels that lie beside what they mean."
    found = {s.scene.id: _edges_on_image(s) for s in seen}
    found = {name: one for name, one in found.items() if one is not None}
    if not found:
        return
    total = sum(n for _, n in found.values())
    together = sum(strength * n for strength, n in found.values()) / total
    words = (
        "labels look shifted: {}, they fit the edges in the image better when they are "
        "moved by {} rows and {} columns (down and right count positive). Correct the "
        "georeference of labels or images, and draw both (scenes.plot_scene)"
    )
    alone = {n: _best_shift(s, 5, 0.7) for n, (s, many) in found.items() if many >= 200}
    alone = {n: shift for n, shift in alone.items() if shift}
    if len(found) > 1 and (shift := _best_shift(together, 6)):
        yield words.format("in all scenes together", *(f"{n:+d}" for n in shift))
    elif alone:
        name, shift = next(iter(alone.items()))
        where = (
            f"in {_named(alone)}, in {name}"
            if len(alone) > 1
            else f"in {_named(alone)}"
        )
        yield words.format(where, *(f"{n:+d}" for n in shift))


def _filled(seen, how):
    "Pixels that look like no data and are not declared."
    zeros = how.get("zeros", "empty")
    values = defaultdict(list)
    for one in seen:
        for value in _fills_in(one, zeros):
            values[value].append(one.scene.id)
    for value, ids in values.items():
        yield (
            f"{_named(ids)} hold{'s' * (len(ids) == 1)} {value} where there is probably no "
            "data: it is learned as if it were measured. Declare it "
            f"({_declare(value)}), or give scaling=LOW,HIGH if it is a measurement"
        )


def _declare(value):
    "How no data is declared."
    if "by band" in value:
        return "gdal_translate -mask BAND, or name the bands to use: bands=1,2,3"
    return f"gdal_edit.py -a_nodata {value} FILE"


def _fills_in(one, zeros):
    "Values, as text, of large even patches at the edge of a scene, or far from all others."
    found = set()
    if not one.data.any():
        return found
    for band in one.pixels:
        values, counts = np.unique(band[one.data][::5], return_counts=True)
        for value in undeclared_fills(values, counts):
            if value or zeros == "empty":
                found.add(f"{value:g}")
    many = max(len(np.unique(band[one.data][::5])) for band in one.pixels)
    if min(one.data.shape) < 32 or many < 32:
        return found  # few values are even by themselves
    even = one.data.copy()  # as the pixel below and the one to the right
    for axis in (0, 1):
        same = (np.diff(one.pixels, axis=axis + 1) == 0).all(0)
        ends = [(0, 0), (0, 0)]
        ends[axis] = (0, 1)
        even &= np.pad(same, ends, mode="edge")
    if even.mean() < 0.01:
        return found
    patches, _ = ndimage.label(even)
    sizes = np.bincount(patches.ravel())
    edge = np.concatenate([patches[0], patches[-1], patches[:, 0], patches[:, -1]])
    for patch in np.unique(edge[edge > 0]):
        if sizes[patch] < 0.01 * even.size:
            continue
        here = patches == patch
        along = max(
            side.mean() for side in (here[0], here[-1], here[:, 0], here[:, -1])
        )
        if along < 0.5 and sizes[patch] < 0.05 * even.size:
            continue  # a bright roof, and no frame
        y, x = np.unravel_index(here.argmax(), here.shape)
        values = [f"{v:.10g}" for v in one.pixels[:, y, x].tolist()]
        if {*values} != {"0"} or zeros == "empty":
            found.add(
                values[0] if len({*values}) == 1 else f"{', '.join(values)} (by band)"
            )
    return found


# --- settings


def about_settings(
    hp: Hyperparams,  # What a training would be asked for
    splits: dict[str, list[Scene]],
    table,  # DataFrame of `check_scenes`
    seen: list[Seen],  # Of `about_scenes`
) -> list[str]:  # Sentences
    "What does not suit the scenes, or is far from what has worked."
    found = [*_scaled(hp, table), *_size(hp, seen), *_rare(hp, splits, seen)]
    return about_values(hp) + found + [*empty_pixels(hp, table)]


def about_values(
    hp: Hyperparams,  # What a training would be asked for
) -> list[str]:  # Sentences
    "What is far from what has worked, whatever the scenes."
    found = [*_rate(hp)]
    if hp.img_sz and hp.chip_sz and hp.img_sz != hp.chip_sz:
        found.append(
            f"img_sz {hp.img_sz} is not chip_sz {hp.chip_sz}: chips are resized, and "
            "buildings have another size for the network than in the image. Leave img_sz out"
        )
    if hp.val_windows == "random":
        found.append(
            "val_windows is random: each epoch is judged by other chips, so the "
            "validation score jumps by itself. Use val_windows=grid"
        )
    if hp.epochs and hp.patience and hp.patience >= hp.epochs:
        found.append(
            f"patience {hp.patience} is not below epochs {hp.epochs}: training never "
            "stops early"
        )
    return found


def empty_pixels(hp: Hyperparams, table):
    "Pixels without data that train as background, where there are many of them."
    train = table[table.split == "train"]
    area = train.height * train.width
    share = (train.no_data * area).sum() / max(area.sum(), 1)
    if share >= EMPTY and hp.null == "ignore" and hp.sampling != "labels":
        yield (
            f"{share:.0%} of the pixels of training scenes hold no data and train as what "
            "their labels say, mostly background: sampling=labels leaves them out of the "
            "loss"
        )


def _rate(hp):
    "A learning rate with which trainings have failed."
    most = LARGEST_LR[hp.optimizer]
    if hp.pretrained or hp.init_weights:
        most /= 2  # what was learned before is soon lost
    if hp.lr > most:
        yield (
            f"lr {hp.lr:g} is high for {hp.optimizer}"
            + (
                " and a network that has learned before"
                if most < LARGEST_LR[hp.optimizer]
                else ""
            )
            + f": above {most:g} scores jump between epochs and end lower. Try lr={most / 10:g}"
        )
    elif hp.lr < 1e-6:
        yield f"lr {hp.lr:g} is so low that next to nothing is learned. Try lr=0.001"


def _scaled(hp, table):
    "Values that reach the network as they are."
    large = table[~table.dtype.isin(["uint8", "int8"])]
    if hp.scaling == "none" and len(large):
        yield (
            f"scaling is none, and {_named(large.id)} hold{'s' * (len(large) == 1)} "
            f"{large.dtype.iloc[0]}: values far above 1 reach the network. Use "
            "scaling=percentiles"
        )


def _size(hp, seen):
    "Chips that are smaller than what they should show."
    sides = []
    for one in seen:
        if one.target is None or not one.target.any() or one.target.mean() > 0.5:
            continue
        places = ndimage.find_objects(ndimage.label(one.target)[0])
        sides += [max(s.stop - s.start for s in place) for place in places]
    sides = [side for side in sides if side > 3]
    if not hp.chip_sz or len(sides) < 5:
        return
    usual, large = np.percentile(sides, (50, 75))
    if hp.chip_sz < large:
        yield (
            f"chip_sz {hp.chip_sz} is smaller than many labelled objects: one in four is "
            f"{large:.0f} pixels long or more, half of them {usual:.0f}. The network never "
            f"sees such a one as a whole. Use chip_sz={-(-int(2 * large) // 32) * 32} or more"
        )


def _rare(hp, splits, seen):
    "Classes that next to no chip of an epoch shows."
    train = [s for s in seen if s.scene.split == "train" and s.codes is not None]
    if not train or not hp.chip_sz or hp.sampling == "labels" or not hp.max_windows:
        return
    chips = len(splits["train"]) * hp.max_windows
    target = [s for s in train if s.target is not None]
    if len(target) < len(train) or not any(s.target.any() for s in target):
        return
    share = np.mean([_chance(s.target, hp.chip_sz) for s in target])
    if share * chips < 3:
        yield (
            f"of the {chips} chips of an epoch about {share * chips:.1f} show the class that "
            "is looked for: it is hardly ever drawn. Use sampling=labels and "
            "class_weights=balanced, or raise max_windows"
        )


def _chance(target, chip):
    "How often a random chip of a scene shows a class, by its mean position."
    rows, columns = (max(1, n - chip + 1) for n in target.shape)
    sums = np.pad(target.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    h, w = (min(chip, n) for n in target.shape)
    inside = sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w]
    return float((inside[:rows, :columns] > 0).mean())


# --- what a training takes


def about_costs(
    hp: Hyperparams,  # With numbers for chips and epochs
    cost: dict,  # bytes and flops of a chip, bytes of the weights: `engine.speed.chip_cost`
    shapes: dict[str, list[tuple[int, int]]],  # Split -> rows and columns of its scenes
    limits: dict,  # memory (bytes), time (seconds), disk (bytes free), gpu (bool), cores
) -> list[str]:  # Sentences
    "Memory, time and disk that a training will probably take, where that is too much."
    found, gpu = [], limits.get("gpu")
    halves = hp.precision == "bfloat16" or (hp.precision == "auto" and gpu)
    need = cost["bytes"] * hp.batch_sz / (2 if halves else 1) + 4 * cost["weights"]
    need = 1.3 * need + (0 if gpu else 0.5e9)  # as measured, and torch itself
    memory = limits.get("memory")
    if memory and need > memory:
        fits = int(hp.batch_sz * memory / need)
        found.append(
            f"batch_sz {hp.batch_sz} with chips of {hp.chip_sz} pixels needs about "
            f"{need / 1e9:.1f} GB, most of it for the layers of a step, and there are "
            f"{memory / 1e9:.1f} GB: out of memory. Use batch_sz={max(1, fits // 2)}, or "
            "smaller chips"
        )
    time = limits.get("time")
    if hp.budget and time and seconds(hp.budget) > time:
        found.append(
            f"budget {hp.budget} is longer than the time of the job, {time / 60:.0f} min: "
            "raise time in the site file, or lower budget"
        )
    elif not hp.budget and time:
        chips = sum(hp.chips_of(shapes["train"], "train"))
        rate = FASTEST["gpu"] if gpu else FASTEST["core"] * limits.get("cores", 1)
        least = hp.epochs * chips * cost["flops"] / rate
        if least > time:
            found.append(
                f"epochs {hp.epochs} of {chips} chips take {least / 3600:.1f} hours at "
                f"least, and the job has {time / 3600:.1f}: it would be stopped before it "
                "ends (and queued again, if the site says so). Raise time in the site "
                "file, or lower epochs"
            )
    mapped = sum(r * c for name in ("val", "test") for r, c in shapes.get(name, []))
    kept = {"none": 1, "uint8": 1 + cost["classes"], "float32": 1 + 4 * cost["classes"]}
    disk = mapped * kept[hp.scores] + 5 * cost["weights"]
    if limits.get("disk") and disk > limits["disk"]:
        found.append(
            f"the run will write about {disk / 1e9:.1f} GB (maps and scores of "
            f"{mapped / 1e6:.0f} million pixels, weights), and {limits['disk'] / 1e9:.1f} "
            "GB are free: clean up (rvtutorial clean), or use scores=none"
        )
    return found
