"""Part 3: right answers, and typical mistakes with a word of what each is told."""

from rvtutorial.container import Bind

RIGHT = {
    "3.1": [
        "/shared/rv/labels:/opt/data/labels:ro",
        "/shared/rv/labels/:/opt/data/labels/:ro",
        "/shared/rv/./labels:/opt/data/labels:ro",
        Bind("/shared/rv/labels", "/opt/data/labels", True),
    ],
    "3.2": ["--cleanenv", "-e", " --cleanenv "],
    "3.3": ["nowhere", "Nowhere"],
}
WRONG = {
    "3.1": [
        ("/shared/rv/labels:/opt/data/labels", "could still write there"),
        ("/opt/data/labels:/shared/rv/labels:ro", "yours are swapped"),
        ("/shared/rv/labels", "without a colon"),
        ("/shared/rv/labels:/opt/data/labels:readonly", "'readonly' is not one"),
        ("--bind /shared/rv/labels:/opt/data/labels:ro", "without the flag"),
        ("/shared/rv/label:/opt/data/labels:ro", "'/shared/rv/label' would appear"),
        (3, "a bind is a text"),
        (Bind("/shared/rv/labels", "/opt/data/labels"), "could still write there"),
    ],
    "3.2": [
        ("--contain", "hides folders such as your home"),
        ("--containall", "hides much more"),
        ("--no-eval", "run as shell code"),
        ("--nv", "about the GPU"),
        ("--home", "which folder is the home"),
        ("--no-home", "hides the home folder"),
        ("--bind", "shows a folder"),
        ("--env", "one by one"),
        ("cleanenv", "two dashes"),
        ("--cleanenv=banana", "takes no value"),
        ("PYTHONNOUSERSITE=1", "keeps ~/.local out"),
        ("--quiet", "is not the one"),
    ],
    "3.3": [
        ("image", "the image is read-only"),
        ("host", "without --contain"),
        ("input", "bound read-only"),
        ("cloud", "none of image, host"),
    ],
}
