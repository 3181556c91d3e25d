"""Real imagery: the preset `own` beside what others would do in the same time on the same tiles.

    python tests/bench/real.py [--set rio|kampala|dubai] [--seconds 180] [--data FOLDER]

Four methods train for the same wall time on this machine: `own` (preset="own",
untouched), `boosting` (gradient boosting on blurred pixels), `smp` (a plain loop over
segmentation-models-pytorch with the same pre-trained encoder) and `nothing` (the preset
without pre-trained weights). Each result is kept as JSON as soon as it is there, and not
computed again; the table is printed at the end.

Scores are of pixels, pooled over the test scenes: F1 of building, or the mean IoU of all
classes (Dubai). Pixels without a label do not count. Intervals: 95 %, by drawing scenes
with replacement 10,000 times, the mean of the seeds for each scene's counts.
"""

import argparse
import json
import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import rasterio
from rasterio.features import rasterize
from rasterio.transform import from_origin
from rasterio.warp import transform_geom
from scipy import ndimage

ROOT = Path(__file__).resolve().parents[2]
SEEDS = (0, 1)
METHODS = ("own", "smp", "boosting", "nothing")
NO_LABEL = 255
EARTH = 20037508.342789244  # Half the side of the web map, metres
DUBAI = {"building": "3C1098", "land": "8429F6", "road": "6EC1E4"}
DUBAI |= {"vegetation": "FEDD3A", "water": "E2A929"}


# --- sets: {fold: {"train", "val", "test": [scene]}}; a scene: id, image, label, pixels


def scene(name, image, label, truth):
    "One image with the class of each pixel; class 0 is the one looked for."
    with rasterio.open(image) as file:
        pixels = file.read()[:3].transpose(1, 2, 0)
    assert pixels.shape[:2] == truth.shape, image
    return dict(id=name, image=image, label=label, pixels=pixels, truth=truth)


def rio(data):
    "Leave one out over the five tiles with buildings; the five others always train."
    folder, scenes = data / "spacenet1_rio", {}
    for image in sorted((folder / "images").glob("*.tif")):
        number = int(re.search(r"img(\d+)", image.name)[1])
        (label,) = (folder / "masks").glob(f"*img{number}.*")
        with rasterio.open(label) as file:
            truth = np.where(file.read(1) == 255, 0, 1).astype(np.uint8)
        scenes[number] = scene(str(number), image, label, truth)
    folds = {}
    for held in (50, 52, 53, 55, 64):
        train = [s for n, s in scenes.items() if n != held]
        folds[f"without {held}"] = dict(train=train, val=[], test=[scenes[held]])
    return folds


def kampala(data):
    "Zoom 20: the columns 619224 and 619212, 619213 are the test."
    folder, scenes = data / "openaerialmap_kampala", []
    shapes = json.loads((folder / "labels.geojson").read_text())["features"]
    shapes = [transform_geom("EPSG:4326", "EPSG:3857", s["geometry"]) for s in shapes]
    for image in sorted((folder / "images").glob("*-20.png")):
        x, y = map(int, re.match(r"OAM-(\d+)-(\d+)-20", image.stem).groups())
        side = 2 * EARTH / 2**20
        place = from_origin(x * side - EARTH, EARTH - y * side, side / 256, side / 256)
        truth = rasterize(shapes, (256, 256), fill=1, default_value=0, transform=place)
        made = scene(image.stem, image, folder / "labels.geojson", truth)
        parts = {"x": str(x), "y": str(y), "z": "20"}
        scenes.append(dict(made, column=x, parts=parts))
    test = [s for s in scenes if s["column"] in (619224, 619212, 619213)]
    train = [s for s in scenes if s["column"] not in (619224, 619212, 619213)]
    return {"all": dict(train=train, val=[], test=test)}


def dubai(data):
    "Tiles 1, 5 and 6 train, 4 and 8 are the test."
    colours = np.array(
        [[int(c[i : i + 2], 16) for i in (0, 2, 4)] for c in DUBAI.values()]
    )
    scenes = {"train": [], "val": [], "test": []}
    for image in sorted((data / "dubai").glob("Tile */images/*.jpg")):
        tile, part = image.parents[1].name, image.stem.split("_")[-1]
        label = image.parents[1] / "masks" / f"{image.stem}.png"
        with rasterio.open(label) as file:
            mask = file.read()
            if len(mask) == 1:
                table = np.zeros((256, 3), np.uint8)
                for number, colour in file.colormap(1).items():
                    table[number] = colour[:3]
                mask = table[mask[0]].transpose(2, 0, 1)
        truth = np.full(mask.shape[1:], NO_LABEL, np.uint8)
        for number, colour in enumerate(colours):
            truth[(mask[:3] == colour[:, None, None]).all(0)] = number
        split = "test" if tile in ("Tile 4", "Tile 8") else "train"
        scenes[split].append(scene(f"{tile[-1]}-{part}", image, label, truth))
    return {"all": scenes}


SETS = {"rio": (rio, 2), "kampala": (kampala, 2), "dubai": (dubai, 5)}


# --- what others would do


def blurred(pixels):
    "A pixel, its surroundings at four scales and how rough they are, and how bright it is."
    bands = pixels.astype(np.float32)
    layers = [bands]
    for sigma in (1, 2, 4, 8):
        smooth = ndimage.gaussian_filter(bands, (sigma, sigma, 0))
        layers += [
            smooth,
            np.sqrt(ndimage.gaussian_filter((bands - smooth) ** 2, (sigma, sigma, 0))),
        ]
    return np.concatenate(layers, axis=2).reshape(-1, 3 * len(layers))


def boosting(fold, classes, seed, seconds):
    "Gradient boosting on at most 300,000 pixels: 600 trees, or what the time allows."
    from sklearn.ensemble import HistGradientBoostingClassifier

    end, rng = time.monotonic() + seconds, np.random.default_rng(seed)
    x = np.concatenate([blurred(s["pixels"]) for s in fold["train"]])
    y = np.concatenate([s["truth"].ravel() for s in fold["train"]])
    seen = (y != NO_LABEL) & (x[:, :3].sum(1) > 0)
    some = rng.permutation(np.flatnonzero(seen))[:300_000]
    model = HistGradientBoostingClassifier(
        max_iter=20,
        learning_rate=0.1,
        warm_start=True,
        early_stopping=False,
        random_state=seed,
    )
    most = 600 // (
        1 if classes == 2 else classes
    )  # trees in all: more predict for an hour
    while time.monotonic() < end and model.max_iter <= most:
        model.fit(x[some], y[some])
        model.max_iter += 20
    return [
        model.predict(blurred(s["pixels"])).reshape(s["truth"].shape)
        for s in fold["test"]
    ]


def smp_loop(fold, classes, seed, seconds):
    "A U-Net of segmentation-models-pytorch, EfficientNet-Lite0 from ImageNet, as a script has it."
    import segmentation_models_pytorch as smp
    import torch

    from rvtutorial.models.encoders import _load_encoder, weights_file

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = smp.Unet("tu-tf_efficientnet_lite0", encoder_weights=None, classes=classes)
    _load_encoder(net.encoder, weights_file())
    net = net.to(memory_format=torch.channels_last).train()
    every = np.concatenate([s["pixels"].reshape(-1, 3) for s in fold["train"]])
    low, high = np.percentile(every[every.sum(1) > 0], (2, 98), axis=0).astype(
        np.float32
    )

    def tensor(pixels):
        spread = 2 * (pixels.astype(np.float32) - low) / (high - low) - 1
        return torch.from_numpy(spread.clip(-1, 1).transpose(2, 0, 1).copy())

    images = [tensor(s["pixels"]) for s in fold["train"]]
    truths = [torch.from_numpy(s["truth"].astype(np.int64)) for s in fold["train"]]

    def batch(size=192, many=8):
        chips = []
        for i in rng.choice(len(images), many):
            image, truth = images[i], truths[i]
            top, left = (rng.integers(0, max(n - size, 0) + 1) for n in truth.shape)
            x = image[:, top : top + size, left : left + size]
            y = truth[top : top + size, left : left + size]
            turns, flip = int(rng.integers(4)), bool(rng.integers(2))
            x, y = torch.rot90(x, turns, (1, 2)), torch.rot90(y, turns, (0, 1))
            chips.append((x.flip(2), y.flip(1)) if flip else (x, y))
        return torch.stack([x for x, _ in chips]), torch.stack([y for _, y in chips])

    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=1e-4)

    def step(rate):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * rate
        x, y = batch()
        with torch.autocast("cpu", torch.bfloat16):
            found = net(x.to(memory_format=torch.channels_last))
        loss = torch.nn.functional.cross_entropy(
            found.float(), y, ignore_index=NO_LABEL
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    begun = time.monotonic()
    for i in range(10):  # how long a step takes; these are part of the warm-up
        step((i + 1) / 100)
    left = seconds - (time.monotonic() - begun)
    steps = max(10, int(left / ((time.monotonic() - begun) / 10)))
    for i in range(steps):
        warm = min(1, (i + 1) / (0.1 * steps))
        step(warm * 0.5 * (1 + np.cos(np.pi * i / steps)))
    net.eval()
    maps = []
    for s in fold["test"]:
        x = tensor(s["pixels"])[None]
        height, width = x.shape[-2:]
        x = torch.nn.functional.pad(
            x, (0, -width % 32, 0, -height % 32), mode="replicate"
        )
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            maps.append(net(x)[0, :, :height, :width].argmax(0).numpy())
    return maps


# --- ours

LABELS = {
    "rio": dict(
        classes="building,background", label_values="255:building,0:background"
    ),
    "kampala": dict(classes="building,background"),
    "dubai": dict(
        classes=",".join(DUBAI),
        label_values=",".join(f"#{c}:{name}" for name, c in DUBAI.items())
        + ",#9B9B9B:null,#000000:null",
    ),
}


def splits_of(fold, validate=True):
    "The scenes of a fold by split; every sixth training scene is for validation, or none."
    from rvtutorial.scenes import Scene

    splits = {"train": [], "val": [], "test": []}
    for split, some in (("train", fold["train"]), ("test", fold["test"])):
        for number, s in enumerate(some):
            aside = validate and split == "train" and number % 6 == 3
            of = "val" if aside else split
            made = Scene(s["id"], s["image"], s["label"], of, parts=s.get("parts", {}))
            splits[of].append(made)
    return splits


def own(fold, classes, seed, seconds, name, folder, **changes):
    """The preset for one's own data, untouched.

    Rio and Kampala have few tiles: all train, as with the other methods, and none is for
    validation. Of Dubai's training tiles every sixth is.
    """
    from rvtutorial import engine, scenes
    from rvtutorial.config import get_config

    run, splits = folder / "run", splits_of(fold, validate=name == "dubai")
    shutil.rmtree(folder, ignore_errors=True)
    if name == "kampala":
        splits = {n: scenes.place_tiles(x, folder / n) for n, x in splits.items()}
    table = scenes.write_table(splits, folder / "scenes.csv")
    how = dict(preset="own", data=table, **LABELS[name])
    cfg = get_config(
        "inprocess", run, **how, budget=f"{seconds:g} s", seed=seed, **changes
    )
    engine.run(cfg, ["train", "predict"])
    maps = []
    for s in fold["test"]:
        with rasterio.open(run / "predict" / s["id"] / "labels.tif") as file:
            maps.append(file.read(1))
    return maps


def nothing(*what):
    "The same preset with the small network, which starts from nothing."
    return own(*what, encoder="none", pretrained=False, lr=1e-3, encoder_lr=1)


# --- scores


def confusion(truth, found, classes):
    "Pixels by true and predicted class, the last column for none; unlabelled ones left out."
    known = truth != NO_LABEL
    said = np.minimum(found[known].astype(int), classes)
    pairs = truth[known].astype(int) * (classes + 1) + said
    counts = np.bincount(pairs, minlength=classes * (classes + 1))
    return counts.reshape(classes, classes + 1)


def score(counts):
    "F1 of the first of two classes, mean IoU of more; (..., classes, classes + 1) counts."
    counts = np.asarray(counts, float)
    n = counts.shape[-2]
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    true, said = counts.sum(-1), counts.sum(-2)[..., :n]
    if n == 2:
        return 2 * hits[..., 0] / np.maximum(true[..., 0] + said[..., 0], 1)
    return (hits / np.maximum(true + said - hits, 1)).mean(-1)


def dots(found):
    "How many components of class 0 (8-connected) have less than 10 pixels, and all."
    parts, many = ndimage.label(found == 0, np.ones((3, 3)))
    sizes = np.bincount(parts.ravel())[1:]
    return int((sizes < 10).sum()), int(many)


def measure(name, method, seed, fold, seconds, folder, classes):
    "Train and map one fold; what is kept of it."
    begun = time.monotonic()
    if method in ("own", "nothing"):
        how = {"own": own, "nothing": nothing}[method]
        maps = how(fold, classes, seed, seconds, name, folder / f"{name}-{method}")
    else:
        how = {"boosting": boosting, "smp": smp_loop}[method]
        maps = how(fold, classes, seed, seconds)
    scenes = {}
    for s, found in zip(fold["test"], maps, strict=True):
        small, many = dots(found)
        counts = confusion(s["truth"], found, classes).tolist()
        scenes[s["id"]] = dict(counts=counts, small=small, components=many)
    return dict(scenes=scenes, seconds=round(time.monotonic() - begun, 1))


def row(name, method, done):
    "A line of the table; done: {seed: {fold: what measure returns}}."
    scores, small, many = [], 0, 0
    for folds in done.values():
        scenes = [s for fold in folds.values() for s in fold["scenes"].values()]
        scores.append(float(score(np.sum([s["counts"] for s in scenes], axis=0))))
        small += sum(s["small"] for s in scenes)
        many += sum(s["components"] for s in scenes)
    low, high = interval(lambda counts: score(counts).mean(0), drawn(done))
    seconds = [fold["seconds"] for folds in done.values() for fold in folds.values()]
    return dict(
        set=name, method=method, score=float(np.mean(scores)), low=low, high=high,
        seeds=scores, dots=small / max(1, many), seconds=float(np.median(seconds)),
    )  # fmt: skip


def drawn(done, many=10_000):
    "Counts of scenes drawn with replacement: (seeds, draws, classes, classes + 1)."
    table = [
        [s["counts"] for fold in folds.values() for s in fold["scenes"].values()]
        for folds in done.values()
    ]
    table, rng = np.array(table, float), np.random.default_rng(0)
    n = table.shape[1]
    weights = rng.multinomial(n, np.full(n, 1 / n), size=many).astype(float)
    return np.einsum("dn,snij->sdij", weights, table)


def interval(how, counts):
    "The middle 95 % of what a function says of the draws."
    return [float(v) for v in np.percentile(how(counts), (2.5, 97.5))]


def against(one, other):
    "Interval of the difference of two methods over the same draws of scenes."
    means = [score(drawn(done)).mean(0) for done in (one, other)]
    return interval(lambda both: both[0] - both[1], means)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--set", choices=SETS, action="append", dest="sets")
    parser.add_argument("--method", choices=METHODS, action="append", dest="methods")
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "real")
    asked = parser.parse_args(argv)
    asked.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in asked.sets or SETS:
        make, classes = SETS[name]
        folds, every = make(asked.data), {}
        for method in asked.methods or METHODS:
            every[method] = {}
            for seed in SEEDS:
                kept = asked.out / f"{name}-{method}-{seed}-{asked.seconds:g}.json"
                done = json.loads(kept.read_text()) if kept.exists() else {}
                for label, fold in folds.items():
                    if label not in done:
                        how = fold, asked.seconds, asked.out, classes
                        done[label] = measure(name, method, seed, *how)
                        kept.write_text(json.dumps(done))
                every[method][seed] = done
            rows.append(row(name, method, every[method]))
            if method != "own" and "own" in every:
                rows[-1]["own_less_this"] = against(every["own"], every[method])
            print(_line(rows[-1]), flush=True)
    (asked.out / f"real-{asked.seconds:g}.json").write_text(json.dumps(rows, indent=1))


def _line(row):
    seeds = " ".join(f"{s:.3f}" for s in row["seeds"])
    text = (
        f"{row['set']:8} {row['method']:9} {row['score']:.3f} "
        f"[{row['low']:.2f} {row['high']:.2f}]  seeds {seeds}  dots {row['dots']:.0%}  "
        f"{row['seconds']:.0f} s"
    )
    if "own_less_this" in row:
        text += "  own - this [{:.3f} {:.3f}]".format(*row["own_less_this"])
    return text


if __name__ == "__main__":
    sys.exit(main())
