"""What can be known before a training: of its scenes, its settings, and the job that it will be.

Written by hand: what `rvtutorial check` does. Scenes are read once; nothing is written.
"""

import re
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from rvtutorial.core.hyperparams import Hyperparams
from rvtutorial.core.names import near_match, read_classes
from rvtutorial.data import doubts
from rvtutorial.data.pairing import DataError, check_scenes, find_scenes, find_splits
from rvtutorial.data.pairing import leaks, outlines
from rvtutorial.hpc.scheduler import minutes
from rvtutorial.hpc.sites import Site
from rvtutorial.runs import Workspace

PATTERNS = ("image_pattern", "label_pattern")
LABELS = ("class_field", "classes", "label_values", "layer", "zeros")
MEMORY = {  # GB of the GPUs that sites name in gres; of others the largest is taken
    "t4": 16, "p100": 16, "v100": 32, "a40": 48, "l40s": 48, "a100": 80, "h100": 80,
    "h200": 141,
}  # fmt: skip


@dataclass
class Checked:
    """What a check found: one row a split, what keeps a run from starting, what is odd.

    `looked_at`: of how many scenes the pixels were looked at for what is odd.
    """

    rows: list[dict] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    looked_at: int = 0


def check_run(
    data: Path,  # A folder, or a table of scenes
    settings: dict | None = None,  # As `get_config` takes them; None: only the scenes
    site: str | Path | Site | None = None,  # Whose limits a job would have; None: none
) -> Checked:
    """Look at scenes, at the settings that they would be trained with, and at the job.

    Raises ValueError for a name that is no setting.
    """
    settings, found = dict(settings or {}), Checked()
    named = {k: settings.pop(k) for k in (*PATTERNS, *LABELS, "bands") if k in settings}
    named = {k: v for k, v in named.items() if v not in (None, "")}
    asked = {k: v for k, v in settings.items() if v is not None}
    trained = bool(asked)
    known = ("preset", *PATTERNS, *LABELS, "bands", *Hyperparams.model_fields)
    if wrong := [name for name in asked if name not in known]:
        raise ValueError(f"{wrong[0]} is no setting; {near_match(wrong[0], known)}")
    where = {k: named[k] for k in PATTERNS if k in named}
    how = {k: named[k] for k in LABELS if k in named}
    if isinstance(how.get("classes"), str):
        how["classes"] = [*read_classes(how["classes"])]
    hp = None
    try:
        hp = Hyperparams.of(asked.pop("preset", "sample"), **asked) if trained else None
    except ValueError as error:
        found.problems.append(f"settings: {error}")
    splits, table, order = _scenes(data, where, how, named.get("bands"), found)
    if table is None:
        return found
    found.rows = _rows(table)
    said, seen = doubts.about_scenes(splits, table, how, order)
    found.doubts += said
    found.looked_at = len(seen)
    if hp is not None:
        _settings(hp, splits, table, seen, how, site, order, found)
    return found


def _scenes(data, where, how, bands, found):
    "Splits, their table and the bands that are used; problems are noted."
    from rvtutorial.data.checks import numbered_bands, read_bands

    try:
        if data.is_dir() and not (data / "train").is_dir():  # not split yet
            splits = {"all": find_scenes(data, **where, split="all")}
        else:
            splits = find_splits(data, **where)
        every = [scene for some in splits.values() for scene in some]
        bands = numbered_bands(bands, every)
        order = None if bands is None else read_bands(bands, 10**6)
        table = check_scenes(splits, **how, order=order)
        for a, one, b, two, part in leaks(outlines(splits)):
            text = f"{a} {one} and {b} {two} share {part:.0%} of their ground: move one"
            # corners of warped images overlap a little, and hold no data
            (found.problems if part >= 0.1 else found.doubts).append(f"{text} of them")
        return splits, table, order
    except DataError as error:
        found.problems += error.problems
    except (ValueError, OSError) as error:
        found.problems.append(str(error))
    return None, None, None


def _rows(table):
    "One row a split."
    rows = []
    for split, own in table.groupby("split", sort=False):
        sides = sorted({f"{row.width} x {row.height}" for row in own.itertuples()})
        row = {"split": split, "scenes": len(own), "pixels": ", ".join(sides[:3])}
        row |= {"bands": int(own.bands.iloc[0]), "dtype": own.dtype.iloc[0]}
        row["labelled"] = float(own.share.mean())
        notes = [f"{row.id}: {row.notes}" for row in own.itertuples() if row.notes]
        rows.append(row | {"notes": "; ".join(notes)})
    return rows


def _settings(hp, splits, table, seen, how, site, order, found):
    "What settings do not suit the scenes, and what a job would lack; noted."
    try:
        hp.check_scene(int(table.height.min()), int(table.width.min()))
        hp = hp.fitted(int(min(table.height.min(), table.width.min())), {})
    except ValueError as error:
        found.problems.append(f"settings: {error}")
        found.doubts += doubts.about_values(hp)
        return
    found.doubts += doubts.about_settings(hp, splits, table, seen)
    try:
        cost = _cost(hp, how.get("classes"), order, table)
    except (ValueError, FileNotFoundError) as error:
        found.problems.append(f"settings: {error}")
        return
    if cost:
        shapes = {
            split: [*zip(own.height, own.width, strict=True)]
            for split, own in table.groupby("split")
        }
        if "train" in shapes:
            found.doubts += doubts.about_costs(hp, cost, shapes, _limits_of(site))


def _cost(hp, classes, order, table):
    "What a chip costs with the network that settings name; None: it cannot be counted."
    from rvtutorial.config import make_classes, make_model
    from rvtutorial.engine.inputs import check_pretrained
    from rvtutorial.engine.learner import quiet
    from rvtutorial.engine.speed import chip_cost

    check_pretrained(hp)
    made = make_classes(classes or "building,background")
    bands = len(order) if order else int(table.bands.iloc[0])
    # weights from a file do not change what a chip costs, and may be hard to come by
    bare = dict(
        pretrained=False, pretrained_on=None, init_weights=None, frozen_layers=0
    )
    plain = hp.replace(**bare)
    with tempfile.TemporaryDirectory() as tmp:
        with quiet():
            model = make_model(plain, made, bands, Path(tmp) / "hub").build(
                num_classes=len(made), in_channels=bands, save_dir=tmp
            )
        side = hp.img_sz or hp.chip_sz
        cost = chip_cost(model, (bands, side, side))
    return cost and {**cost, "classes": len(made)}


def _limits_of(
    site: str | Path | Site | None,  # Whose jobs are meant; None: this machine
) -> dict:  # memory (bytes), time (seconds; None: none), disk (bytes), gpu, cores
    "What a job has: of a GPU by the name in gres, and what the site file asks for."
    import psutil

    site = Site.read(site) if site is not None else SimpleNamespace(
        gres=None, mem=None, time=None, cpus=None
    )  # fmt: skip
    place = Workspace().runs
    while not place.exists():
        place = place.parent
    gpu = bool(site.gres) and "gpu" in site.gres
    if gpu:
        text = site.gres.lower()
        stated = re.search(r"(\d+)gb", text)
        known = [size for name, size in MEMORY.items() if name in text]
        memory = int(stated[1]) if stated else (known or [max(MEMORY.values())])[0]
        memory *= 10**9
    else:
        memory = _bytes(site.mem) if site.mem else psutil.virtual_memory().total
    return {
        "memory": memory,
        "time": 60 * minutes(site.time) if site.time else None,
        "disk": shutil.disk_usage(place).free,
        "gpu": gpu,
        "cores": site.cpus or psutil.cpu_count(logical=False) or 1,
    }


def _bytes(text):
    "Bytes of a text such as 16G."
    number, unit = (
        text.upper().removesuffix("B")[:-1],
        text.upper().removesuffix("B")[-1],
    )
    return float(number) * 1024 ** (" KMGT".index(unit))
