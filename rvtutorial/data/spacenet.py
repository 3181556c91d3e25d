"""Fetch real SpaceNet 2 tiles of Las Vegas from their public bucket (no account, no signature).

The bucket is listed first, so that the choice of scenes is made by a seed from what is
there, and written down before the first byte is fetched. Each file comes under a temporary
name, is compared with the size that the list promised, is opened, and only then gets its
name: a broken connection costs one file, and calling again goes on.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rvtutorial.core.records import write_json
from rvtutorial.data.synthetic import IMAGE_NAME, LABEL_NAME, check_numbers

BUCKET = "spacenet-dataset"
PREFIX = "spacenet/SN2_buildings/train/AOI_2_Vegas/"
KEYS = {  # our name of a file: its key in the bucket
    IMAGE_NAME: PREFIX + "PS-RGB/SN2_buildings_train_AOI_2_Vegas_PS-RGB_img{id}.tif",
    LABEL_NAME: PREFIX + "geojson_buildings/SN2_buildings_train_AOI_2_Vegas_geojson_buildings_img{id}.geojson",
}  # fmt: skip


@dataclass(frozen=True)
class _Fetched:
    "What `fetch_spacenet` did."

    folder: Path
    asked: dict  # {"train": 1000, ...}
    got: dict  # {"train": 1000, ...}
    found: int  # Complete pairs in the bucket
    new_files: int  # Downloaded by this call
    new_bytes: int

    @property
    def complete(self) -> bool:
        "Whether as many scenes are there as were asked for."
        return self.got == self.asked

    def __repr__(self):
        parts = [f"{self.got[s]} of {n} {s}" for s, n in self.asked.items()]
        text = f"{', '.join(parts)} scenes in {self.folder} ({self.new_files} files, {self.new_bytes / 1e6:.1f} MB new)"
        if self.complete:
            return text
        return f"FEWER THAN ASKED: {text}; the bucket holds {self.found} complete pairs"


def _client(endpoint_url, retries):
    "An S3 client that signs nothing and tries again."
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    config = Config(
        signature_version=UNSIGNED, connect_timeout=10, read_timeout=60,
        retries={"max_attempts": retries, "mode": "standard"},
        s3={"addressing_style": "path"} if endpoint_url else None,
        request_checksum_calculation="when_required",
    )  # fmt: skip
    where = dict(region_name="us-east-1", endpoint_url=endpoint_url)
    return boto3.client("s3", config=config, **where)


def _listing(client, bucket, template):
    "{id: (key, bytes)} of all keys that fit a template."
    before, after = template.split("{id}")
    found, pages = {}, client.get_paginator("list_objects_v2")
    for page in pages.paginate(Bucket=bucket, Prefix=before):
        for item in page.get("Contents", []):
            middle = item["Key"][len(before) : len(item["Key"]) - len(after)]
            if item["Key"].endswith(after) and middle.isdigit():
                found[int(middle)] = (item["Key"], item["Size"])
    return found


def _choose(ids, asked, seed):
    "Ids of each split, drawn by the seed; training gets what validation and test leave."
    ids = np.random.default_rng(seed).permutation(sorted(ids)).tolist()
    need = asked["val"] + asked["test"]
    if len(ids) <= need:
        raise ValueError(
            f"the bucket holds {len(ids)} complete pairs, but validation and test alone "
            f"ask for {need}; ask for fewer"
        )
    val, test = ids[: asked["val"]], ids[asked["val"] : need]
    train = ids[need:][: asked["train"]]
    return {"train": sorted(train), "val": sorted(val), "test": sorted(test)}


def _opens(path):
    "Raise ValueError when a downloaded file is no whole image or no GeoJSON."
    import rasterio

    try:
        if path.suffix == ".geojson":
            if json.loads(path.read_text()).get("type") != "FeatureCollection":
                raise ValueError("no FeatureCollection")
        else:
            with rasterio.open(path) as f:
                f.read()
    except (ValueError, rasterio.errors.RasterioError) as err:
        raise ValueError(f"does not open: {err}") from err


def _download(client, bucket, key, size, path, retries):
    "Fetch one file unless it is there; the number of bytes fetched."
    if path.is_file() and path.stat().st_size == size:
        return 0
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        for attempt in range(retries):
            try:
                client.download_file(bucket, key, str(part))
                if part.stat().st_size != size:
                    raise ValueError(
                        f"{part.stat().st_size} bytes came, {size} were promised"
                    )
                _opens(part)
                part.replace(path)
                return size
            except ValueError:
                if attempt + 1 == retries:
                    raise
                time.sleep(min(2.0**attempt / 4, 4))
    finally:
        part.unlink(missing_ok=True)


def _fetch_plan(client, bucket, folder, asked, seed):
    "What to fetch: [(key, bytes, path)], the choice as found or made, pairs found."
    lists = {name: _listing(client, bucket, key) for name, key in KEYS.items()}
    pairs = set.intersection(*(set(found) for found in lists.values()))
    record = folder / "spacenet.json"
    wanted = {"asked": asked, "seed": seed, "bucket": bucket}
    if record.is_file():
        known = json.loads(record.read_text())
        if {k: known.get(k) for k in wanted} != wanted:
            raise FileExistsError(
                f"{folder} was begun with { {k: known.get(k) for k in wanted} }, now {wanted} is "
                "asked; ask for the same again to go on, or name another folder"
            )
        ids = known["ids"]
    else:
        ids = _choose(pairs, asked, seed)
        write_json(record, {**wanted, "ids": ids})
    files = [
        (*lists[name][i], folder / split / name.format(id=i))
        for split, numbers in ids.items() for i in numbers for name in KEYS if i in lists[name]
    ]  # fmt: skip
    return files, ids, len(pairs)


def _fetch_all(client, bucket, files, retries, workers, progress, patience=20):
    "Download several at a time; bytes by file, and what failed."
    from concurrent.futures import ThreadPoolExecutor, as_completed

    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from tqdm import tqdm

    done, failed = [], []
    total = sum(size for _, size, _ in files)
    style = dict(unit="B", unit_scale=True, desc="fetching", disable=not progress)
    with tqdm(total=total, **style) as bar, ThreadPoolExecutor(workers) as pool:
        jobs = {pool.submit(_download, client, bucket, *f, retries): f for f in files}
        try:
            for job in as_completed(jobs):
                key, size, _ = jobs[job]
                try:
                    done.append(job.result())
                except (Boto3Error, BotoCoreError, ClientError, ValueError) as err:
                    failed.append(f"{key}: {err}")
                bar.update(size)
                if len(failed) >= patience:  # the network is gone
                    break
        finally:
            pool.shutdown(cancel_futures=True)
    return done, failed


def fetch_spacenet(
    folder: Path,  # Where train/, val/ and test/ shall stand
    n_train: int = 1000,  # Scenes for training
    n_val: int = 50,  # Scenes for validation
    n_test: int = 10,  # Scenes for the final test
    seed: int = 0,  # Which scenes are drawn, and for which split
    endpoint_url: str | None = None,  # Another S3 server; None: Amazon's
    bucket: str = BUCKET,  # Name of the bucket
    retries: int = 5,  # Attempts for each file
    workers: int = 8,  # Files at a time
    progress: bool = True,  # Show a bar
) -> _Fetched:  # What is there now; it says so when that is less than asked
    """Fetch real SpaceNet 2 tiles of Las Vegas (about 2.6 MB each) under the course's names.

    Call again to go on after an interruption: whole files stay, others come anew. Raises
    ConnectionError without a network, RuntimeError for a refusal or when files failed.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    asked = {"train": n_train, "val": n_val, "test": n_test}
    check_numbers(dict(n_train=n_train, n_val=n_val, n_test=n_test, size=64, seed=seed))
    folder, client = Path(folder), _client(endpoint_url, retries)
    for left in folder.glob("*/.*.part.*"):
        if time.time() - left.stat().st_mtime > 3600:
            left.unlink()  # of a call that was killed
    for split in (s for s, n in asked.items() if n):
        (folder / split).mkdir(parents=True, exist_ok=True)
    try:
        files, ids, found = _fetch_plan(client, bucket, folder, asked, seed)
    except (BotoCoreError, ClientError) as err:
        where = f"bucket {bucket!r} at {endpoint_url or 'Amazon S3'}"
        if isinstance(err, ClientError):
            raise RuntimeError(
                f"{where} refused: {err}; look at bucket and endpoint_url"
            ) from err
        raise ConnectionError(
            f"cannot reach {where} ({type(err).__name__}). Is there a network here? "
            "Compute nodes often have none: fetch on a login or transfer node. The sample "
            "scenes need no network."
        ) from err
    done, failed = _fetch_all(client, bucket, files, retries, workers, progress)
    if failed:
        shown, here = "\n  ".join(failed[:5]), sum(f[2].is_file() for f in files)
        raise RuntimeError(
            f"{len(failed)} of {len(files)} files did not come, {here} are in place; "
            f"call again to go on. The first:\n  {shown}"
        )
    got = {s: len(n) for s, n in ids.items()}
    return _Fetched(folder, asked, got, found, sum(map(bool, done)), sum(done))
