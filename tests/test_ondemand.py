"""The Open OnDemand app, rendered by Ruby and run for real, and the kernel installer."""

import contextlib
import getpass
import http.cookiejar
import http.server
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml

from rvtutorial.container import exec_command
from rvtutorial.hpc import ondemand
from rvtutorial.hpc.sites import Site

sys.path.insert(0, str(Path(__file__).parent / "ondemand"))
from browser import Browser, find_browser, wait  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "tests" / "ondemand"
SCRIPTS = ["before.sh", "script.sh", "after.sh", "clean.sh", "site.sh"]
HOSTILE = [
    "a'b",
    'a"b',
    "$(touch owned)",
    "`touch owned`",
    "a; touch owned",
    "a\ntouch owned",
    "a\r\ntouch owned\n",
    "' ; touch owned ; '",
    "-rf",
    "--output=owned",
    "a\n  native: [touch]",
    "<%= File.write('owned', '') %>",
    "<%- raise 'ran' -%>",
    "#{File.write('owned', '')}",
    "%{owned}",
    "\\",
    "\\'; touch owned #",
    "${HOME}",
    "!!ruby/object:Object {}",
    "&a *a",
    "na\u00efve \u6a21\u578b \U0001f6f0",
    "a\u2028b\u0085c",
    "*",
    "{a,b}",
    "|| touch owned",
    "x" * 4000,
]
needs_ruby = pytest.mark.skipif(
    shutil.which("ruby") is None, reason="no ruby here to render the templates with"
)


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    "No site or kernel of this user takes part, and no outer job's variables."
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    drop = ("SLURM_", "RVTUTORIAL_", "APPTAINERENV_", "JUPYTER_PATH")
    for name in list(os.environ):
        if name.startswith(drop) and not name.startswith(
            ("RVTUTORIAL_TEST_", "SLURM_CONF")
        ):
            monkeypatch.delenv(name)


def render(app, out, values=None, mode=None):
    "Fill in the templates as the dashboard does; the finished Ruby process."
    given = out.with_suffix(".json")
    given.write_text(json.dumps(values or {}), encoding="utf-8")
    command = ["ruby", str(HERE / "render.rb"), str(app), str(out), str(given)]
    return subprocess.run(
        command + ([mode] if mode else []),
        cwd=out.parent,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"LC_ALL": "C.UTF-8"},
    )


def submit_of(out):
    return json.loads((out / "submit.json").read_text())["script"]


# --- the folder, and what a site makes of it


def test_the_form_has_the_sites_defaults_and_only_known_fields():
    doc = ondemand._form("atlas")
    atlas = Site.read("atlas")
    got = {
        name: field["value"]
        for name, field in doc["attributes"].items()
        if isinstance(field, dict)
    }
    assert doc["cluster"] == "atlas"
    assert got["bc_account"] == atlas.account
    assert got["bc_queue"] == atlas.partition
    assert got["gres"] == atlas.gres
    assert got["mem"] == atlas.mem
    assert got["cpus"] == atlas.cpus
    assert got["bc_num_hours"] == 2.5
    assert got["qos"] == got["image"] == ""
    assert set(doc["attributes"]) == set(doc["form"])


@pytest.mark.parametrize(
    "given, hours",
    [("02:30:00", 2.5), (100, 1.75), ("1-12:00:00", 36), (1, 0.25), ("00:59:59", 1)],
)
def test_hours_are_rounded_up_to_a_quarter(given, hours):
    doc = ondemand._form(Site(name="x", time=given))
    assert doc["attributes"]["bc_num_hours"]["value"] == hours


def test_an_app_is_whole_and_names_no_placeholder(tmp_path):
    app = ondemand.write_app("atlas", tmp_path / "app", cluster="farm")
    names = {str(p.relative_to(app)) for p in app.rglob("*") if p.is_file()}
    source = ondemand._app_folder()
    wanted = {str(p.relative_to(source)) for p in source.rglob("*") if p.is_file()}
    assert wanted <= names
    form = yaml.safe_load((app / "form.yml").read_text())
    assert form["cluster"] == "farm"
    assert yaml.safe_load((app / "manifest.yml").read_text())["role"] == "batch_connect"
    assert os.access(app / "template" / "script.sh.erb", os.X_OK)
    assert stat.S_IMODE(app.stat().st_mode) & 0o555 == 0o555
    assert (app / "icon.png").stat().st_size < 30_000
    with tarfile.open(app / "template" / "lessons.tar.gz") as archive:
        members = archive.getmembers()
    assert "01_tutorial_setup.ipynb" in {m.name for m in members}
    assert all(m.isfile() and m.uid == 0 and not m.uname for m in members)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_an_app_is_replaced_only_when_told_and_a_stranger_never(tmp_path):
    app = ondemand.write_app("atlas", tmp_path / "app")
    (app / "form.yml").write_text("mine")
    with pytest.raises(FileExistsError, match="replace"):
        ondemand.write_app("atlas", app)
    assert (app / "form.yml").read_text() == "mine"
    ondemand.write_app("atlas", app, replace=True)
    assert (app / "form.yml").read_text() != "mine"
    other = tmp_path / "precious"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="not this app"):
        ondemand.write_app("atlas", other, replace=True)
    assert os.listdir(other) == ["thesis.txt"]


def test_the_form_in_the_repository_can_be_edited_by_hand():
    doc = yaml.safe_load((ondemand._app_folder() / "form.yml").read_text())
    assert set(doc["attributes"]) == set(doc["form"])
    readme = (ondemand._app_folder() / "README.md").read_text()
    for word in ("cluster", "image", "bc_", "use_image", "use_python", "parent"):
        assert word in readme or word in str(doc)


# --- what site.sh does in a shell


def arrays(text, function, **variables):
    "The words that a function of site.sh puts into `python`."
    lines = "\n".join(f"{k}={json.dumps(v)}" for k, v in variables.items())
    shown = f"{lines}\n{text}\n{function}\nprintf '%s\\0' \"${{python[@]}}\""
    done = subprocess.run(
        ["bash", "-uc", shown], capture_output=True, text=True, check=True
    )
    return done.stdout.split("\0")[:-1]


def test_site_sh_is_the_command_that_container_makes():
    site = Site(
        name="x",
        image="/i/rv.sif",
        binds=["/ref/a b:/opt/data:ro", "/x$(touch owned)"],
        nv=False,
        python="/opt/venv/bin/python",
    )
    place = dict(work="/w/my work", session="/s", image="/i/rv.sif", scratch="/t/a b")
    got = arrays(ondemand._site_commands(site), "use_image", **place)
    assert got == exec_command(
        "/i/rv.sif",
        ["/opt/venv/bin/python"],
        binds=[*site.binds, "/w/my work", "/s:/s:ro"],
        nv=False,
        workdir="/t/a b",
        home="/t/a b/home",
        pwd="/w/my work",
    )
    assert not os.path.exists("owned")


def test_variables_of_a_site_wait_for_the_one_who_starts_a_session():
    site = Site(
        name="x",
        scratch="/scratch/$USER",
        binds=["~/data:/data", "${GROUP}/in put:/in"],
        python="$VENV/bin/python",
    )
    text = ondemand._site_commands(site)
    place = dict(work="/w", session="/s", image="/i", scratch="/t")
    mine = dict(HOME="/home/ada", USER="ada", GROUP="/g", VENV="/v e")
    got = arrays(text, "use_image", **place, **mine)
    assert "/home/ada/data:/data" in got and "/g/in put:/in" in got
    assert arrays(text, "use_python", **place, **mine) == ["/v e/bin/python"]
    parent = arrays(text, 'python=("$parent")', **mine)
    assert parent == ["/scratch/ada"]


def test_the_python_of_a_site_belongs_to_its_own_way_to_run():
    place = dict(work="/w", session="/s", image="/i", scratch="/t")
    inside = ondemand._site_commands(Site(name="x", image="/i", python="/opt/p"))
    assert arrays(inside, "use_image", **place)[-1] == "/opt/p"
    assert arrays(inside, "use_python", **place) == [sys.executable]
    host = ondemand._site_commands(Site(name="x", python="/opt/p"))
    assert arrays(host, "use_image", **place)[-1] == "python"
    assert arrays(host, "use_python", **place) == ["/opt/p"]


def test_a_missing_module_ends_the_session_with_its_name(tmp_path):
    text = ondemand._site_commands(Site(name="x", modules=["no such; touch owned"]))
    done = subprocess.run(
        ["bash", "-c", text + "echo on"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1 and "no such; touch owned" in done.stderr
    assert os.listdir(tmp_path) == [] and done.stdout == ""


# --- rendered by Ruby


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    "The app of a site without image and without lessons, quick to copy."
    site = Site(
        name="farm",
        queue="slurm",
        account="crops",
        partition="gpu",
        gres="gpu:1",
        cpus=2,
        mem="8G",
        time="02:30:00",
        extra=["--nice=10", "--comment=a b"],
    )
    app = ondemand.write_app(site, tmp_path_factory.mktemp("app") / "app")
    (app / "template" / "lessons.tar.gz").unlink()
    return app


@needs_ruby
def test_the_defaults_ask_slurm_for_what_the_site_says(app, tmp_path):
    done = render(app, tmp_path / "s")
    assert done.returncode == 0, done.stderr
    assert submit_of(tmp_path / "s") == {
        "accounting_id": "crops",
        "queue_name": "gpu",
        "wall_time": 9000,
        "native": [
            "--nodes=1",
            "--ntasks=1",
            "--cpus-per-task=2",
            "--mem=8G",
            "--gres=gpu:1",
            "--nice=10",
            "--comment=a b",
        ],
    }


@needs_ruby
def test_what_is_left_empty_is_not_asked_for(app, tmp_path):
    empty = dict.fromkeys(["bc_account", "bc_queue", "cpus", "mem", "gres"], " ")
    assert render(app, tmp_path / "s", empty).returncode == 0
    got = submit_of(tmp_path / "s")
    assert "accounting_id" not in got and "queue_name" not in got
    assert got["native"][:3] == ["--nodes=1", "--ntasks=1", "--nice=10"]


@needs_ruby
def test_scripts_are_shell_and_clean(app, tmp_path):
    assert render(app, tmp_path / "s").returncode == 0
    paths = [str(tmp_path / "s" / name) for name in SCRIPTS]
    for path in paths:
        assert subprocess.run(["bash", "-n", path]).returncode == 0
    assert os.access(paths[1], os.X_OK), "the wrapper starts ./script.sh"
    beside = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    shellcheck = beside or shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("no shellcheck here")
    done = subprocess.run([shellcheck, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@needs_ruby
@pytest.mark.parametrize("field", ["bc_account", "bc_queue", "qos", "gres", "mem"])
def test_a_hostile_word_is_refused_by_name(app, tmp_path, field):
    words = ["-x", "a b", "$(touch owned)", "a\nb: c", "<%= 1 %>", "\u6a21", "a'"]
    for number, word in enumerate(words):
        done = render(app, tmp_path / f"s{number}", {field: word})
        assert done.returncode == 3, (word, done.stdout, done.stderr)
        assert "must be" in done.stderr and "not " in done.stderr
    assert not (tmp_path / "owned").exists() and not (tmp_path / "s0").exists()


@needs_ruby
@pytest.mark.parametrize(
    "field, value",
    [
        ("cpus", "0"),
        ("cpus", "2; rm"),
        ("bc_num_hours", "0"),
        ("bc_num_hours", ""),
        ("bc_num_hours", "-1"),
        ("work_dir", ""),
        ("work_dir", "/a:b"),
        ("work_dir", "/a\nb"),
        ("image", "/a,b"),
    ],
)
def test_a_number_or_path_that_cannot_be_is_refused(app, tmp_path, field, value):
    done = render(app, tmp_path / "s", {field: value})
    assert done.returncode == 3 and "must be" in done.stderr


@needs_ruby
@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_paths_stay_one_word_and_make_no_file(app, tmp_path, value):
    session = tmp_path / "s"
    done = render(app, session, {"work_dir": value, "image": value}, "templates")
    assert done.returncode == 0, done.stderr
    if (session / "submit.json").exists():  # not refused: nothing of it is in there
        assert submit_of(session)["native"][:2] == ["--nodes=1", "--ntasks=1"]
        assert value not in json.dumps(submit_of(session), ensure_ascii=False)
    script = (session / "script.sh").read_bytes().decode()
    begin, end = script.index("work="), script.index("scratch=''")
    text = script[begin:end] + 'printf \'%s\\0\' "$work" "$image"'
    shown = subprocess.run(["bash", "-uc", text], cwd=tmp_path, capture_output=True)
    assert shown.stdout.decode().split("\0")[:2] == [value.strip(), value.strip()]
    assert shown.stderr == b""
    check = subprocess.run(["bash", "-n", str(session / "script.sh")])
    assert check.returncode == 0
    assert not list(tmp_path.rglob("owned"))


@needs_ruby
def test_the_page_quotes_what_it_is_given(app, tmp_path):
    assert render(app, tmp_path / "s").returncode == 0
    page = (tmp_path / "s" / "view.html").read_text()
    assert 'value="a&quot;&lt;b&gt;&amp;c"' in page
    assert 'method="post"' in page and "a&quot;" not in page.split("<input")[0]


# --- run for real


def arguments(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode()


def environment(pid):
    rows = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(row.split("=", 1) for row in rows if "=" in row)


class Session:
    "A session of the app, with the environment's Python where a site has its own."

    def __init__(self, folder, image="", site=None, lessons=True):
        self.folder, self.work = folder / "session", folder / "work of mine"
        self.tmp = folder / "tmp"
        self.tmp.mkdir()
        site = site or Site(name="here", queue="slurm", scratch=str(self.tmp))
        app = ondemand.write_app(site, folder / "app")
        if not lessons:
            (app / "template" / "lessons.tar.gz").unlink()
        values = {"work_dir": str(self.work), "image": image}
        done = render(app, self.folder, values)
        assert done.returncode == 0, done.stderr
        self.log = folder / "output.log"

    def start(self, seconds=60):
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                ["bash", str(HERE / "session.sh"), str(self.folder)],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        connection = self.folder / "connection.yml"
        wait(lambda: connection.exists() or self.process.poll() is not None, seconds)
        assert connection.exists(), self.log.read_text()
        found = yaml.safe_load(connection.read_text())
        assert stat.S_IMODE(connection.stat().st_mode) == 0o600
        self.password, self.port = str(found["password"]), found["port"]
        self.base = f"http://127.0.0.1:{self.port}/node/127.0.0.1/{self.port}"
        return self

    def ask(self, path, data=None, jar=None, text=None):
        "Status and text of an answer, redirections not followed; data is a form's."

        class Stay(urllib.request.HTTPRedirectHandler):
            def redirect_request(self, *_):
                return None

        opener = urllib.request.build_opener(
            Stay,
            urllib.request.ProxyHandler({}),
            urllib.request.HTTPCookieProcessor(jar),
        )
        body = text.encode() if text else urllib.parse.urlencode(data or {}).encode()
        try:
            with opener.open(self.base + path, body or None, timeout=20) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers.get("Location", "")

    def children(self):
        "Ids of the processes of this session."
        asked = ["ps", "-ww", "-eo", "pid=,sid=,args="]
        listed = subprocess.run(asked, capture_output=True).stdout.decode(
            errors="replace"
        )
        rows = [line.split(None, 2) for line in listed.splitlines()]
        mine = str(self.process.pid)  # kernels have a session of their own
        return [
            int(pid)
            for pid, sid, args in rows
            if sid == mine or any(place in args for place in self.sockets())
        ]

    def sockets(self):
        "The folder that a running kernel names in its arguments."
        return re.findall(r"file://(/tmp/rvt\.\w+)/", self.log.read_text())

    def end(self):
        "What Slurm does at the end: TERM to every process of the job."
        for pid in {*self.children(), self.process.pid}:
            try:
                os.kill(pid, signal.SIGTERM)
            except ProcessLookupError:
                pass
        self.process.wait(timeout=30)
        wait(lambda: not self.children(), 30)


@pytest.fixture
def session(tmp_path):
    made = []

    def make(**more):
        made.append(Session(tmp_path, **more))
        return made[0]

    yield make
    for one in made:
        if getattr(one, "process", None):
            one.end()


def leave_old_settings(home, monkeypatch):
    "A password, a port and a broken kernel that the user once had."
    monkeypatch.setenv("HOME", str(home))
    (home / ".jupyter").mkdir()
    old = {
        "ServerApp": {"port": 1},
        "IdentityProvider": {"hashed_password": "argon2:x"},
    }
    (home / ".jupyter" / "jupyter_server_config.json").write_text(json.dumps(old))
    kernel = home / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    spec = {"argv": ["/gone"], "display_name": "old", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))


@needs_ruby
@pytest.mark.slow
def test_a_session_lets_in_who_has_the_password_and_leaves_nothing(
    session, monkeypatch, tmp_path
):
    monkeypatch.setenv("MPLBACKEND", "Agg")  # as an image for jobs has it
    leave_old_settings(tmp_path, monkeypatch)
    one = session().start()
    config = one.folder / "jupyter_config.py"
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert one.password not in config.read_text()
    assert one.password not in one.log.read_text()
    assert one.ask("/api/contents")[0] == 403
    assert one.ask("/lab")[0] == 302
    assert one.ask("/login", {"password": "wrong"})[0] == 401
    jar = http.cookiejar.CookieJar()
    landing = f"/node/127.0.0.1/{one.port}/lab/tree/01_tutorial_setup.ipynb"
    query = "/login?" + urllib.parse.urlencode({"next": landing})
    status, place = one.ask(query, {"password": one.password}, jar)
    assert status == 302 and place == landing
    assert all(cookie._rest.get("SameSite") == "Lax" for cookie in jar)
    assert one.ask("/lab", jar=jar)[0] == 200
    assert one.ask("/lab/tree/01_tutorial_setup.ipynb", jar=jar)[0] == 200
    names = json.loads(one.ask("/api/contents", jar=jar)[1])["content"]
    assert "01_tutorial_setup.ipynb" in {entry["name"] for entry in names}
    specs = json.loads(one.ask("/api/kernelspecs", jar=jar)[1])
    shown = specs["kernelspecs"][specs["default"]]["spec"]
    assert shown["display_name"] == "Raster Vision tutorial"
    (sockets,) = one.sockets()
    assert stat.S_IMODE(os.stat(sockets).st_mode) & 0o77 == 0 and os.listdir(one.tmp)
    assert {p.name for p in one.work.iterdir()} == {
        name.split("/")[0] for name in ondemand._lesson_files()
    }
    status, text = one.ask("/api/kernels", jar=jar, text='{"name": "python3"}')
    assert status == 201, text
    wait(lambda: any("-ipc-" in name for name in os.listdir(sockets)), 20)
    kernels = [pid for pid in one.children() if "ipykernel_launcher" in arguments(pid)]
    assert kernels and "MPLBACKEND" not in environment(kernels[0])
    assert environment(kernels[0])["RVTUTORIAL_HOME"] == str(one.work)
    one.end()
    assert os.listdir(one.tmp) == [] and not os.path.exists(sockets)


def edit(work):
    "A work folder in which somebody has been at work before."
    (work / "images").mkdir(parents=True)
    (work / "02_deep_learning_overview.ipynb").write_text("mine")
    (work / "images" / "prediction.jpg").write_text("mine too")


def is_as_edited(work):
    assert (work / "02_deep_learning_overview.ipynb").read_text() == "mine"
    assert (work / "images" / "prediction.jpg").read_text() == "mine too"
    assert (work / "03_apptainer_image.ipynb").stat().st_size > 1000
    assert not [path for path in work.iterdir() if path.name.startswith(".lessons")]


@needs_ruby
@pytest.mark.slow
def test_term_to_the_script_alone_ends_all_and_a_session_keeps_edits(session):
    one = session()
    edit(one.work)
    one.start()
    is_as_edited(one.work)
    listed = subprocess.run(["pgrep", "-P", str(one.process.pid)], capture_output=True)
    os.kill(int(listed.stdout.split()[0]), signal.SIGTERM)
    one.process.wait(timeout=30)
    assert os.listdir(one.tmp) == [] and not one.children()


@needs_ruby
@pytest.mark.parametrize("trouble", ["image", "work", "scratch"])
def test_a_session_that_cannot_start_says_why_at_once(tmp_path, trouble):
    site = Site(name="here", queue="slurm", scratch="/nonexistent/scratch")
    one = Session(
        tmp_path,
        image="/nonexistent/rv.sif" if trouble == "image" else "",
        site=site if trouble == "scratch" else None,
        lessons=False,
    )
    if trouble == "work":
        one.work.write_text("a file")
    begin = time.monotonic()
    with pytest.raises(AssertionError) as caught:
        one.start()
    words = {
        "image": "no image at /nonexistent/rv.sif",
        "work": "cannot make the folder of your notebooks",
        "scratch": "cannot make a folder in /nonexistent/scratch",
    }
    assert words[trouble] in str(caught.value)
    assert "did not come up" in str(caught.value) and one.process.wait() == 1
    assert time.monotonic() - begin < 20 and os.listdir(one.tmp) == []


@needs_ruby
def test_the_command_of_a_session_in_an_image(tmp_path, monkeypatch):
    "Apptainer replaced by a recorder; test_a_session_in_a_real_image has the real one."
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    fake = bin_ / "apptainer"
    fake.write_text(
        "#!/bin/bash\nprintf '%s\\0' \"$@\" >args\nenv | grep ^APPTAINERENV >names\n"
        "exit 7\n"
    )
    fake.chmod(0o755)
    # a login shell sets PATH anew
    (tmp_path / ".bash_profile").write_text(f"PATH={bin_}:$PATH\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1")
    (tmp_path / "my image.sif").touch()
    one = Session(tmp_path, image="~/my image.sif", lessons=False)
    with pytest.raises(AssertionError):
        one.start()
    got = (one.work / "args").read_text().split("\0")[:-1]
    scratch = got[got.index("--workdir") + 1]
    assert scratch.startswith(str(one.tmp)) and not os.path.exists(scratch)
    config = f"--config={one.folder}/jupyter_config.py"
    assert ["apptainer", *got] == exec_command(
        tmp_path / "my image.sif",
        ["python", "-m", "jupyterlab", config],
        binds=[str(one.work), f"{one.folder}:{one.folder}:ro"],
        workdir=scratch,
        home=f"{scratch}/home",
        pwd=str(one.work),
    )
    names = (one.work / "names").read_text()
    assert f"APPTAINERENV_RVTUTORIAL_HOME={one.work}\n" in names
    assert "APPTAINERENV_CUDA_VISIBLE_DEVICES=MIG-1\n" in names
    assert "APPTAINERENV_JUPYTER_RUNTIME_DIR=/tmp/jupyter\n" in names


# --- a browser


@pytest.fixture
def card(tmp_path):
    "A page of another server on this machine, as the dashboard's is, with the button."

    def serve(one):
        text = (one.folder / "view.html").read_text()
        text = text.replace("node1", "127.0.0.1").replace("12345", str(one.port))
        text = re.sub(r'value="[^"]*"', f'value="{one.password}"', text)
        text = text.replace('action="', f'action="http://127.0.0.1:{one.port}')
        page = text.replace('target="_blank"', "").encode()

        class Page(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(page)

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/"

    servers = []
    yield serve
    for server in servers:
        server.shutdown()


CELLS = 5  # imports, the accounts, the workspace
CODE = ".jp-CodeCell"
EDITORS = f"document.querySelectorAll('{CODE} .jp-InputArea-editor').length"
IDLE = "document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status"
PROMPTS = (
    f"[...document.querySelectorAll('{CODE} .jp-InputPrompt')].map(e => e.innerText)"
)
ERRORS = "document.querySelectorAll('[data-mime-type*=\"error\"]').length"
KERNEL = "document.querySelector('.jp-Toolbar-kernelName')?.textContent"
CALLED = "document.querySelectorAll('.jp-Dialog, .jp-toastContainer .Toastify__toast').length"


def run_part_1(one, address, profile, picture=None):
    "Click the button of the card and run the first code cells of Part 1; what is seen."

    def numbered():
        return [text.strip() for text in page.js(PROMPTS) if re.search(r"\d", text)]

    with Browser(profile) as page:
        page.open(address)
        wait(lambda: page.js("!!document.querySelector('button')"), 20)
        page.click("button")
        wait(lambda: page.js(IDLE) == "idle", 60)
        assert page.js("location.pathname").endswith(
            "/lab/tree/01_tutorial_setup.ipynb"
        )
        assert numbered() == []  # the lesson comes without execution counts
        for at in range(CELLS):

            def run(at=at):  # a key is lost while the page still connects to the kernel
                if page.js(EDITORS) <= at:  # and cells are drawn one after the other
                    return False
                page.click(f"{CODE} .jp-InputArea-editor", at)
                page.shift_enter()
                with contextlib.suppress(TimeoutError):
                    return wait(lambda: len(numbered()) > at, 3)

            wait(run, 30)
        try:
            wait(lambda: len(numbered()) == CELLS and page.js(IDLE) == "idle", 30)
            time.sleep(1)  # for a message that would open late
        finally:
            if picture:
                page.screenshot(picture)
        return dict(
            prompts=numbered(),
            errors=page.js(ERRORS),
            called=page.js(CALLED),
            kernel=page.js(KERNEL),
        )


@needs_ruby
@pytest.mark.slow
@pytest.mark.skipif(find_browser() is None, reason="no Chromium here")
def test_part_1_runs_in_a_browser(session, card, tmp_path):
    one = session().start()
    picture = os.environ.get("RVTUTORIAL_TEST_PICTURE")
    seen = run_part_1(one, card(one), tmp_path / "profile", picture)
    assert seen["errors"] == 0 and seen["called"] == 0, seen
    assert sorted(set(seen["prompts"])) == seen["prompts"], "a new number for each"
    assert "Raster Vision tutorial" in seen["kernel"], seen


# --- a real image, where the environment names one


real_image = pytest.mark.skipif(
    not os.environ.get("RVTUTORIAL_TEST_IMAGE") or not shutil.which("apptainer"),
    reason="no image in RVTUTORIAL_TEST_IMAGE, or no apptainer",
)


def image_site(scratch):
    """The site of that image.

    An image without Jupyter will do if RVTUTORIAL_TEST_BINDS (separated by blanks) shows
    it a Python that has it, named in RVTUTORIAL_TEST_PYTHON.
    """
    return Site(
        name="here",
        queue="slurm",
        scratch=str(scratch),
        image=os.environ["RVTUTORIAL_TEST_IMAGE"],
        binds=os.environ.get("RVTUTORIAL_TEST_BINDS", "").split(),
        python=os.environ.get("RVTUTORIAL_TEST_PYTHON"),
        nv=False,
    )


@real_image
@needs_ruby
@pytest.mark.slow
def test_a_session_in_a_real_image(session, card, tmp_path):
    site = image_site(tmp_path / "tmp")
    one = session(image=site.image, site=site).start(seconds=300)
    jar = http.cookiejar.CookieJar()
    assert one.ask("/api/contents")[0] == 403
    assert one.ask("/login", {"password": one.password}, jar=jar)[0] == 302
    assert one.ask("/lab", jar=jar)[0] == 200
    assert one.ask("/api/kernels", jar=jar, text='{"name": "python3"}')[0] == 201
    (scratch,) = one.tmp.iterdir()
    runtime = scratch / "tmp" / "jupyter"
    wait(lambda: any("-ipc-" in path.name for path in runtime.iterdir()), 60)
    if find_browser():
        picture = os.environ.get("RVTUTORIAL_TEST_PICTURE")
        seen = run_part_1(one, card(one), tmp_path / "profile", picture)
        assert seen["errors"] == 0 and "Raster Vision tutorial" in seen["kernel"]
    one.end()
    assert os.listdir(one.tmp) == []


@real_image
@pytest.mark.slow
def test_a_kernel_in_a_real_image(monkeypatch, tmp_path, tmp_path_factory):
    short(monkeypatch, tmp_path_factory)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    path = ondemand.install_kernel(image_site(tmp_path), "rv")
    names = "APPTAINER_CONTAINER", "OMP_NUM_THREADS", "MPLBACKEND"
    code = f"import os; print(*(os.environ[name] for name in {names}))"
    image, threads, backend = run_kernel(path, code, 300).split()
    assert Path(image).name == Path(os.environ["RVTUTORIAL_TEST_IMAGE"]).name
    assert threads == "3" and "inline" in backend


# --- a real Slurm, where one answers that looks like Atlas


def partitions():
    "What Slurm calls its partitions; nothing where there is no Slurm."
    if not shutil.which("sinfo"):
        return []
    asked = ["sinfo", "-h", "-o", "%R"]
    return subprocess.run(asked, capture_output=True, text=True).stdout.split()


def dashboards_options(options, session):
    "The arguments that the dashboard's Slurm adapter makes of submit.yml."
    return [
        "--parsable",
        "--export=NONE",
        f"--chdir={session}",
        f"--output={session}/output.log",
        "-A",
        options["accounting_id"],
        "-p",
        options["queue_name"],
        "-t",
        str(options["wall_time"] // 60),
        *options["native"],
    ]


@needs_ruby
@pytest.mark.slow
def test_a_session_under_a_real_slurm(session, monkeypatch):
    atlas = Site.read("atlas")
    if atlas.partition not in partitions():
        pytest.skip("no Slurm here with the partition of the site atlas")
    one = session(site=atlas.replace(modules=(), scratch="/var/tmp/$USER-ood"))
    scratch = Path(f"/var/tmp/{getpass.getuser()}-ood")
    scratch.mkdir()
    args = dashboards_options(submit_of(one.folder), one.folder)
    wrapper = [str(HERE / "session.sh"), str(one.folder)]
    done = subprocess.run(["sbatch", *args, *wrapper], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    job = done.stdout.strip()
    try:
        one.log = one.folder / "output.log"
        connection = one.folder / "connection.yml"
        wait(connection.exists, 90)
        found = yaml.safe_load(connection.read_text())
        one.base = f"http://127.0.0.1:{found['port']}/node/127.0.0.1/{found['port']}"
        jar = http.cookiejar.CookieJar()
        answer = one.ask("/login", {"password": found["password"]}, jar=jar)
        assert answer[0] == 302 and one.ask("/lab", jar=jar)[0] == 200
        assert one.ask("/api/kernels", jar=jar, text='{"name": "python3"}')[0] == 201
        (sockets,) = one.sockets()
        shown = subprocess.run(
            ["scontrol", "show", "job", job], capture_output=True, text=True
        ).stdout
        assert atlas.gres in shown.replace("=", ":") and "TimeLimit=02:30:00" in shown
        assert list(scratch.iterdir())
    finally:
        subprocess.run(["scancel", job])
        with contextlib.suppress(TimeoutError):
            wait(lambda: not any(scratch.iterdir()), 40)
        left = os.listdir(scratch)
        shutil.rmtree(scratch)
    assert left == [] and not os.path.exists(sockets), one.log.read_text()


# --- the kernel installer


def run_kernel(path, code, seconds=60):
    "Start an installed kernel, run a line, interrupt a sleep; what the line printed."
    from jupyter_client.manager import KernelManager

    sockets = os.path.join(os.environ["JUPYTER_RUNTIME_DIR"], "k")
    manager = KernelManager(kernel_name=path.parent.name, transport="ipc", ip=sockets)
    manager.start_kernel()
    client = manager.blocking_client()
    printed = []
    try:
        client.start_channels()
        client.wait_for_ready(timeout=seconds)
        client.execute_interactive(
            code,
            timeout=seconds,
            output_hook=lambda m: printed.append(m["content"].get("text", "")),
        )
        client.execute("import time; time.sleep(600)")
        time.sleep(1)
        manager.interrupt_kernel()
        reply = client.get_shell_msg(timeout=30)["content"]
        assert reply["ename"] == "KeyboardInterrupt"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=False)
    assert not manager.is_alive()
    return "".join(printed)


def short(monkeypatch, tmp_path_factory):
    "A runtime folder with a path short enough for sockets."
    folder = tmp_path_factory.mktemp("r")
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(folder))


@pytest.mark.slow
def test_an_installed_kernel_starts_is_interrupted_and_stops(
    monkeypatch, tmp_path_factory
):
    short(monkeypatch, tmp_path_factory)
    path = ondemand.install_kernel("local", "rv")
    code = "import sys, rvtutorial; print(sys.executable)"
    assert run_kernel(path, code).strip() == sys.executable


@pytest.mark.slow
def test_a_kernel_goes_through_modules_and_the_shell_unharmed(
    monkeypatch, tmp_path, tmp_path_factory
):
    "A module and an apptainer of our own, which only runs what it is given."
    short(monkeypatch, tmp_path_factory)
    image = tmp_path / "my $(touch owned) image"
    (image / ".singularity.d").mkdir(parents=True)
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    fake = bin_ / "apptainer"
    fake.write_text(
        '#!/bin/bash\nwhile [ "$1" != python ]; do shift; done; shift\n'
        f'exec {sys.executable} "$@"\n'
    )
    fake.chmod(0o755)
    (tmp_path / ".bash_profile").write_text(f"module() {{ PATH={bin_}:$PATH; }}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    site = Site(name="x", modules=["apptainer/1.1.9"], image=str(image))
    path = ondemand.install_kernel(site, "rv")
    code = "import os; print(os.environ['APPTAINERENV_OMP_NUM_THREADS'])"
    assert run_kernel(path, code).strip() == "3"
    assert not list(tmp_path.rglob("owned"))


def test_the_kernel_of_an_image_is_the_command_that_container_makes(tmp_path):
    (tmp_path / "image" / ".singularity.d").mkdir(parents=True)
    site = Site(name="x", image=str(tmp_path / "image"), binds=["/a:/b:ro"], nv=False)
    spec = ondemand._kernel_spec(site)
    assert spec["interrupt_mode"] == "message"
    words = spec["argv"][spec["argv"].index("apptainer") :]
    assert "--cleanenv" in words and "--contain" not in words and "--nv" not in words
    assert words[words.index("--bind") + 1] == "/a:/b:ro"
    assert words[-5:] == [
        "python",
        "-m",
        "ipykernel_launcher",
        "-f",
        "{connection_file}",
    ]
    assert ondemand._kernel_spec(site, image="")["argv"][0] == sys.executable


def test_no_kernel_for_an_image_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no image at"):
        ondemand.install_kernel("local", "rv", image=tmp_path / "rv.sif")
    (tmp_path / "rv.sif").write_text("text")
    with pytest.raises(ValueError, match="not an Apptainer image"):
        ondemand.install_kernel("local", "rv", image=tmp_path / "rv.sif")
    assert not (tmp_path / "jupyter").exists()


def test_kernels_of_others_are_left_alone(tmp_path):
    path = ondemand.install_kernel("local", "rv")
    assert path == tmp_path / "jupyter" / "kernels" / "rv" / "kernel.json"
    ondemand.install_kernel("local", "rv")  # ours may be made anew
    for text in ('{"argv": []}', "not JSON", "[]"):
        path.write_text(text)
        with pytest.raises(FileExistsError, match="somebody else"):
            ondemand.install_kernel("local", "rv")
        with pytest.raises(FileExistsError, match="somebody else"):
            ondemand.uninstall_kernel("rv")
        assert path.read_text() == text
    ondemand.install_kernel("local", "rv", replace=True)
    (path.parent / "logo-64x64.png").touch()
    ondemand.uninstall_kernel("rv")
    assert os.listdir(path.parent) == ["logo-64x64.png"]
    with pytest.raises(FileNotFoundError):
        ondemand.uninstall_kernel("rv")


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "A", "a b", "-x", "\u6a21"])
def test_a_name_that_cannot_be_a_kernels_is_refused(name):
    with pytest.raises(ValueError, match="kernel's name"):
        ondemand.install_kernel("local", name)


def test_the_command_line_says_what_it_did(tmp_path, capsys):
    assert ondemand._main(["app", "--site", "atlas", str(tmp_path / "app")]) == 0
    assert ondemand._main(["app", "--site", "atlas", str(tmp_path / "app")]) == 1
    assert "--replace" in capsys.readouterr().err
    assert ondemand._main(["kernel", "--name", "rv"]) == 0
    assert ondemand._main(["uninstall", "--name", "rv"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "removed rv"
    assert ondemand._main(["uninstall", "--name", "rv"]) == 1
    with pytest.raises(SystemExit) as caught:
        ondemand._main(["kernle"])
    assert caught.value.code == 2


def test_importing_costs_no_torch_and_little_time():
    code = (
        "import sys, rvtutorial.hpc.ondemand; "
        "print([m for m in ('torch', 'rastervision') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
