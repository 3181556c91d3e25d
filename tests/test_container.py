"""The exec command, binds and images: exact text, and refusals that name the cause."""

import ast
import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rvtutorial import container
from rvtutorial.container import (
    Bind,
    check_image,
    exec_command,
)
from rvtutorial.hpc import image as images


def test_whole_command():
    got = exec_command(
        "/i/rv.sif",
        ["rastervision", "run", "-a", "lr", "1e-3"],
        ["/d/in:/opt/data/input:ro", Bind("/runs/a b")],
        workdir="/s",
        home="/s/home",
        pwd="/runs/a b",
        env={"A": "$(touch x)"},
    )
    assert got == [
        "apptainer", "exec", "--no-eval", "--cleanenv", "--contain",
        "--workdir", "/s", "--home", "/s/home", "--pwd", "/runs/a b",
        "--bind", "/d/in:/opt/data/input:ro",
        "--bind", "/runs/a b:/runs/a b",
        "--env", "A=$(touch x)", "--nv", "/i/rv.sif",
        "rastervision", "run", "-a", "lr", "1e-3",
    ]  # fmt: skip


def test_flags_can_be_left_out():
    got = exec_command("rv.sif", ["true"], nv=False, contain=False, cleanenv=False)
    assert got == ["apptainer", "exec", "--no-eval", "rv.sif", "true"]


def test_nothing_of_the_command_is_read_as_a_flag_of_ours():
    got = exec_command("-x.sif", ["echo", "--nv", "*", ""], nv=False)
    assert got[-5:] == ["./-x.sif", "echo", "--nv", "*", ""]


@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
    )
)
def test_arguments_arrive_whole(words):
    command = ["echo", *words]
    got = exec_command("rv.sif", command)
    assert got[-len(command) :] == command
    if any("\\\n" in word for word in words):
        return  # the next line would take it for the end of a line
    assert shlex.split(container.readable(got).replace("\\\n    ", "")) == got


def test_readable_puts_image_and_program_on_lines_of_their_own():
    text = container.readable(exec_command("/i/rv.sif", ["a", "--b"], pwd="/p q"))
    assert [line.strip(" \\") for line in text.splitlines()] == [
        "apptainer exec", "--no-eval", "--cleanenv", "--contain", "--pwd '/p q'",
        "--nv", "/i/rv.sif", "a --b",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(command="rastervision run"), "must be a list of arguments, got 'rast"),
        (dict(command=[]), "must be a list"),
        (dict(image=""), "image '' is empty"),
        (dict(image="a\nb"), "control character"),
        (dict(workdir="scratch"), "--workdir must be an absolute path"),
        (dict(home="/a:b"), "--home must be .* without colon or comma, got '/a:b'"),
        (dict(pwd="/a,b"), "--pwd must be"),
        (dict(env={"A": "1,2"}), "value of A holds a comma"),
        (dict(env={"A-B": "1"}), "'A-B' cannot be the name"),
        (dict(env={"HOME": "/x"}), "use home="),
    ],
)
def test_what_would_go_wrong_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        exec_command(**{"image": "rv.sif", "command": ["true"], **arguments})


@pytest.mark.parametrize(
    ("text", "bind"),
    [
        ("/a", Bind("/a", "/a")),
        ("/a:/b", Bind("/a", "/b")),
        ("/a:/b:rw", Bind("/a", "/b")),
        ("/a:/b:ro", Bind("/a", "/b", True)),
    ],
)
def test_binds_are_read(text, bind):
    assert Bind.of(text) == bind
    assert Bind.of(":".join(bind.args()[1].split(":"))) == bind


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("/a:/b:/c:ro", "not source, source:target or source:target:ro"),
        ("/a:/b:readonly", "not source, source:target or source:target:ro"),
        ("/a:b", "absolute path below /, got 'b'"),
        ("/a:/", "absolute path below /, got '/'"),
        ("/a:/b/../c", "absolute path below /"),
        (":/b", "source '' is empty"),
        ("", "source '' is empty"),
        ("/a\n:/b", "control character"),
    ],
)
def test_bad_binds_are_refused(text, words):
    with pytest.raises(ValueError, match=words):
        Bind.of(text)


def test_relative_and_home_sources_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/h")
    assert Bind("in", "/x").source == str(tmp_path / "in")
    assert Bind("~/in", "/x").source == "/h/in"


@pytest.mark.parametrize("odd", ["a,b", "a:b", 'a"b', "a\\b", 'a", "b'])
def test_odd_paths_take_the_long_form(odd):
    flag, value = Bind(f"/d/{odd}", f"/x/{odd}", True).args()
    assert flag == "--mount"
    assert next(csv.reader([value])) == [
        "type=bind", f"source=/d/{odd}", f"destination=/x/{odd}", "ro",
    ]  # fmt: skip


def test_missing_sources_are_named(tmp_path):
    (tmp_path / "in").mkdir()
    good = f"{tmp_path}/in:/x"
    assert (
        Bind.all_of(good) == Bind.all_of([good, good]) == [Bind(tmp_path / "in", "/x")]
    )
    with pytest.raises(FileNotFoundError, match=f"nothing at {tmp_path}/inn.* to /x"):
        Bind.all_of([f"{tmp_path}/inn:/x"])
    with pytest.raises(ValueError, match="both bound to /x"):
        Bind.all_of([good, f"{tmp_path}:/x"])
    assert Bind.all_of(["/nowhere:/x"], exist=False) == [Bind("/nowhere", "/x")]


def sif(offset=4096, size=100, magic=b"SIF_MAGIC"):
    "The header of an image, laid out as the format's own description says."
    numbers = [0, 0, 48, 48, 128, 3968, offset, size]
    head = b"#!/usr/bin/env run-singularity\n".ljust(32, b"\0") + magic.ljust(10, b"\0")
    head += b"01\0" + b"02\0" + bytes(16)
    return head + b"".join(n.to_bytes(8, "little") for n in numbers)


def test_images_are_told_from_other_files(tmp_path):
    image = tmp_path / "rv.sif"
    with pytest.raises(FileNotFoundError, match=f"no image at {image}; build it once"):
        check_image(image)
    image.write_bytes(sif().ljust(4196, b"x"))
    assert check_image(image) == image
    assert check_image(str(image)) == image
    image.write_bytes(sif().ljust(4195, b"x"))
    with pytest.raises(ValueError, match="was cut short: 4195 bytes of 4196"):
        check_image(image)
    for content in (
        b"",
        b"version https://git-lfs",
        sif(magic=b"SIF_MAGIX").ljust(9999),
    ):
        image.write_bytes(content)
        with pytest.raises(ValueError, match="is not an Apptainer image"):
            check_image(image)


def test_sandboxes_are_folders_with_a_mark(tmp_path):
    with pytest.raises(ValueError, match="folder but not a sandbox"):
        check_image(tmp_path)
    (tmp_path / ".singularity.d").mkdir()
    assert check_image(tmp_path) == tmp_path


def test_in_container():
    assert not images.in_container({})
    assert not images.in_container({"APPTAINER_CONTAINER": ""})
    assert images.in_container({"APPTAINER_CONTAINER": "/i/rv.sif"})
    assert images.in_container({"SINGULARITY_CONTAINER": "/i/rv.sif"})


def test_versions_come_from_inside(tmp_path, monkeypatch):
    image = tmp_path / "rv.sif"
    image.write_bytes(sif().ljust(4196, b"x"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="apptainer is not on the PATH"):
        images._image_versions(image)
    fake = tmp_path / "apptainer"
    fake.write_text(
        '#!/bin/bash\n[[ "$*" == *rv.sif\\ cat\\ /opt/* ]] && echo "NumPy==2.4.0"\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert images._image_versions(image) == {"numpy": "2.4.0"}
    fake.write_text("#!/bin/bash\necho broken >&2; exit 255\n")
    with pytest.raises(RuntimeError, match="broken"):
        images._image_versions(image)


def told(monkeypatch, **versions):
    "What check_versions says of an image that differs in some versions."
    inside = images.own_versions() | {"numpy": "9.9.9", "pip": "1"} | versions
    monkeypatch.setattr(images, "_image_versions", lambda image: inside)
    with pytest.raises(ValueError) as error:
        container.check_versions("/i/rv.sif")
    return str(error.value)


def test_an_image_with_other_versions_is_told(monkeypatch):
    text = told(monkeypatch, python="3.99.0")
    assert text.startswith("/i/rv.sif does not fit this Python: numpy is 9.9.9 in the")
    assert "python is" not in text and "pip" not in text and "build.sh" in text
    here = images.own_versions()
    assert f"and {here['numpy']} here" in text
    text = told(monkeypatch, **{"rvtutorial-code": "0" * 12})
    assert f"rvtutorial-code is {'0' * 12} in the image" in text
    cuda = here | {"torch": here["torch"].split("+")[0] + "+cu130"}
    monkeypatch.setattr(images, "_image_versions", lambda image: cuda)
    assert container.check_versions("/i/rv.sif") == cuda
    monkeypatch.setattr(images, "_image_versions", lambda image: {})
    with pytest.raises(ValueError, match="torch is missing in the image"):
        container.check_versions("/i/rv.sif")


def test_own_versions_leave_out_what_is_not_installed(monkeypatch):
    monkeypatch.setattr(images, "DECISIVE", ("numpy", "no-such-package"))
    names = ["python", "rvtutorial-code", "rvtutorial", "numpy"]
    assert list(images.own_versions()) == names


def test_import_needs_the_standard_library_only():
    code = "import sys, rvtutorial.container; print([m for m in sys.modules if m in ('torch', 'rastervision', 'numpy')])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# --- the definition


@pytest.fixture(scope="module")
def definition():
    return images.read_definition(images.definition_file())


def test_definition_has_its_sections(definition):
    wanted = "header arguments setup files post environment runscript test labels help"
    assert set(definition) == set(wanted.split())
    assert all(text.strip() for text in definition.values())


def test_every_argument_has_a_default(definition):
    text = images.definition_file().read_text()
    used = set(re.findall(r"\{\{ *(\w+) *\}\}", text))
    given = dict(
        line.strip().split("=", 1) for line in definition["arguments"].splitlines()
    )
    assert used == set(given)
    assert all(given.values())  # Apptainer skips an argument whose value is empty
    assert "{{" not in text.replace("{{ ", "")  # Apptainer knows no other spelling here


def test_definition_copies_what_it_installs(definition):
    root = images.definition_file().parent.parent
    targets = {}
    for line in definition["files"].splitlines():
        source, target = line.split()
        assert not os.path.isabs(source) and (root / source).exists(), source
        targets[source] = target
    text = (root / "setup.py").read_text().partition("TRAVELS = ")[2]
    folders = ["rvtutorial", *ast.literal_eval(text[: text.index("}") + 1]).values()]
    assert "slurm/sites" in folders
    for folder in map(Path, folders):
        above = {str(folder), *map(str, folder.parents)}
        assert above & set(targets), f"%files does not copy {folder}"
    for source, target in targets.items():
        assert target == f"/opt/rvtutorial/src/{source}"
    assert (
        "-c /opt/rvtutorial/src/constraints.txt /opt/rvtutorial/src"
        in definition["post"]
    )
    assert images.FREEZE == "/opt/rvtutorial/freeze.txt"
    assert "cd /opt/rvtutorial\n" in definition["post"]
    assert "freeze --exclude rvtutorial > freeze.txt" in definition["post"]


def test_definition_names_no_host(definition):
    for name, text in definition.items():
        outside = re.findall(
            r"(?<![\w.}$\"*^)])/(?!opt|usr|bin|dev/null|var/lib/apt|root/\.cache|tmp)\w+",
            text,
        )
        assert not outside, (name, outside)


@pytest.mark.parametrize(
    "section", ["setup", "post", "environment", "runscript", "test"]
)
def test_sections_are_shell(definition, section):
    subprocess.run(["sh", "-n"], input=definition[section], text=True, check=True)


def test_environment_keeps_home_out(definition):
    for name in (
        "PATH",
        "TORCH_HOME",
        "PYTHONNOUSERSITE",
        "MPLCONFIGDIR",
        "IPYTHONDIR",
    ):
        assert re.search(rf"\b{name}=", definition["environment"]), name
    done = subprocess.run(
        ["sh", "-c", definition["environment"] + '\necho "$PATH $MPLCONFIGDIR"'],
        env={"PATH": "/usr/bin:/bin", "TMPDIR": "/t"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "/opt/venv/bin:/usr/bin:/bin /t/matplotlib"


@pytest.mark.slow
def test_the_library_installs_from_what_the_image_gets(definition, tmp_path):
    "Copy what %files copies, and nothing else, and build the package from it."
    pytest.importorskip("setuptools")
    root = images.definition_file().parent.parent
    for line in definition["files"].splitlines():
        source, target = line.split()
        place = tmp_path / target.removeprefix("/opt/rvtutorial/src/")
        place.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (root / source).is_dir() else shutil.copy
        copy(root / source, place)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*build, "-w", str(tmp_path / "out"), str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = (tmp_path / "out").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "rvtutorial/config.py" in names
    assert "rvtutorial/_sites/local.toml" in names


# --- the build script; what it builds for real is tested in tests/cluster


def build(*words):
    script = images.definition_file().parent / "build.sh"
    return subprocess.run([script, *words], capture_output=True, text=True)


def test_build_from_a_mirror_makes_the_base_first(tmp_path):
    image = tmp_path / "rv.sif"
    done = build("-n", "-t", tmp_path, "-d", "http://mirror/debian", image)
    assert done.returncode == 0, done.stderr
    _, base, whole = map(shlex.split, done.stdout.splitlines())
    assert base[-2:] == [f"{image}.base", "apptainer/debian.def"]
    assert "MIRROR=http://mirror/debian" in base
    assert {"BOOTSTRAP=localimage", f"FROM={image}.base"} < set(whole)
    assert whole[-2:] == [f"{image}.part", "apptainer/rastervision.def"]


def test_build_takes_weights_from_a_folder(tmp_path):
    folder = tmp_path / "my weights"
    folder.mkdir()
    done = build("-n", "-t", tmp_path, "-w", folder, tmp_path / "rv.sif")
    assert done.returncode == 2 and "or a folder with weights" in done.stderr
    (folder / "resnet50-11ad3fa6.pth").touch()
    done = build("-n", "-t", tmp_path, "-w", folder, tmp_path / "rv.sif")
    words = shlex.split(done.stdout.splitlines()[-1])
    assert "WEIGHTS=/mnt" in words
    assert words[words.index("--bind") + 1] == f"{folder}:/mnt:ro"


def test_build_shows_folders(tmp_path):
    done = build("-n", "-t", tmp_path, "-b", "/etc/pip:/opt/pip", tmp_path / "rv.sif")
    assert "build --bind /etc/pip:/opt/pip --build-arg" in done.stdout
    assert "/opt/pip/pip.conf" in images.definition_file().read_text()
