"""The small U-Net of the sample preset, trained by the engine and by torchgeo 0.8 in turns.

    python tests/bench/torchgeo_beside.py [--turns 3] [--train 24] [--val 8] [--epochs 8]
    python tests/bench/torchgeo_beside.py --quick     # tries the script; no numbers

Same scenes, network file, chips (number and size), batch size, loss, flips and quarter
turns, Adam, triangular schedule, bfloat16 and threads; each training is a process of its
own, and they take turns:

- `ours`: `engine.run(config, ["train"])` with the preset `sample`;
- `tuned`: torchgeo with what a careful user would change: workers that stay (--workers),
  flips by indexing, chips laid out as the network is, Adam in one kernel, neither metrics
  of each step nor logger, bar and checkpoints of Lightning (weights are saved once);
- `plain`: torchgeo as it comes: `GeoDataModule` with kornia's augmentations, its
  `SemanticSegmentationTask` with its metrics, Lightning's logger and checkpoints.

Both of torchgeo read images and labels with `RasterDataset`, join them by `&`, which
keeps the files open (`cache`; it offers nothing that holds pixels, but GDAL does), and
draw windows by `RandomGeoSampler`. They are given labels as rasters, made beforehand: to
rasterize polygons for each chip would cost them more. Our run rasterizes by itself.

What is timed, in seconds:

- `train`: from the first batch asked for to the last step and the weights saved, without
  the validation after each epoch; what each does at the end of an epoch is in it, such
  as the log, weights and checkpoint of ours. Scenes are read from disk within this time;
- `fit`: the same with the validation after each epoch, the same 9 chips of a scene;
- `whole`: all but imports and our configuration, with the making of data sets, network
  and, for ours, the bundle.

F1 is of building pixels of whole validation scenes, unlabelled pixels left out, counted
by the same function for the weights of all. `ratio` is the time of ours by that of
torchgeo, median of the turns; `bar` is what `train` of ours may take of `tuned`.

torchgeo gets a virtual environment of its own (--env, build/torchgeo by default, about
6.5 GB) with the versions of torch and torchvision that are here. The result is printed
and written to build/torchgeo_beside.json.
"""

import argparse
import contextlib
import functools
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
BAR = 0.63
METHODS = ("ours", "tuned", "plain")
TIMES = ("train", "fit", "whole")


# --- what all of them do


class Clock:
    "Seconds from the first batch asked for to the weights saved, and of validation in it."

    def __init__(self):
        self.made, self.validation = time.perf_counter(), 0.0
        self.began = self.ended = self.since = None

    def start(self):
        self.began = time.perf_counter()

    def pause(self):
        self.since = time.perf_counter()

    def go_on(self):
        self.validation += time.perf_counter() - self.since

    def stop(self):
        self.ended = time.perf_counter()

    def times(self) -> dict:
        fit = self.ended - self.began
        whole = time.perf_counter() - self.made
        return dict(train=fit - self.validation, fit=fit, whole=whole)


# --- in our environment


def prepare(plan):
    "Make scenes, label rasters for torchgeo, and everything that a training is told."
    import rasterio

    from rvtutorial.data.synthetic import make_sample_scenes
    from rvtutorial.engine.reading import build_scene
    from rvtutorial.models import unet

    folder = Path(plan["folder"])
    many = {f"n_{k}": plan[k] for k in ("train", "val")}
    plan["data"] = str(make_sample_scenes(folder / "data", **many, n_test=1))
    config = our_config(plan, folder / "draft")
    classes, data = config.dataset.class_config, config.backend.data
    scenes = {}
    splits = dict(
        train=config.dataset.train_scenes, val=config.dataset.validation_scenes
    )
    for split, found in splits.items():
        (folder / "labels" / split).mkdir(parents=True, exist_ok=True)
        scenes[split] = []
        for scene in found:
            uri = scene.raster_source.uris
            image = uri if isinstance(uri, str) else uri[0]
            built = build_scene(scene, classes, predictions=False)
            ids = built.label_source.get_label_arr(built.extent)
            label = folder / "labels" / split / f"{scene.id}.tif"
            with rasterio.open(image) as file:
                profile = file.profile | dict(count=1, dtype="uint8", nodata=None)
            with rasterio.open(label, "w", **profile) as file:
                file.write(ids.astype("uint8"), 1)
            scenes[split].append((str(image), str(label)))
    scaling = data.base_transform["transform"]
    assert scaling["max_pixel_value"] == 1.0
    solver, chips = config.backend.solver, data.sampling
    trained = [chips[s.id] for s in splits["train"]]
    return plan | dict(
        scenes=scenes,
        network=unet.__file__,
        arguments=config.backend.model.external_def.entrypoint_kwargs,
        mean=list(scaling["mean"]),
        std=list(scaling["std"]),
        size=data.img_sz,
        stride=chips[splits["val"][0].id].stride[0],
        chips=sum(s.max_windows for s in trained),
        batch=solver.batch_sz,
        lr=solver.lr,
        epochs=solver.num_epochs,
        ignored=solver.ignore_class_index % len(classes),
        target=classes.get_class_id("building"),
    )


def our_config(plan, root):
    "The preset `sample`; `--quick` has fewer chips."
    from rvtutorial.config import get_config

    less = dict(chip_sz=64, stride_length=60, max_windows=2) if plan["quick"] else {}
    more = dict(epochs=plan["epochs"], seed=plan["seed"], precision="bfloat16")
    return get_config("inprocess", root, "sample", plan["data"], **more, **less)


def ours(plan):
    "The stage `train` of the engine."
    from rvtutorial import engine
    from rvtutorial.engine.learner import FastLearner

    os.environ["RVTUTORIAL_SCRATCH"] = str(Path(plan["out"], "scratch"))
    config = our_config(plan, Path(plan["out"], "run"))
    clock, steps = Clock(), []
    train, validate, step = (
        getattr(FastLearner, n) for n in ("_train", "validate_epoch", "step")
    )

    def timed_train(self, *args):
        clock.start()
        train(self, *args)
        clock.stop()

    def timed_validate(self, dl):
        clock.pause()
        try:
            return validate(self, dl)
        finally:
            clock.go_on()

    def counted(self, batch, *args):
        steps.append(len(batch[0]))
        return step(self, batch, *args)

    FastLearner._train, FastLearner.validate_epoch = timed_train, timed_validate
    FastLearner.step = counted
    root = engine.run(config, ["train"], progress=False)
    return clock.times() | dict(
        steps=len(steps), chips=sum(steps), weights=str(root / "train/last-model.pth")
    )


def judge(plan):
    "F1 of the target on whole validation scenes, for the weights of each training."
    import numpy as np
    import rasterio
    import torch

    mean, std = (torch.tensor(plan[k]).reshape(1, -1, 1, 1) for k in ("mean", "std"))
    counts = {name: np.zeros(3, int) for name in plan["weights"]}
    networks = {}
    for name, path in plan["weights"].items():
        networks[name] = network_of(plan).eval()
        networks[name].load_state_dict(torch.load(path, weights_only=True))
    for image, label in plan["scenes"]["val"]:
        with rasterio.open(image) as file:
            x = torch.from_numpy(file.read().astype("float32"))[None]
        with rasterio.open(label) as file:
            truth = file.read(1)
        counted, there = truth != plan["ignored"], truth == plan["target"]
        for name, network in networks.items():
            with torch.inference_mode():
                said = network((x - mean) / std).argmax(1)[0].numpy() == plan["target"]
            hits = (there & said & counted).sum()
            wrong = (~there & said & counted).sum(), (there & ~said & counted).sum()
            counts[name] += np.array([hits, *wrong])
    return {n: f1(*(int(v) for v in found)) for n, found in counts.items()}


def f1(hits: int, false: int, missed: int) -> float:
    "Of pixels; 0 where there are none."
    return 2 * hits / max(1, 2 * hits + false + missed)


def network_of(plan):
    "The network, from its file, which imports torch only."
    spec = importlib.util.spec_from_file_location("network", plan["network"])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.unet(**plan["arguments"])


# --- in the environment of torchgeo


def datasets_of(plan, split, transforms=None):
    "Images and labels of a split, as torchgeo's users join them."
    from torchgeo.datasets import RasterDataset

    class Labels(RasterDataset):
        is_image = False

    images, labels = (list(paths) for paths in zip(*plan["scenes"][split], strict=True))
    both = RasterDataset(images) & Labels(labels)
    both.transforms = transforms
    return both


def task_of(plan):
    "torchgeo's task with our network, optimizer and schedule."
    import torch
    from torchgeo.trainers import SemanticSegmentationTask

    class Task(SemanticSegmentationTask):
        def configure_models(self):
            self.model = network_of(plan)

        def configure_optimizers(self):
            fused = {"fused": True} if plan["method"] == "tuned" else {}
            opt = torch.optim.Adam(self.parameters(), lr=plan["lr"], **fused)
            if plan["epochs"] < 2:
                return opt
            up, down = triangle(plan["epochs"], plan["chips"], plan["batch"])
            schedule = torch.optim.lr_scheduler.CyclicLR(
                opt, base_lr=plan["lr"] / 10, max_lr=plan["lr"],
                step_size_up=up, step_size_down=down, cycle_momentum=False,
            )  # fmt: skip
            every = {"scheduler": schedule, "interval": "step"}
            return {"optimizer": opt, "lr_scheduler": every}

    class Bare(Task):
        "Chips laid out as the network is; the loss alone in a step."

        def forward(self, x):
            return super().forward(x.contiguous(memory_format=torch.channels_last))

        def training_step(self, batch, batch_idx, dataloader_idx=0):
            return self.criterion(self(batch["image"]), batch["mask"])

    kind = Bare if plan["method"] == "tuned" else Task
    classes = plan["arguments"]["num_classes"]
    return kind(num_classes=classes, ignore_index=plan["ignored"], lr=plan["lr"])


def triangle(epochs: int, chips: int, batch: int) -> tuple[int, int]:
    "Steps in which the rate rises and falls, as Raster Vision counts them."
    each = max(1, chips // batch)
    up = epochs // 2 * each
    return up, epochs * each - up


def data_of(plan):
    "A data module: scenes, windows, augmentation."
    import kornia.augmentation as K
    import torch
    from torch.utils.data import DataLoader
    from torchgeo.datamodules import GeoDataModule
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import GridGeoSampler, RandomGeoSampler

    mean, std = torch.tensor(plan["mean"]), torch.tensor(plan["std"])
    workers = plan["workers"] if plan["method"] == "tuned" else 0  # as it comes

    class Scenes(GeoDataModule):
        "As torchgeo's own data modules are written."

        def __init__(self):
            super().__init__(
                RasterDataset, plan["batch"], plan["size"], num_workers=workers
            )
            normal = K.Normalize(mean, std)
            moves = K.RandomRotation90((0, 3), p=1.0), K.RandomHorizontalFlip(p=0.5)
            moves += (K.RandomVerticalFlip(p=0.5),)
            how = dict(data_keys=None, keepdim=True)
            self.train_aug = K.AugmentationSequential(normal, *moves, **how)
            self.aug = K.AugmentationSequential(normal, **how)

        def setup(self, stage):
            size = plan["size"]
            self.train_dataset = datasets_of(plan, "train")
            self.train_sampler = RandomGeoSampler(
                self.train_dataset, size, plan["chips"]
            )
            self.val_dataset = datasets_of(plan, "val")
            stride = (
                plan["stride"] + 1e-6
            )  # else rounding gives one more row and column
            self.val_sampler = GridGeoSampler(self.val_dataset, size, stride)

        def _dataloader_factory(self, split):
            made = super()._dataloader_factory(split)
            if plan["chips"] % plan["batch"] < 2 or split != "train":
                return made
            how = dict(sampler=made.sampler, num_workers=workers)
            how |= dict(collate_fn=stack_samples)  # as many steps as ours
            how |= dict(persistent_workers=workers > 0)
            return DataLoader(made.dataset, plan["batch"], **how)

    class Bare(Scenes):
        "Normalised and turned chip by chip, where the chips are made."

        def setup(self, stage):
            super().setup(stage)
            self.train_dataset.transforms = functools.partial(finish, turn=True)
            self.val_dataset.transforms = finish

        def transfer_batch_to_device(self, batch, device, dataloader_idx):
            return batch

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch

    shift, scale = (v.reshape(-1, 1, 1) for v in (mean, std))

    def finish(sample, turn=False):
        image, mask = (sample["image"] - shift) / scale, sample["mask"]
        if turn:
            k, *flips = (
                torch.randint(4, (1,)).tolist() + torch.randint(2, (2,)).tolist()
            )
            axes = [axis for axis, yes in zip((-2, -1), flips, strict=True) if yes]
            image, mask = (
                torch.rot90(v, k, (-2, -1)).flip(axes) for v in (image, mask)
            )
        return {"image": image, "mask": mask}

    return Bare() if plan["method"] == "tuned" else Scenes()


def by_torchgeo(plan):
    "The same training by torchgeo and Lightning."
    import lightning.pytorch as pl
    import torch
    import torchgeo.datamodules
    import torchgeo.trainers
    import torchvision

    clock = Clock()
    pl.seed_everything(plan["seed"], verbose=False)
    torch.set_num_threads(plan["threads"])
    weights, steps = Path(plan["out"], "last-model.pth"), []

    class Watch(pl.Callback):
        def on_train_start(self, trainer, task):
            clock.start()

        def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
            steps.append(len(batch["image"]))

        def on_validation_start(self, trainer, task):
            if not trainer.sanity_checking:
                clock.pause()

        def on_validation_end(self, trainer, task):
            if not trainer.sanity_checking:
                clock.go_on()

        def on_train_end(self, trainer, task):
            torch.save(task.model.state_dict(), weights)
            clock.stop()

    less = {}
    if plan["method"] == "tuned":
        less = dict(logger=False, enable_checkpointing=False, num_sanity_val_steps=0)
        less |= dict(enable_progress_bar=False, enable_model_summary=False)
    trainer = pl.Trainer(
        accelerator="cpu", precision="bf16-mixed", max_epochs=plan["epochs"],
        default_root_dir=plan["out"], callbacks=[Watch()], **less,
    )  # fmt: skip
    trainer.fit(task_of(plan), datamodule=data_of(plan))
    versions = dict(torch=torch.__version__, torchvision=torchvision.__version__)
    return clock.times() | dict(
        steps=len(steps), chips=sum(steps), weights=str(weights),
        versions=versions | dict(lightning=pl.__version__, torchgeo=torchgeo.__version__),
    )  # fmt: skip


def environment(folder: Path) -> Path:  # Its Python
    "Make the environment of torchgeo, once; ours stays as it is."
    from importlib.metadata import version

    python, ready = folder / "bin/python", folder / ".ready"
    if not ready.exists():
        print(f"installing torchgeo into {folder}: a few minutes", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        same = [
            f"{n}=={version(n).partition('+')[0]}" for n in ("torch", "torchvision")
        ]
        install = [python, "-m", "pip", "install", "--quiet", "torchgeo==0.8.*", *same]
        install.append("requests")  # which it imports and does not ask for
        subprocess.run(install, check=True)
        ready.touch()
    return python


# --- all of them in turns


JOBS = {f.__name__: f for f in (prepare, ours, judge, by_torchgeo)}


def measured(name, plan, python=sys.executable):
    "Run a job in a process of its own; what it returns."
    out = Path(plan["out"])
    out.mkdir(parents=True, exist_ok=True)
    (out / "plan.json").write_text(json.dumps(plan))
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    env = os.environ | {name: str(plan["threads"]) for name in threads}
    env["PYTHONPATH"] = str(ROOT)
    if name == "by_torchgeo":  # nothing of ours but the file of the network
        del env["PYTHONPATH"]
    cmd = [str(python), str(HERE), "--job", name, str(out)]
    with open(out / "log", "w") as log:
        done = subprocess.run(cmd, stdout=log, stderr=log, env=env, cwd=out)
    if done.returncode:
        last = (out / "log").read_text()[-3000:]
        raise RuntimeError(f"{name} ended with {done.returncode}:\n{last}")
    return json.loads((out / "result.json").read_text())


def take_turns(plan, python, methods, turns):
    "Rows of all trainings, in the order in which they ran."
    rows = []
    for turn in range(turns):
        for method in methods:
            out = str(Path(plan["folder"], f"{method}{turn}"))
            given = plan | dict(method=method, out=out)
            job = (
                ("ours", sys.executable)
                if method == "ours"
                else ("by_torchgeo", python)
            )
            found = measured(job[0], given, job[1])
            rows.append(dict(method=method, turn=turn, **found))
            print(f"  {method}: {found['train']:.2f} s", flush=True)
    unequal = {(row["steps"], row["chips"]) for row in rows}
    if len(unequal) > 1:
        raise RuntimeError(f"trainings differ in (steps, chips): {sorted(unequal)}")
    return rows


def summary(rows) -> list[dict]:
    "One row for each method: medians, and the ratio of ours to it, turn by turn."
    from statistics import median

    found, of = [], {m: [r for r in rows if r["method"] == m] for m in METHODS}
    for method, some in of.items():
        if not some:
            continue
        row = {"method": method}
        row |= {f"{t} s": median(r[t] for r in some) for t in TIMES}
        row |= {"F1": median(r["F1"] for r in some), "steps": some[0]["steps"]}
        if method != "ours":
            ratios = {
                t: [a[t] / b[t] for a, b in zip(of["ours"], some, strict=True)]
                for t in TIMES
            }
            row |= {f"ratio {t}": median(values) for t, values in ratios.items()}
            row |= {"min": min(ratios["train"]), "max": max(ratios["train"])}
        found.append(row | ({"bar": BAR} if method == "tuned" else {}))
    return found


def arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--train", type=int, default=24, help="training scenes")
    parser.add_argument("--val", type=int, default=8, help="validation scenes")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=cores)
    parser.add_argument("--workers", type=int, default=1, help="of `tuned`")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS[1:], default=METHODS[1:]
    )
    parser.add_argument("--env", type=Path, default=ROOT / "build/torchgeo")
    parser.add_argument("--keep", type=Path, help="a folder for runs; else deleted")
    parser.add_argument(
        "--json", type=Path, default=ROOT / "build/torchgeo_beside.json"
    )
    parser.add_argument("--quick", action="store_true", help="tiny: tries the script")
    return parser.parse_args(argv)


def main(argv=None):
    import pandas as pd
    from bench import machine

    asked = arguments(argv)
    names = "train val epochs seed threads workers quick".split()
    plan = {name: getattr(asked, name) for name in names}
    if asked.quick:
        plan |= dict(train=2, val=1, epochs=1)
    python = environment(asked.env.absolute())
    with contextlib.ExitStack() as stack:
        folder = asked.keep or stack.enter_context(tempfile.TemporaryDirectory())
        plan["folder"] = str(Path(folder).absolute())
        plan = measured("prepare", plan | dict(out=f"{plan['folder']}/prepare"))
        methods = ["ours", *asked.methods]
        rows = take_turns(plan, python, methods, 1 if asked.quick else asked.turns)
        weights = {str(i): row.pop("weights") for i, row in enumerate(rows)}
        given = plan | dict(weights=weights, out=f"{plan['folder']}/judge")
        for i, score in measured("judge", given).items():
            rows[int(i)]["F1"] = score
    table = summary(rows)
    style = dict(index=False, float_format=lambda v: f"{v:.3g}", na_rep="")
    print(pd.DataFrame(table).to_string(**style))
    print("ratio: ours by torchgeo, less is better; min and max are those of train")
    told = {k: plan[k] for k in (*names, "chips", "size", "stride", "batch", "lr")}
    text = dict(machine=machine(), plan=told, table=table, turns=rows)
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps(text, indent=1) + "\n")
    return table


def work(name, out):
    "One process."
    plan = json.loads(Path(out, "plan.json").read_text())
    Path(out, "result.json").write_text(json.dumps(JOBS[name](plan)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        work(*sys.argv[2:])
    else:
        main()
