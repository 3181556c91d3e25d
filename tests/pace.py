"""How fast this machine is just now, for tests that set a limit on time.

A limit in seconds holds on the machine where it was set. A machine that is shared, or an
older one, takes twice as long for the same work, which is no fault of the code under
test: such limits are multiplied by `pace()`.
"""

import json
import time

import numpy as np

FAST = 0.06  # CPU seconds of `_work` where the limits of the tests were set


def _work():
    "What the product does most: interpreted Python, JSON, and arrays."
    found = {}
    for i in range(120_000):
        found[f"{i % 977}"] = found.get(f"{i % 977}", 0) + i
    for _ in range(20):
        found = json.loads(json.dumps(found))
    table = np.random.default_rng(0).random((400, 2000))
    for _ in range(3):
        np.sort(table, axis=1).cumsum(0)


def pace():
    """By how much a limit grows: 2 on a quick machine, more on a slow one.

    How many times longer a fixed piece of work takes now than on a quick machine, 1 or
    more; and twice that, for the pace of a shared machine changes within seconds.
    """
    took = []
    for _ in range(3):
        begun = time.process_time()
        _work()
        took.append(time.process_time() - begun)
    return 2 * max(1.0, sorted(took)[1] / FAST)
