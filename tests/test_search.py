"""What proposes trials: distributions, random draws, rungs, Optuna, the next round."""

import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rvtutorial.sweeps.space import (
    JOURNAL,
    KINDS,
    Distribution,
    Halving,
    Journal,
    _around,
    _chance,
    _values_between,
    draws,
    propose,
)

RATES = Distribution("log_uniform_values", 1e-5, 1e-1)

# ------------------------------------------------------------- distributions

GIVEN = {
    "int_uniform": {"min": 2, "max": 9},
    "uniform": {"min": 0.5, "max": 2.0},
    "q_uniform": {"min": 0.5, "max": 2.0, "q": 0.25},
    "log_uniform": {"min": -5, "max": 1},
    "log_uniform_values": {"min": 1e-4, "max": 10.0},
    "q_log_uniform": {"min": 0, "max": 4, "q": 2},
    "q_log_uniform_values": {"min": 1, "max": 64, "q": 4},
    "inv_log_uniform": {"min": -1, "max": 3},
    "inv_log_uniform_values": {"min": 1e-3, "max": 1.0},
    "normal": {"mu": 3, "sigma": 2},
    "q_normal": {"mu": 3, "sigma": 2, "q": 0.5},
    "log_normal": {"mu": 1, "sigma": 0.5},
    "q_log_normal": {"mu": 2, "sigma": 0.5, "q": 1},
}


def reference(kind, rng, n):
    "The same distribution by numpy, from its definition."
    g = GIVEN[kind]
    low, high = g.get("min"), g.get("max")
    plain = kind.removeprefix("q_")
    x = {
        "int_uniform": lambda: rng.integers(low, high + 1, n).astype(float),
        "uniform": lambda: rng.uniform(low, high, n),
        "log_uniform": lambda: np.exp(rng.uniform(low, high, n)),
        "log_uniform_values": lambda: np.exp(rng.uniform(*np.log([low, high]), n)),
        "inv_log_uniform": lambda: 1 / np.exp(rng.uniform(low, high, n)),
        "inv_log_uniform_values": lambda: (
            1 / np.exp(rng.uniform(-np.log(high), -np.log(low), n))
        ),
        "normal": lambda: rng.normal(g["mu"], g["sigma"], n),
        "log_normal": lambda: rng.lognormal(g["mu"], g["sigma"], n),
    }[plain]()
    return np.round(x / g["q"]) * g["q"] if kind != plain else x


@pytest.mark.parametrize("kind", GIVEN)
def test_every_distribution_is_what_its_name_says(kind):
    "By the largest distance between two distribution functions (Kolmogorov-Smirnov)."
    from scipy.stats import ks_2samp

    space = Distribution.of({"distribution": kind, **GIVEN[kind]})
    ours = [space.at(_chance(0, i, "x")) for i in range(4000)]
    theirs = reference(kind, np.random.default_rng(1), 4000)
    assert ks_2samp(ours, theirs).statistic < 0.04
    line = [space.at(u) for u in np.linspace(0, 1 - 1e-9, 50)]
    assert line == sorted(line)


def test_all_documented_distributions_are_known():
    assert set(GIVEN) | {"constant", "categorical"} == set(KINDS)
    assert Distribution.of({"distribution": "constant", "value": 3}).at(0.7) == 3
    weighted = Distribution.of({"values": ["a", "b"], "probabilities": [0.9, 0.1]})
    found = [weighted.at(_chance(0, i, "x")) for i in range(1000)]
    assert 860 < found.count("a") < 940
    assert Distribution.of({"min": 1, "max": 3}).kind == "int_uniform"
    assert Distribution.of({"min": 1, "max": 3.0}).kind == "uniform"


@given(st.floats(0, 1), st.floats(1e-9, 1e3), st.floats(1.001, 1e4))
def test_values_stay_within_their_ends(u, low, factor):
    high = low * factor
    for kind in ("uniform", "log_uniform_values", "inv_log_uniform_values"):
        value = Distribution(kind, low, high).at(u)
        assert low * (1 - 1e-3) <= value <= high * (1 + 1e-3)
    assert 3 <= Distribution("int_uniform", 3, 9).at(u) <= 9


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"distribution": "beta", "min": 0, "max": 1}, "no distribution 'beta'.*there are constant"),
        ({"distribution": "uniform", "min": 1}, "uniform needs a number for max"),
        ({"min": 5, "max": 5}, "min must be below max, got 5 and 5"),
        ({"min": True, "max": 5}, "needs a number for min"),
        ({"distribution": "log_uniform_values", "min": -1, "max": 5}, "at or below 0"),
        ({"distribution": "int_uniform", "min": 1, "max": 2.5}, "whole numbers"),
        ({"distribution": "normal", "mu": 1, "sigma": 0}, "above 0"),
        ({"min": 1, "max": 2, "maximum": 3}, "no 'maximum'; did you mean 'max'"),
        ({"values": [1, 2], "probabilities": [0.5, 0.6]}, "add up to 1"),
        ({"values": [1, 2], "probabilities": [1]}, "as many probabilities"),
        ({"distribution": "constant"}, "constant needs value"),
        ({"mu": 1}, "write value, values, or min and max; found mu"),
    ],
)  # fmt: skip
def test_impossible_distributions_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Distribution.of(wrong)


# ------------------------------------------------------------- random draws


def test_chance_is_even_and_its_values_are_fixed():
    found = np.array([_chance(0, i, "lr") for i in range(20000)])
    assert abs(found.mean() - 0.5) < 0.01 and 0 <= found.min() < found.max() < 1
    assert np.bincount((found * 10).astype(int)).min() > 1800
    # these numbers are in sweeps that people have run: they may never change
    assert [round(_chance(*key), 6) for key in [(0, 0, "lr"), (1, 7, "batch_sz")]] == [
        0.944398,
        0.126077,
    ]


def test_trial_37_is_the_same_alone_in_company_and_in_another_process():
    spaces = {"lr": RATES, "batch_sz": Distribution.of({"values": [4, 8]})}
    alone = draws(spaces, 38, seed=5)[37]
    more = {**spaces, "seed": Distribution.of({"min": 0, "max": 9})}
    assert draws(more, 38, seed=5)[37]["lr"] == alone["lr"]
    code = (
        "from rvtutorial.sweeps.space import Distribution, draws\n"
        "lr = Distribution('log_uniform_values', 1e-5, 1e-1)\n"
        "print(draws({'lr': lr}, 38, seed=5)[37])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == str({"lr": alone["lr"]})


def test_more_draws_change_none_of_the_first_and_none_comes_twice():
    few = Distribution.of({"values": [1, 2, 3]})
    assert draws({"lr": RATES}, 9)[:4] == draws({"lr": RATES}, 4)
    found = draws({"seed": few, "batch_sz": few}, 9)
    assert len({tuple(t.values()) for t in found}) == 9
    with pytest.raises(ValueError, match="only 9 different trials, not 10"):
        draws({"seed": few, "batch_sz": few}, 10)
    assert draws({"lr": RATES}, 4, seed=1) != draws({"lr": RATES}, 4, seed=2)


# ------------------------------------------------------------- rungs


@pytest.mark.parametrize(
    "given, epochs, rungs",
    [
        ({"min_iter": 3}, 100, (3, 9, 27, 81, 100)),
        ({"min_iter": 3}, 27, (3, 9, 27)),
        ({"min_iter": 1, "eta": 2}, 8, (1, 2, 4, 8)),
        ({"max_iter": 27, "s": 2}, 27, (3, 9, 27)),
        ({"max_iter": 27, "s": 9}, 27, (1, 3, 9, 27)),
        ({"min_iter": 2, "eta": 1.5}, 8, (2, 3, 4, 6, 8)),
    ],
)
def test_rungs(given, epochs, rungs):
    assert Halving.of({"type": "hyperband", **given}, epochs).rungs == rungs


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"type": "median", "min_iter": 1}, "type must be hyperband"),
        ({"min_iter": 8}, "no rung lies before the end: a trial has 8 epochs"),
        ({"min_iter": 0}, "min_iter must be a whole number from 1"),
        ({"min_iter": 2, "max_iter": 8}, "either min_iter, or max_iter and s"),
        ({}, "either min_iter, or max_iter and s"),
        ({"max_iter": 8}, "max_iter needs s"),
        ({"min_iter": 2, "s": 2}, "s belongs to max_iter"),
        ({"min_iter": 2, "eta": 1}, "eta must be a number above 1"),
        ({"min_iter": 2, "strict": 1}, "strict must be true or false"),
        ({"min_itr": 2}, "did you mean 'min_iter'"),
    ],
)
def test_impossible_ladders_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Halving.of(wrong, 8)


def test_sizes_and_epochs_of_a_ladder():
    assert Halving((2, 6, 8)).sizes(7) == [7, 3, 1]
    assert Halving((2, 6, 8), strict=True).sizes(7) == [7, 2, 1]
    assert Halving((2, 6, 8)).epochs(7) == 7 * 2 + 3 * 4 + 1 * 2
    assert Halving((1, 2)).sizes(1) == [1, 1]


def test_promotion_is_deterministic_and_never_takes_a_failed_trial():
    scores = {"a": 0.5, "b": None, "c": 0.7, "d": 0.5, "e": math.nan}
    assert Halving((1, 2)).best(scores) == ["a", "c"]
    assert Halving((1, 2), eta=1.1).best(scores) == ["a", "c", "d"]
    assert Halving((1, 2)).best({"a": None}) == []


@given(st.integers(1, 30), st.integers(0, 1000))
def test_a_replay_spends_what_the_ladder_says(n, seed):
    rng = np.random.default_rng(seed)
    curves = {str(i): list(rng.random(8)) for i in range(n)}
    ladder = Halving((1, 3, 8))
    name, spent = ladder.replay(curves)
    assert spent == ladder.epochs(n) and name in curves


# ------------------------------------------------------------- Optuna's journal


def test_a_trial_keeps_its_values_and_others_get_their_own(tmp_path):
    names = [f"trial-{i}" for i in range(4)]
    journal = Journal(tmp_path)
    journal.enlist(names)
    journal.enlist(names)
    spaces = {
        "lr": RATES,
        "batch_sz": Distribution.of({"values": [4, 8]}),
        "epochs": Distribution.of({"min": 2, "max": 5}),
        "max_windows": Distribution.of(
            {"distribution": "q_normal", "mu": 9, "sigma": 2}
        ),
    }
    first = [Journal(tmp_path).ask(name, spaces) for name in names]
    assert first == [Journal(tmp_path).ask(name, spaces) for name in names]
    assert len({found["lr"] for found in first}) == 4
    assert all(
        type(found["epochs"]) is int and found["batch_sz"] in (4, 8) for found in first
    )
    journal.tell({names[0]: 0.7, names[1]: None})
    journal.tell({names[0]: 0.1, names[1]: 0.9})  # too late
    assert journal.ask(names[0], spaces) == first[0]
    study = Journal(tmp_path).study
    assert len(study.trials) == 4 and study.best_value == 0.7
    with pytest.raises(KeyError, match="no trial trial-9"):
        journal.ask("trial-9", spaces)


def test_killed_between_two_values_it_asks_only_for_the_rest(tmp_path):
    Journal(tmp_path).enlist(["a"])
    lr = Journal(tmp_path).ask("a", {"lr": RATES})["lr"]
    epochs = Distribution.of({"min": 1, "max": 9})
    both = Journal(tmp_path).ask("a", {"lr": RATES, "epochs": epochs})
    assert both["lr"] == lr and len(Journal(tmp_path).study.trials) == 1


def test_many_at_one_time_and_half_a_line(tmp_path):
    names = [f"trial-{i}" for i in range(6)]
    Journal(tmp_path).enlist(names)

    def ask(name):
        return Journal(tmp_path).ask(name, {"lr": RATES})

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(ask, names))
    assert len({f["lr"] for f in found}) == 6
    with open(tmp_path / JOURNAL, "ab") as file:
        file.write(b'{"op_code": 5, "tri')  # killed while it wrote
    assert [ask(name) for name in names] == found
    assert not (tmp_path / f"{JOURNAL}.lock").exists()


def test_it_learns(tmp_path):
    "Over three searches, later trials lie nearer to the best rate than early ones."
    off = []
    for seed in range(3):
        folder = tmp_path / str(seed)
        folder.mkdir()
        journal = Journal(folder)
        journal.enlist([str(i) for i in range(20)])
        for i in range(20):
            lr = journal.ask(str(i), {"lr": RATES}, seed, startup=5)["lr"]
            off.append(abs(math.log10(lr / 3e-3)))
            journal.tell({str(i): 1 - off[-1]})
    off = np.array(off).reshape(3, 20)
    assert off[:, 10:].mean() < 0.8 * off[:, :5].mean()
    assert off.min(axis=1).max() < 0.4


# ------------------------------------------------------------- the next round


def test_between_gives_round_numbers_strictly_between():
    assert _values_between(1e-3, 1e-2) == [2e-3, 5e-3]
    assert _values_between(1e-3, 1.5e-3) == []
    assert _values_between(4, 8, log=False, whole=True) == [6]
    assert _values_between(4, 5, log=False, whole=True) == []
    assert _values_between(8, 64, whole=True) == [16, 32]


@given(st.floats(1e-8, 1e3), st.floats(1.001, 1e5))
def test_between_never_gives_an_end(low, factor):
    found = _values_between(low, low * factor)
    assert found == sorted(set(found))
    assert all(low < value < low * factor for value in found)


def test_around_the_best_of_the_first_course():
    new, why = _around([1e-5, 1e-4, 1e-3, 1e-2], 1e-3)
    assert new == [2e-4, 5e-4, 2e-3, 5e-3] and "inside" in why
    new, why = _around([1e-5, 1e-4, 1e-3, 1e-2], 1e-2)
    assert max(new) == 0.1 and min(new) > 1e-3 and "highest" in why
    new, why = _around([1e-5, 1e-4], 1e-5)
    assert min(new) == 1e-6 and "lowest" in why
    assert _around([4, 8, 12], 12)[0] == [10, 14, 16]


def board(*names, tied=()):
    level = [name in tied or i == 0 for i, name in enumerate(names)]
    return pd.DataFrame({"tied": level}, index=list(names))


def trials(**values):
    return {name: {"lr": value} for name, value in values.items()}


def test_a_tie_is_said_first():
    tried = trials(a=1e-2, b=1e-3, c=1e-4)
    found = propose(tried, board("b", "a", "c", tied=["a"]))
    assert [t["lr"] for t in found] == [2e-4, 5e-4, 2e-3, 5e-3]
    assert found.reason.startswith(
        "b has the highest score, but these scenes cannot tell it from a"
    )
    assert "b is better than all others" in propose(tried, board("b", "a", "c")).reason


def test_an_edge_is_left_but_not_the_allowed_range():
    tried = trials(a=1.0, b=0.1)
    found = propose(tried, board("a", "b"), lambda t: t["lr"] <= 1)
    assert [t["lr"] for t in found] == [0.2, 0.5]
    assert "may lie beyond" in found.reason


def test_fine_steps_ask_for_seeds():
    tried = trials(a=1e-3, b=1.2e-3, c=1.4e-3)
    found = propose(tried, board("b", "a", "c", tied=["a"]))
    assert list(found) == [
        {"lr": lr, "seed": seed} for lr in (1.2e-3, 1e-3) for seed in (1, 2)
    ]
    assert "other seeds" in found.reason


def test_two_parameters_move_one_at_a_time():
    tried = {
        f"{lr}-{b}-{m}": {"lr": lr, "batch_sz": b, "model": m}
        for lr in (1e-2, 1e-3, 1e-4) for b in (4, 8, 16) for m in ("unet", "deeplabv3")
    }  # fmt: skip
    best = "0.001-8-unet"
    found = propose(tried, board(best, *(n for n in tried if n != best)))
    assert all(t["model"] == "unet" for t in found)
    assert all((t["lr"] == 1e-3) != (t["batch_sz"] == 8) for t in found)
    assert {t["batch_sz"] for t in found} == {8, 6, 12}


def test_too_little_to_go_by():
    with pytest.raises(ValueError, match="two trials and a finished one"):
        propose(trials(a=1e-3), board("a"))
