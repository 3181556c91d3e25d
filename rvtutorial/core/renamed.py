"""Old names of functions and of their arguments: they work for one release and say so once."""

import functools
import sys
from collections.abc import Callable


@functools.cache
def say_once(text: str) -> None:
    "One line on standard error: Raster Vision switches Python's warnings off."
    print(text, file=sys.stderr, flush=True)


def renamed(
    function: Callable,  # Under its new name
    old: str,  # Its old name, such as "sweep.start"
    new: str,  # Its new name
) -> Callable:
    "The function under its old name."

    @functools.wraps(function)
    def call(*args, **more):
        say_once(f"{old} is now {new}; the old name goes soon")
        return function(*args, **more)

    return call


def renamed_arguments(
    **names: str,  # Old name = new name
) -> Callable:  # A decorator
    "Accept arguments of a function under their old names; TypeError for both at once."

    def decorate(function):
        @functools.wraps(function)
        def call(*args, **more):
            for old in names.keys() & more.keys():
                name, new = function.__name__, names[old]
                if new in more:
                    raise TypeError(f"{name} got {new} and {old}, its old name")
                say_once(f"{name}({old}=) is now {new}=; the old name goes soon")
                more[new] = more.pop(old)
            return function(*args, **more)

        return call

    return decorate
