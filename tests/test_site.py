"The site: it builds without a warning, its links arrive, and it asks nobody else for anything."

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from pace import pace

ROOT = Path(__file__).parents[1]


class Page(HTMLParser):
    "Where a page points to, what it loads, and the names of its places."

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.places = [], [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        said = dict(attrs)
        self.places |= {said[k] for k in ("id", "name") if said.get(k)}
        if tag == "a" and said.get("href"):
            self.links.append(said["href"])
        kind = said.get("rel") or ""
        if tag in ("script", "img") or kind in ("stylesheet", "preload"):
            self.loads += [said[k] for k in ("src", "href") if said.get(k)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    pages, out = folder / "pages", folder / "html"
    make = [sys.executable, str(ROOT / "docs" / "site.py"), str(pages)]
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going"]
    build += ["-b", "html", "-c", str(ROOT / "docs"), str(pages), str(out)]
    for command in (make, build):
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, timeout=400 * pace()
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html")}


def test_every_lesson_and_name_is_there(site, pages):
    names = {path.relative_to(site).with_suffix("").as_posix() for path in pages}
    lessons = {
        path.relative_to(ROOT).with_suffix("").as_posix()
        for path in (ROOT / "nbs").rglob("*.ipynb")
        if "jobs" not in path.parts and ".ipynb_checkpoints" not in path.parts
    }
    assert lessons <= names
    assert {"index", "appendices", "public_names", "teaching", "nbs/glossary"} <= names
    text = (site / "public_names.html").read_text()
    assert "Queue many runs as one job" in text  # a docstring
    assert "Run folder; made if need be" in text  # the comment beside a parameter
    part = (site / "nbs" / "01_tutorial_setup.html").read_text()
    assert "localhost:8888/lab/tree/01_tutorial_setup.ipynb" in part
    assert "default_exp" not in part and "#| export" not in part


def test_links_arrive(site, pages):
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            to = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            place = unquote(parts.fragment)
            known = pages[to].places if to in pages else None
            if not to.exists() or place and known is not None and place not in known:
                broken.append(f"{path.relative_to(site)}: {link}")
    assert not broken, broken[:20]


def test_nothing_is_fetched_from_elsewhere(site, pages):
    away = {
        f"{path.relative_to(site)}: {what}"
        for path, page in pages.items()
        for what in page.loads
        if urlsplit(what).netloc
    }
    assert not away, sorted(away)[:20]
