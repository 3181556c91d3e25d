"How Sphinx makes the site of the pages that site.py puts together; see `make docs`."

import inspect
import json
import re

from fastcore.docments import docments

import rvtutorial

project = "rvtutorial"
author = "rvtutorial contributors"
release = rvtutorial.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["nbs/jobs", "**/.ipynb_checkpoints"]
nb_execution_mode = "off"  # the kept outputs are shown
nb_ipywidgets_js = {}  # nothing is fetched from elsewhere
nb_merge_streams = True
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]
myst_dmath_double_inline = False
suppress_warnings = ["mystnb.unknown_mime_type", "misc.highlighting_failure"]

html_theme = "sphinx_book_theme"
html_title = "rvtutorial"
html_show_search_summary = False  # would fetch pages, which a browser refuses from disk
html_show_copyright = False
html_theme_options = {
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": True,
    "use_fullscreen_button": False,
    "navigation_with_keys": False,
    "navbar_persistent": [],
}
autodoc_typehints = "none"
default_role = "code"
autodoc_member_order = "bysource"
linkcheck_ignore = [r"http://localhost:.*"]

LAB = "http://localhost:8888/lab/tree/"


def show_source(app, docname, source):
    "Notebooks without the marks of nbdev, without hidden cells, with a way to open them."
    if not docname.startswith("nbs/") or not source[0].lstrip().startswith("{"):
        return
    book, cells, solved = json.loads(source[0]), [], False
    for cell in book["cells"]:
        solved |= "".join(cell["source"]).startswith("## Solutions")
        if solved and cell["cell_type"] == "code":
            cell["metadata"]["tags"] = ["hide-cell"]  # a click shows it
        lines = "".join(cell["source"]).splitlines(keepends=True)
        marks = [line for line in lines if line.startswith("#| ")]
        if any(mark.split()[1] in ("hide", "default_exp") for mark in marks):
            continue
        cell["source"] = [line for line in lines if line not in marks]
        cells.append(cell)
    path = docname.removeprefix("nbs/") + ".ipynb"
    text = f"[Open this page in your JupyterLab]({LAB}{path}), which `make lab` starts."
    cells.insert(1, dict(cell_type="markdown", metadata={}, source=text, id="open"))
    source[0] = json.dumps(book | {"cells": cells})


def describe_parameters(app, what, name, thing, options, lines):
    "The comments beside the parameters, which Python's own documentation does not know."
    if what not in ("function", "method", "class"):
        return
    try:
        found = docments(thing, full=True)
    except (TypeError, OSError, SyntaxError):
        return
    known = inspect.signature(thing).parameters
    said = [(k, v["docment"]) for k, v in found.items() if v.get("docment")]
    if said:
        lines.append("")
    for key, comment in said:
        comment = re.sub(r"([*_|`\\])", r"\\\1", " ".join(comment.split()))
        if key in known:
            lines.append(f":param {key}: {comment}")
        elif key == "return":
            lines.append(f":returns: {comment}")


def setup(app):
    app.connect("source-read", show_source)
    app.connect("autodoc-process-docstring", describe_parameters)
