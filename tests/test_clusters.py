"What Slurm says, read from text; the commands themselves run in tests/cluster."

import math

import pytest

from rvtutorial.hpc import batch, scheduler, sites
from rvtutorial.hpc.batch import (
    _absent,
    _count,
    _explain,
    _fitting,
    _read_id,
    _read_nodes,
)
from rvtutorial.hpc.scheduler import (
    WORDS,
    _our_word,
    _read_states,
    _Watcher,
    minutes,
)
from rvtutorial.hpc.sites import Site

NODES = _read_nodes(
    "gpu|1-00:00:00|32|256000|mixed|gpu:a100:4(S:0-1),gpu:a100_1g.10gb:7\n"
    "gpu|1-00:00:00|64+|128000|allocated|(null)\n"
    "cpu|infinite|8|64000|idle|(null)\n"
)
TIRED = _read_nodes(
    "gpu|1-00:00:00|32|256000|drained|gpu:a100:8\n"
    "gpu|1-00:00:00|32|256000|down*|gpu:a100:8\n"
    "gpu|1-00:00:00|32|256000|idle|gpu:a100:4\n"
    "cpu|infinite|8|64000|idle~|(null)\n"
    "old|infinite|8|64000|down$|(null)\n"
)


@pytest.mark.parametrize(
    "text, expected",
    [
        (150, 150),
        ("150", 150),
        ("30:30", 30.5),
        ("02:30:00", 150),
        ("1-12", 36 * 60),
        ("1-12:30", 36 * 60 + 30),
        ("2-00:00:30", 2880.5),
        ("infinite", math.inf),
        ("UNLIMITED", math.inf),
    ],
)
def test_times_as_slurm_writes_them(text, expected):
    assert minutes(text) == expected


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(partition="gpu", time="1-00:00:00", gres="gpu:a100:4", cpus=32), None),
        (
            dict(partition="gpu", gres="gpu:11"),
            "gres gpu:11 is more than its nodes have",
        ),
        (dict(partition="gpu", gres="gpu:1", cpus=64), "gres gpu:1 is more"),
        (dict(partition="gpu", gres="gpu=4"), None),
        (dict(partition="gpu", gres="gpu:a100_1g.10gb:7", mem="200G"), None),
        (dict(partition="gpu", mem="260000M"), "mem 260000M.*256000 MB"),
        (dict(partition="cpu", gres="gpu:1"), "its nodes have: none"),
        (dict(partition="cpu", time="99-00:00:00"), None),
        (dict(partition="cpu,gpu", gres="gpu:1"), None),
        (dict(partition="gpu", time="1-00:01:00"), "partition gpu allows: 1-00:00:00"),
        (dict(cpus=65), "cpus 65 is more than its nodes have: 64"),
        (dict(partition="qpu"), "partition 'qpu' is not one of cpu, gpu"),
        (dict(), None),
    ],
)
def test_what_fits_no_node_is_said_with_its_field(fields, words):
    import re

    _, said = _fitting(Site(name="x", **fields), NODES)
    assert said is None if words is None else re.search(words, said), said


@pytest.mark.parametrize(
    "fields, states",
    [
        (dict(partition="gpu", gres="gpu:8"), "down, drained"),
        (dict(partition="gpu", gres="gpu:4"), None),
        (dict(partition="cpu"), None),  # asleep: Slurm wakes it
        (dict(partition="old"), "down"),
        (dict(partition="old,cpu"), None),
        (dict(gres="gpu:8"), "down, drained"),
        (dict(partition="gpu", gres="gpu:9"), None),  # none fits: `_fitting` says so
    ],
)
def test_nodes_that_fit_and_take_no_jobs(fields, states):
    fit, _ = _fitting(Site(name="x", **fields), TIRED)
    assert _absent(fit) == states


def test_a_request_for_absent_nodes_is_said_and_one_for_none_is_refused(monkeypatch):
    def answer(args, cluster=""):
        form = "gpu|1-00:00:00|32|256000|drained*|gpu:a100:8\n"
        return form if args[0] == "sinfo" and args[-1].count("|") == 5 else None

    monkeypatch.setattr(batch, "answer", answer)
    site = Site(name="x", partition="gpu", gres="gpu:8")
    with pytest.warns(UserWarning, match="every node that fits is drained"):
        batch._refuse_request(site)
    with pytest.raises(scheduler.SlurmError, match="not queued: gres gpu:9.*site x"):
        batch._refuse_request(site.replace(gres="gpu:9"))


@pytest.mark.parametrize(
    "said, field",
    [
        ("Invalid account or account/partition combination specified", "account"),
        ("invalid partition specified: gppu", "partition"),
        ("Invalid qos specification", "qos"),
        ("Invalid generic resource (gres) specification", "gres"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "time"),
        ("Memory specification can not be satisfied", "mem"),
        ("CPU count per node can not be satisfied", "cpus"),
        ("Node count specification invalid", "nodes"),
        (
            "Requested node configuration is not available",
            "gres, mem, cpus or partition",
        ),
        ("sbatch: unrecognized option '--no-such'", "extra"),
    ],
)
def test_a_refusal_names_the_field(said, field):
    assert _explain(f"sbatch: error: {said}") == f"Change {field} in the site file."


def test_a_refusal_for_too_many_jobs_blames_no_field():
    said = "Job violates accounting/QOS policy (job submit limit, user's size limits)"
    assert "submit fewer" in _explain(said)
    assert _explain("something new") == ""


@pytest.fixture
def slurm(monkeypatch):
    "What ask_slurm answers, and what it was asked."
    asked, replies = [], []

    def ask(ids):
        asked.append(ids)
        reply = replies.pop(0) if replies else {}
        if isinstance(reply, Exception):
            raise reply
        return reply

    monkeypatch.setattr(scheduler, "_ask_slurm", ask)
    return asked, replies


def test_a_job_that_is_over_is_not_asked_about_again(slurm):
    asked, replies = slurm
    watcher = _Watcher(every=0)
    replies += [{("1", 0): ("succeeded", ""), ("2", 0): ("running", "")}] * 2
    assert watcher.states({"1", "2"})["1", 0] == ("succeeded", "")
    assert watcher.states({"1", "2"})["1", 0] == ("succeeded", "")
    assert asked == [["1", "2"], ["2"]]
    watcher.states({"1"})
    assert len(asked) == 2


def test_a_job_nobody_has_asked_about_is_unknown_not_lost(slurm):
    asked, replies = slurm
    watcher = _Watcher(every=60)
    replies += [{("1", 0): ("running", "")}, {("2", 0): ("queued", "")}]
    watcher.states({"1"})
    assert watcher.states({"2"}) == {("2", None): ("unknown", "")}
    assert watcher.states({"2"}, now=True)["2", 0] == ("queued", "")


def test_silence_is_asked_less_and_less_often(slurm, monkeypatch):
    asked, replies = slurm
    clock = [1000.0]
    monkeypatch.setattr(scheduler.time, "monotonic", lambda: clock[0])
    watcher = _Watcher(every=5)
    replies += [scheduler.SlurmError("silent")] * 100
    for _ in range(600):
        said = watcher.states({"1"})
        clock[0] += 1
    assert said == {("1", None): ("unknown", "Slurm does not answer")}
    assert len(asked) < 15 and watcher.silence > 590
    replies.clear()
    replies.append({("1", 0): ("running", "")})
    clock[0] += 60
    assert watcher.states({"1"})["1", 0] == ("running", "") and watcher.silence == 0


NOTICE = (
    "Welcome to FARM!\n* maintenance | 2026-12-01 | 08:00 | all | nodes | down *\n\n"
)


def test_nodes_among_notices_and_with_large_numbers():
    line = "big|2-00:00:00|1K|2060000|idle|(null)"
    told = _read_nodes(
        NOTICE + line + "\n" + NOTICE + "gpu|1:00:00|1.5K+|96000+|mix|gpu:2\n"
    )
    assert [(n["partition"], n["cpus"], n["mem"]) for n in told] == [
        ("big", 1024, 2_060_000), ("gpu", 1536, 96_000),
    ]  # fmt: skip
    assert _fitting(Site(name="x", cpus=1000), told)[1] is None
    assert "cpus 2000 is more" in _fitting(Site(name="x", cpus=2000), told)[1]
    assert _read_nodes(NOTICE) == []


@pytest.mark.parametrize(
    "text, number",
    [("64", 64), ("64+", 64), ("1K", 1024), ("1.5K", 1536), ("2M", 2 * 1024**2)],
)
def test_numbers_as_slurm_prints_them(text, number):
    assert _count(text) == number
    with pytest.raises(ValueError, match="no number"):
        _count(f"x{text}")


@pytest.mark.parametrize(
    "text, job",
    [
        ("123\n", "123"),
        ("123;gpu\n", "123;gpu"),
        (NOTICE + "123;gpu\n" + NOTICE, "123;gpu"),
        ("Submitted batch job 123\n", "123"),
        ("Submitted batch job 123 on cluster gpu\n", "123;gpu"),
        ("123_4\n", "123"),
        ("123+0\n", "123"),
        ("account 4711 is charged\n123\n", "123"),
        (NOTICE, None),
        ("", None),
        ("Submitted batch job", None),
    ],
)
def test_the_number_of_a_job_is_found(text, job):
    assert _read_id(text) == job


@pytest.mark.parametrize(
    "told, job",
    [
        ("17\n221|a-job\n", "221"),
        ("17|x\n221|a-job\n", "221"),
        ("3 nodes are down\n221|a-job\n", "221"),
        ("221\n", ""),
        ("221|another\n", ""),
        ("3 nodes are down\n", ""),
        ("", ""),
        (None, None),
    ],
)
def test_a_job_is_found_by_its_name(monkeypatch, told, job):
    "Only a line with the name counts: a number alone may be a notice of the site."
    monkeypatch.setattr(
        scheduler,
        "answer",
        lambda args, *cluster: told if args[0] == "squeue" else None,
    )
    assert scheduler.find_job("a-job") == job
    if job:
        assert _read_id("17\n221\n5\n", "a-job") == "221"
    assert _read_id("17\n221\n") == "221"


@pytest.mark.parametrize(
    "state, word, note",
    [
        ("CANCELLED by 1000", "cancelled", ""),
        ("CANCELLED+", "cancelled", ""),
        (" RUNNING ", "running", ""),
        ("LAUNCH_FAILED", "failed", ""),
        ("REVOKED", "unknown", "another cluster"),
        ("BRAND_NEW", "unknown", "'BRAND_NEW'"),
        ("", "unknown", "''"),
    ],
)
def test_states_in_our_words(state, word, note):
    ours, said = _our_word(state)
    assert ours == word and note in said and bool(said) == bool(note)
    assert "REVOKED" not in WORDS  # no job is over because its sibling has begun


def test_of_two_lines_of_a_federation_the_one_at_work_counts():
    lines = ["7|0|REVOKED|None", "7|0|RUNNING|None"]
    for order in (lines, lines[::-1]):
        assert _read_states("\n".join(order)) == {("7", 0): ("running", "")}


@pytest.mark.parametrize(
    "text, members",
    [("3", [3]), ("[0-2]", [0, 1, 2]), ("[0-2%2]", [0, 1, 2]), ("[1,4-5]", [1, 4, 5]),
     ("[0-6:3%1]", [0, 3, 6]), ("[0-1,...]", [0, 1]), ("[]", [])],
)  # fmt: skip
def test_members_that_wait_together_are_one_line(text, members):
    told = _read_states(f" 7 | {text} | PENDING | Priority \n")
    assert told == {("7", m): ("queued", "Priority") for m in members}


def test_accounts_among_notices(monkeypatch):
    rows = "crops|gpu|normal,high\ncrops||normal\n"
    monkeypatch.setattr(batch, "answer", lambda args, *cluster: NOTICE + rows + NOTICE)
    mine = Site(name="x", account="crops", qos="high")
    assert batch._not_yours(mine) is None
    said = batch._not_yours(mine.replace(account="corps"))
    assert said == "account 'corps' is not one of yours: crops"
    said = batch._not_yours(mine.replace(qos="gold"))
    assert said == "qos 'gold' is not one of yours: high, normal"


def test_a_job_in_an_unknown_state_is_asked_about_again(slurm):
    asked, replies = slurm
    watcher = _Watcher(every=0)
    replies += [{("1", 0): ("unknown", "new")}] * 2
    watcher.states({"1"})
    watcher.states({"1"})
    assert asked == [["1"], ["1"]]


@pytest.mark.parametrize(
    "text, most",
    [(None, 1001), ("", 1001), ("MaxArraySize            = 50001\n", 50001)],
)
def test_how_many_an_array_may_have(monkeypatch, text, most):
    monkeypatch.setattr(sites, "answer", lambda args, *cluster: text and NOTICE + text)
    assert Site(name="x").array_limit() == most
