"""Part 3: right answers, and typical mistakes with a word of what each is told."""

import shlex

from rvtutorial.container import Bind, exec_command, readable

SIF, RESULTS = "/shared/rv/rastervision.sif", "/shared/rv/runs/mine"
INPUT = "/fast/you/scenes:/opt/data/input"
PROGRAM = ["python", "-c", "import torch"]


def command(program=PROGRAM, binds=(f"{INPUT}:ro", RESULTS), image=SIF, **changes):
    "The command of exercise 3.4, or another one."
    given = dict(workdir="/fast/you", pwd=RESULTS, nv=False) | changes
    return exec_command(image, program, binds, **given)


def with_late(*flags):
    "The command with its flags behind the image."
    words = command()
    moved = [word for word in words if word not in flags]
    at = moved.index(SIF) + 1
    return [*moved[:at], *flags, *moved[at:]]


BY_HAND = f"""apptainer exec -e -c -B {INPUT}:ro,{RESULTS} --pwd={RESULTS}/ \\
    --workdir /fast/you {SIF} python -c 'import torch'
"""

RIGHT = {
    "3.1": [
        "/shared/rv/labels:/opt/data/labels:ro",
        "/shared/rv/labels/:/opt/data/labels/:ro",
        "/shared/rv/./labels:/opt/data/labels:ro",
        Bind("/shared/rv/labels", "/opt/data/labels", True),
    ],
    "3.2": ["--cleanenv", "-e", " --cleanenv "],
    "3.3": ["nowhere", "Nowhere"],
    "3.4": [
        command(),
        tuple(command()),
        command(binds=[RESULTS, f"{INPUT}/:ro"]),
        command(binds=[f"{RESULTS}:{RESULTS}", Bind(*INPUT.split(":"), readonly=True)]),
        [word for word in command() if word != "--no-eval"],
        shlex.join(command()),
        readable(command()),
        f"!{BY_HAND}",
        BY_HAND.replace("--pwd", "--cwd"),
    ],
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
    "3.4": [
        (command(binds=[f"{INPUT}:ro"]), "gone when the container ends"),
        (command(binds=[INPUT, RESULTS]), "a job could damage them"),
        (command(binds=[RESULTS]), "should appear under /opt/data/input"),
        (BY_HAND.replace("/opt/data/input:", ""), "absolute path below /"),
        (command(binds=["/opt/data/input:/fast/you/scenes:ro", RESULTS]), "swapped"),
        (command(binds=[f"{INPUT}:ro", f"{RESULTS}:/out"]), "would be in /out"),
        (
            command(binds=[f"{INPUT}:ro", f"{RESULTS}:{RESULTS}:ro"]),
            "no result can be written",
        ),
        (
            command(binds=[f"{INPUT}:ro", RESULTS, "/shared/rv"]),
            "/shared/rv is bound too",
        ),
        (command(nv=True), "unless nv=False"),
        (command(contain=False), "without --contain"),
        (command(cleanenv=False), "without --cleanenv"),
        (command(workdir=None), "a small piece of memory"),
        (command(workdir="/tmp"), "--workdir is /tmp, and should be /fast/you"),
        (command(pwd=None), "does not start in the folder"),
        (command(pwd="/opt/data/input"), "--pwd is /opt/data/input, and"),
        (command(home="/fast/you"), "--home is one flag more"),
        (command(env={"A": 1}), "--env is one flag more"),
        (with_late("--contain"), "--contain stands after the image"),
        ([*command(), "--nv"], "--nv stands after the image"),
        (command(['python -c "import torch"']), "the program is given as one text"),
        (command(["python", "-c", "import", "torch"]), "-c takes one word"),
        (command(["python", "-c", "import rastervision"]), "and should be python -c"),
        (command()[:-3], "no program"),
        (command()[:-4], "nothing is there"),
        (command(image="/shared/rv.sif"), "/shared/rv.sif stands there"),
        (["apptainer", "run", *command()[2:]], "begins with the words"),
        ("apptainer exec 'x", "a shell cannot read this: no closing quotation"),
        ([*command()[:-1], 3], "each word of a command is a text, not 3"),
        ({"image": SIF}, "a list of texts is asked for"),
        (BY_HAND.replace("-B", "--mount"), "write these folders as --bind"),
    ],
}
