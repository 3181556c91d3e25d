"""Words that were meant, values as texts, natural order, and where the package's own files lie."""

import difflib
import os
import re
from pathlib import Path


MANY = 40  # words that are too many for one sentence


def near_match(
    word: str,  # What was written
    known,  # What could have been meant
) -> str:  # A question with the closest word; or the list of all, or of the closest ten
    "A hint for a word that is not known."
    close = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    if len(known) > MANY:
        close = difflib.get_close_matches(str(word), list(known), n=10, cutoff=0)
        return f"of {len(known)} the closest are {', '.join(close)}"
    return f"known are {', '.join(known) or 'none'}"


def read_classes(
    text: str | list,  # Such as building:#FF0000,background, or a list of such names
) -> dict[str, str | None]:  # Name -> colour, or None
    """The classes that a text names, in its order, and the colours it gives them.

    Raises ValueError for fewer than two, a name twice, `null` before others, and for what
    is no colour.
    """
    parts = text.split(",") if isinstance(text, str) else list(text)
    pairs = [part.partition(":#") for part in parts if part.strip()]
    names = [name.strip() for name, *_ in pairs]
    for name, (_, mark, digits) in zip(names, pairs, strict=True):
        if mark and not re.fullmatch("[0-9A-Fa-f]{6}", digits.strip()):
            raise ValueError(
                f"the colour of class {name} must be six hexadecimal digits such as "
                f"#FF0000, got #{digits}"
            )
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(
            f"classes must be two or more different names such as "
            f"building,background, got {','.join(names)!r}"
        )
    if "null" in names[:-1]:
        raise ValueError(
            f"null stands for pixels without a label and is the last class, got "
            f"{','.join(names)}: leave it out, it is added by itself"
        )
    colours = [f"#{digits.strip()}" if digits else None for *_, digits in pairs]
    return dict(zip(names, colours, strict=True))


def natural_key(text) -> list:
    "Sort key that puts img9 before img10."
    parts = re.split(r"(\d+)", str(text))
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts if p]


def home_folder() -> Path:
    "RVTUTORIAL_HOME, else the checkout around the current folder, else that folder."
    if os.environ.get("RVTUTORIAL_HOME"):
        return Path(os.environ["RVTUTORIAL_HOME"]).expanduser().resolve()
    own = re.compile(r"^lib_name\s*=\s*rvtutorial\s*$", re.MULTILINE)
    for folder in (Path.cwd(), *Path.cwd().parents):
        settings = folder / "settings.ini"
        if settings.is_file() and own.search(settings.read_text()):
            return folder
    return Path.cwd()


def packaged(
    kind: str,  # jobs, sites or definitions (of images)
    name: str,  # Name of the file, with or without its suffix
) -> Path:  # In the checkout if there is one, else in the installed package
    """A job notebook, site file or image's definition that comes with the package.

    Raises FileNotFoundError, with the names there are, when this one is not among them.
    """
    import rvtutorial

    inside = Path(rvtutorial.__file__).parent
    places = {
        "jobs": (inside.parent / "nbs" / "jobs", inside / "_jobs", ".ipynb"),
        "sites": (inside.parent / "slurm" / "sites", inside / "_sites", ".toml"),
        "definitions": (inside.parent / "apptainer", inside / "_apptainer", ".def"),
    }
    if kind not in places:
        raise ValueError(f"kind must be one of {', '.join(places)}, got {kind!r}")
    *folders, suffix = places[kind]
    known = {p.stem: p for f in reversed(folders) for p in f.glob("*" + suffix)}
    name = str(name).removesuffix(suffix)
    if name not in known:
        hint = near_match(name, sorted(known))
        raise FileNotFoundError(f"the package has no {kind[:-1]} {name!r}; {hint}")
    return known[name]


def own_sites() -> Path:  # Searched before the package's sites
    "The folder of the user's own site files, in the configuration folder."
    config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(config).expanduser() / "rvtutorial" / "sites"


def site_data(site: str) -> str | None:
    "The data folder that a site file names, if there is one."
    import tomllib

    path = Path(site) if site.endswith(".toml") else own_sites() / f"{site}.toml"
    try:
        path = path if path.is_file() else packaged("sites", site)
        return tomllib.loads(path.read_text()).get("data")
    except FileNotFoundError:
        return None


def as_text(value) -> str:
    "A value as one would write it on a command line."
    if isinstance(value, tuple | list):
        return ",".join(as_text(item) for item in value)
    return (
        str(value).lower() if value is None or isinstance(value, bool) else str(value)
    )
