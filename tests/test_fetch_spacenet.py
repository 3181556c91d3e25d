"""Fetching SpaceNet tiles, tried against a local S3 server."""

import json
import socket

import numpy as np
import pytest
import rasterio

from rvtutorial.data import spacenet
from rvtutorial.scenes import (
    check_scenes,
    fetch_spacenet,
    find_splits,
    make_sample_scenes,
)

boto3 = pytest.importorskip("boto3")
server = pytest.importorskip("moto.server")
KEYS = {
    "tif": "spacenet/SN2_buildings/train/AOI_2_Vegas/PS-RGB/SN2_buildings_train_AOI_2_Vegas_PS-RGB_img{}.tif",
    "geojson": "spacenet/SN2_buildings/train/AOI_2_Vegas/geojson_buildings/SN2_buildings_train_AOI_2_Vegas_geojson_buildings_img{}.geojson",
}


@pytest.fixture(scope="module")
def endpoint():
    "Address of an S3 server on this machine."
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
        running.start()
        host, port = running.get_host_and_port()
        yield f"http://{host}:{port}"
        running.stop()


@pytest.fixture(scope="module")
def s3(endpoint, tmp_path_factory):
    "A client, after twelve pairs, one lonely image and some noise were put there."
    folder = make_sample_scenes(tmp_path_factory.mktemp("s") / "d", 12, 0, 0, size=64)
    client = boto3.client("s3", region_name="us-east-1", endpoint_url=endpoint)
    client.create_bucket(Bucket=spacenet.BUCKET, ACL="public-read")

    def put(key, body):
        client.put_object(Bucket=spacenet.BUCKET, Key=key, Body=body, ACL="public-read")

    for i in range(1, 13):
        names = {"tif": spacenet.IMAGE_NAME, "geojson": spacenet.LABEL_NAME}
        for kind, key in KEYS.items():
            put(
                key.format(i * 10),
                (folder / "train" / names[kind].format(id=i)).read_bytes(),
            )
    put(KEYS["tif"].format(999), b"an image without labels")
    put(KEYS["tif"].format("x"), b"not a number")
    client.put = put
    return client


def names(folder):
    return sorted(
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()
    )


def test_fetches_under_the_courses_names(s3, endpoint, tmp_path):
    got = fetch_spacenet(
        tmp_path, 6, 2, 1, seed=3, endpoint_url=endpoint, progress=False
    )
    assert got.complete and got.found == 12 and got.new_files == 18
    splits = find_splits(tmp_path)
    assert {s: len(f) for s, f in splits.items()} == {"train": 6, "val": 2, "test": 1}
    assert set(check_scenes(splits)["bands"]) == {3}
    assert not [n for n in names(tmp_path) if ".part" in n]
    assert "6 of 6 train" in repr(got) and "FEWER" not in repr(got)


def test_seed_decides(s3, endpoint, tmp_path):
    def ids(seed, name):
        fetch_spacenet(
            tmp_path / name, 3, 2, 1, seed=seed, endpoint_url=endpoint, progress=False
        )
        return json.loads((tmp_path / name / "spacenet.json").read_text())["ids"]

    assert ids(0, "a") == ids(0, "b") != ids(1, "c")


def test_fewer_than_asked_is_said(s3, endpoint, tmp_path):
    got = fetch_spacenet(tmp_path, 1000, 2, 1, endpoint_url=endpoint, progress=False)
    assert got.got == {"train": 9, "val": 2, "test": 1} and not got.complete
    assert "FEWER THAN ASKED: 9 of 1000 train" in repr(
        got
    ) and "12 complete pairs" in repr(got)
    with pytest.raises(ValueError, match="holds 12 complete pairs.*ask for 60"):
        fetch_spacenet(
            tmp_path / "x", 1000, 50, 10, endpoint_url=endpoint, progress=False
        )


def test_goes_on_after_an_interruption(s3, endpoint, tmp_path):
    fetch_spacenet(tmp_path, 4, 1, 1, endpoint_url=endpoint, progress=False)
    before = {n: (tmp_path / n).stat().st_mtime_ns for n in names(tmp_path)}
    images = [n for n in names(tmp_path) if n.endswith(".tif")]
    (tmp_path / images[0]).unlink()
    (tmp_path / images[1]).write_bytes((tmp_path / images[1]).read_bytes()[:100])
    got = fetch_spacenet(tmp_path, 4, 1, 1, endpoint_url=endpoint, progress=False)
    assert got.new_files == 2 and names(tmp_path) == sorted(before)
    after = {n: (tmp_path / n).stat().st_mtime_ns for n in names(tmp_path)}
    assert {n for n in before if before[n] != after[n]} == set(images[:2])
    with pytest.raises(FileExistsError, match="begun with"):
        fetch_spacenet(tmp_path, 5, 1, 1, endpoint_url=endpoint, progress=False)


@pytest.mark.parametrize("kind", ["tif", "geojson"])
def test_a_damaged_file_never_gets_its_name(s3, endpoint, tmp_path, kind):
    key = KEYS[kind].format(10)
    whole = s3.get_object(Bucket=spacenet.BUCKET, Key=key)["Body"].read()
    s3.put(key, whole[: len(whole) // 2])
    try:
        with pytest.raises(
            RuntimeError,
            match="1 of 24 files did not come, 23 are in place.*call again",
        ):
            fetch_spacenet(
                tmp_path, 10, 1, 1, endpoint_url=endpoint, progress=False, retries=2
            )
        assert len([n for n in names(tmp_path) if n != "spacenet.json"]) == 23
    finally:
        s3.put(key, whole)
    got = fetch_spacenet(tmp_path, 10, 1, 1, endpoint_url=endpoint, progress=False)
    assert got.complete and got.new_files == 1


def test_short_answers_are_tried_again(s3, endpoint, tmp_path, monkeypatch):
    real, count = spacenet._opens, []

    def flaky(path):
        count.append(path)
        if len(count) == 1:
            raise ValueError("does not open: a hiccup")
        real(path)

    monkeypatch.setattr(spacenet, "_opens", flaky)
    got = fetch_spacenet(
        tmp_path, 1, 1, 1, endpoint_url=endpoint, progress=False, workers=1
    )
    assert got.complete and len(count) == 7


def test_gives_up_when_nothing_comes(s3, endpoint, tmp_path, monkeypatch):
    from boto3.exceptions import RetriesExceededError

    tried = []

    def gone(*args):
        tried.append(1)
        raise RetriesExceededError("the network is gone")

    monkeypatch.setattr(spacenet, "_download", gone)
    with pytest.raises(
        RuntimeError, match="20 of 24 files did not come, 0 are in place"
    ):
        fetch_spacenet(
            tmp_path, 10, 1, 1, endpoint_url=endpoint, progress=False, workers=1
        )
    assert len(tried) >= 20


def test_disk_full_leaves_nothing_half(s3, endpoint, tmp_path, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spacenet, "_opens", full)
    with pytest.raises(OSError, match="No space left"):
        fetch_spacenet(tmp_path, 2, 1, 1, endpoint_url=endpoint, progress=False)
    assert names(tmp_path) == ["spacenet.json"]


def test_no_network(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(
        ConnectionError, match="cannot reach bucket.*sample scenes need no network"
    ):
        fetch_spacenet(
            tmp_path,
            1,
            1,
            1,
            endpoint_url=f"http://127.0.0.1:{port}",
            retries=1,
            progress=False,
        )
    assert not [n for n in names(tmp_path)]


def test_no_bucket(s3, endpoint, tmp_path):
    with pytest.raises(RuntimeError, match="'nothing-here' at .* refused"):
        fetch_spacenet(
            tmp_path,
            1,
            1,
            1,
            endpoint_url=endpoint,
            bucket="nothing-here",
            progress=False,
        )


def test_bad_numbers(tmp_path):
    with pytest.raises(ValueError, match="n_val must be a whole number from 0"):
        fetch_spacenet(tmp_path, 1, -1, 1)


def test_keys_are_those_of_raster_visions_example():
    assert spacenet.KEYS[spacenet.IMAGE_NAME] == KEYS["tif"].replace("{}", "{id}")
    assert spacenet.KEYS[spacenet.LABEL_NAME] == KEYS["geojson"].replace("{}", "{id}")
    assert spacenet.BUCKET == "spacenet-dataset"


def test_images_open(s3, endpoint, tmp_path):
    fetch_spacenet(tmp_path, 2, 1, 0, endpoint_url=endpoint, progress=False)
    for scene in find_splits(tmp_path)["train"]:
        with rasterio.open(scene.image) as f:
            assert f.read().dtype == np.uint16
