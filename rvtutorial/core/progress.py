"""The progress line of long work, by tqdm: a line of text now and then, in logs and notebooks alike.

Written by hand: plumbing of all that takes long.
"""

import io
import time
from collections.abc import Callable

from tqdm import tqdm


class ProgressLine(tqdm):
    """How far a piece of work is, how long it has taken and how long it will take.

    A tqdm whose `display` hands a line of text to `out`: the log of a job and a saved
    notebook hold lines, where a bar that is drawn again and again becomes noise. `reach`
    says where the work stands; `update` and iteration work as in tqdm.
    """

    monitor_interval = 0  # without tqdm's thread, which would redraw a bar

    def __init__(
        self,
        total: float | None,  # Of the work, in any unit; None: unknown
        out: Callable[[str], None] = print,  # Takes a line
        every: float = 30.0,  # Seconds between two lines
        initial: float = 0,  # What was done before
        form: str = "{desc}  {elapsed} passed, {remaining} left",  # As tqdm's bar_format
        **options,  # Others of tqdm, such as unit and unit_scale
    ):
        self.out = out
        options |= dict(total=total, initial=initial, bar_format=form)
        super().__init__(
            mininterval=every,
            miniters=0,
            smoothing=0,  # the time left follows from the mean speed
            delay=1e-9,  # no line before something is done
            leave=False,
            file=io.StringIO(),  # where tqdm would draw
            **options,
        )

    def display(self, msg=None, pos=None):
        "One line; none when tqdm wants to wipe its bar (an empty `msg`)."
        if msg is None:
            self.out(str(self))

    def reach(
        self,
        done: float,  # Of the total
        text: str = "",  # The line begins with it (`desc`)
        now: bool = False,  # Say it at once
    ) -> None:
        "The work stands here; a line is said when it is time for one."
        self.set_description_str(text, refresh=False)
        if not now:
            self.update(done - self.n)
            return
        self.n, self.last_print_t = done, time.time()
        self.refresh()
