"""What all parts have in common: how long they take to read, and links to the glossary.

    python tests/lesson_form.py [--write]

prints minutes (words at 200 a minute, and half a minute for each code cell); `--write` puts them
into the parts, and links the first use of each word of the glossary.
"""

import json
import re
import sys
from pathlib import Path

NBS = Path(__file__).parents[1] / "nbs"
PARTS = sorted(NBS.glob("0*.ipynb"))
EVERYDAY = {
    "account",
    "attribute",
    "job",
    "network",
    "node",
    "parameter",
    "run",
    "site",
    "step",
    "training",
}
STATED = re.compile(r"\| reading \| (\w+) minutes \|")
ASKED = re.compile(r"\| exercises \| (\d+), about five minutes each \|")


def cells(part: Path) -> list[tuple[str, str]]:
    "Kind and text of the cells of a notebook, up to the solutions."
    found = []
    for cell in json.loads(part.read_text())["cells"]:
        text = "".join(cell["source"])
        if text.startswith("## Solutions"):
            break
        found.append((cell["cell_type"], text))
    return found


def minutes(part: Path) -> int:
    "Reading time of a part without its exercises, to five minutes."
    words = lines = 0
    for kind, text in cells(part):
        if kind == "markdown":
            words += len(re.sub(r"\]\([^)]*\)", "]", text).split())
        elif (
            "#| hide" not in text and "default_exp" not in text and "= ..." not in text
        ):
            lines += 1
    return max(5, 5 * round((words / 200 + lines / 2) / 5))


def exercises(part: Path) -> int:
    "How many questions a part asks."
    return sum("= ..." in text for kind, text in cells(part) if kind == "code")


def words() -> dict[str, str]:
    "Anchor of each word of the glossary, and a pattern of its forms in a text."
    found = {}
    text = (NBS / "glossary.md").read_text()
    for name, body in re.findall(r"^### (.+)\n(.+)", text, re.M):
        short = re.match(r"([A-Z][A-Za-z]*[A-Z])\b[:,]", body)
        forms = [re.escape(name)] + ([short[1]] if short else [])
        case = "" if name[0].isupper() else "(?i:"
        pattern = "|".join(forms) if not case else f"{case}{'|'.join(forms)})"
        if name not in EVERYDAY:
            found[name.lower().replace(" ", "-")] = (
                rf"(?<!from )\b(?:{pattern})s?\b(?! Vision| job| script)"
            )
    return found


def hidden(text: str) -> list[tuple[int, int]]:
    "Where a text is no prose: headings, code, links, tables' first lines."
    parts = (
        r"^#[^\n]*",
        r"```.*?```",
        r"`[^`\n]*`",
        r"\[[^\]]*\]\([^)]*\)",
        r"^\|[^\n]*",
    )
    every = "|".join(f"(?:{part})" for part in parts)
    return [m.span() for m in re.finditer(every, text, re.M | re.S)]


def first_use(texts: list[str], pattern: str) -> tuple[int, int, int] | None:
    "Number of the text in which a word stands first as prose, and where."
    for i, text in enumerate(texts):
        no_prose = hidden(text)
        for m in re.finditer(pattern, text):
            if not any(a <= m.start() < b for a, b in no_prose):
                return i, *m.span()
    return None


def linked(texts: list[str], anchor: str) -> bool:
    "Whether one of the texts links a word to the glossary."
    return any(f"](glossary.md#{anchor})" in text for text in texts)


def link_words(part: Path) -> None:
    "Link the first use of each word of the glossary, where none is."
    book = json.loads(part.read_text())
    end = next(
        i
        for i, cell in enumerate(book["cells"])
        if "".join(cell["source"]).startswith("## Solutions")
    )
    prose = [cell for cell in book["cells"][1:end] if cell["cell_type"] == "markdown"]
    texts = ["".join(cell["source"]) for cell in prose]
    for anchor, pattern in words().items():
        if linked(texts, anchor) or not (at := first_use(texts, pattern)):
            continue
        i, a, b = at
        link = f"[{texts[i][a:b]}](glossary.md#{anchor})"
        texts[i] = texts[i][:a] + link + texts[i][b:]
    for cell, text in zip(prose, texts, strict=True):
        cell["source"] = text.splitlines(keepends=True)
    part.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    for part in PARTS:
        print(f"{part.stem:<34}{minutes(part):>4} minutes, {exercises(part)} exercises")
        if "--write" in sys.argv:
            text = STATED.sub(
                f"| reading | {minutes(part)} minutes |", part.read_text()
            )
            many = f"| exercises | {exercises(part)}, about five minutes each |"
            part.write_text(ASKED.sub(many, text))
            link_words(part)
