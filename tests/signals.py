"Signals in tests that were started in the background, where a shell has them ignored."

import contextlib
import signal

NUMBERS = (signal.SIGINT, signal.SIGHUP)


def heeded() -> None:
    "For `preexec_fn`: a program notices Ctrl-C and a closed terminal, as in the foreground."
    for number in NUMBERS:
        signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def heeding():
    "The same for this process, while the context lasts."
    before = {number: signal.getsignal(number) for number in NUMBERS}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
