"The file of trained thresholds: all that is known comes back, and nothing else is believed."

from dataclasses import asdict, replace

import numpy as np
import pytest
import yaml
from test_thresholds import FOUR, counts_of_levels, folder_of, four_classes

from rvtutorial.metrics.leaderboard import LabelFolder
from rvtutorial.metrics.threshold_file import (
    decision_for,
    read_thresholds,
    write_thresholds,
)
from rvtutorial.metrics.thresholds import Tuned, tune

NECSTLAB = """
final_trained_prediction_thresholds:
  class0: 0.38928
  class1: 1e-3
metadata:
  dataset_directory: dataset-composite_0123/validation
  thresholds_training_configuration:
    bounds: [0, 1]
    optimizing_class_metric: iou_score
  thresholds_training_output:
    class0: {fun: 0.373, message: Solution found., nfev: 8, status: 0, success: true, x: 0.38928}
  random-module-global-seed: null
"""


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    scenes = {str(i): four_classes(i, 32) for i in range(5)}
    return folder_of(tmp_path_factory.mktemp("four"), scenes, null=None)


def same(a: Tuned, b: Tuned):
    "Equal but for NaN."
    one, two = (
        {k: asdict(t) for k, t in x.thresholds.items()} for x in (a, b)
    )  # fmt: skip
    np.testing.assert_equal(two, one)
    names = ("rule", "metric", "over", "classes", "null", "scenes", "split", "method",
             "share", "seed", "draws", "value", "passes", "notes")  # fmt: skip
    for name in names:
        np.testing.assert_equal(getattr(b, name), getattr(a, name), name)


@pytest.mark.parametrize(
    "how",
    [
        dict(classes=["building"], calibrate="isotonic"),
        dict(classes=["building"], method="scipy", calibrate="temperature"),
        dict(rule="weights", classes=list(FOUR)),
        dict(rule="ratio", classes=["road", "water"], metric="f2"),
    ],
    ids=lambda how: how.get("rule", how.get("method", "plain")),
)
def test_what_was_written_comes_back(four, tmp_path, how):
    made = tune(four, draws=20, blocks=None, **how)
    path = write_thresholds(
        made, four, tmp_path, "for the map of May", 3.0, batch_size=16
    )
    back = read_thresholds(path)
    same(made, back)
    assert set(back.digests["scores"]) == set(made.scenes)
    maps = [{k: asdict(c) for k, c in x.calibration.items()} for x in (made, back)]
    np.testing.assert_equal(*maps)
    rng = np.random.default_rng(0)
    scores = rng.dirichlet(np.ones(4), 500).T.astype(np.float32)
    assert np.array_equal(back.decision.labels(scores), made.decision.labels(scores))
    found = yaml.safe_load(path.read_text())
    assert found["comparison"] == ">=" and found["rule"] == made.rule
    about = found["metadata"]
    assert about["message"] == "for the map of May" and about["batch_size"] == 16
    assert about["num_classes"] == len(FOUR)
    if made.rule != "weights":
        trained = found["final_trained_prediction_thresholds"]
        for name, one in made.thresholds.items():
            assert trained[name] == trained[f"class{FOUR.index(name)}"] == one.threshold
    if made.method == "scipy":
        history = about["thresholds_training_history"]["class2"]
        assert len(history) == about["thresholds_training_output"]["class2"]["nfev"] > 3
    assert found["metadata_system"]["Lib_versions_info"]["numpy"] == np.__version__


def test_all_keys_of_the_old_file_are_there(tmp_path):
    "Those that necstlab's program writes, read from its source."
    path = write_thresholds(
        tune(counts_of_levels({200: 3}, {90: 4})), counts(), tmp_path
    )
    found = yaml.safe_load(path.read_text())
    assert {
        "final_trained_prediction_thresholds",
        "metadata",
        "metadata_system",
    } <= set(found)
    keys = """message gcp_bucket created_datetime num_classes target_size git_hash
        elapsed_minutes dataset_directory model_id batch_size dataset_config train_config
        thresholds_training_configuration thresholds_training_output
        thresholds_training_history random_module_global_seed numpy_random_global_seed
        tf_random_global_seed"""
    assert set(keys.split()) <= set(found["metadata"])
    one = found["metadata"]["thresholds_training_output"]["class0"]
    assert set(one) == set("x success status message nfev fun".split())
    assert set(found["metadata_system"]) == {"System_info", "Lib_versions_info"}


def counts():
    return counts_of_levels({200: 3}, {90: 4})


def test_no_file_is_written_over(tmp_path):
    made = tune(counts())
    paths = {write_thresholds(made, counts(), tmp_path) for _ in range(4)}
    assert len(paths) == 4 == len(list(tmp_path.glob("model_thresholds_*.yaml")))
    with pytest.raises(ValueError, match="say where the thresholds go"):
        write_thresholds(made, counts())


def test_undefined_classes_are_written_as_far_as_they_are_known(tmp_path):
    made = tune(counts_of_levels({}, {90: 4}))
    path = write_thresholds(made, counts(), tmp_path)
    found = yaml.safe_load(path.read_text())
    assert found["final_trained_prediction_thresholds"] == {}
    assert found["thresholds"]["building"]["status"] == "undefined"
    one = found["metadata"]["thresholds_training_output"]["class0"]
    assert one["success"] is False and "none of 1 scenes" in one["message"]
    same(made, read_thresholds(path))
    endless = tune(counts_of_levels({255: 1}, {255: 9}), "accuracy")
    back = read_thresholds(write_thresholds(endless, counts(), tmp_path))
    assert back.thresholds["building"].threshold == np.inf


def test_a_file_that_was_edited_is_refused(tmp_path):
    path = write_thresholds(tune(counts()), counts(), tmp_path)
    text = path.read_text()
    number = yaml.safe_load(text)["thresholds"]["building"]["threshold"]
    path.write_text(text.replace(f"    threshold: {number}", "    threshold: 0.9"))
    assert path.read_text() != text
    with pytest.raises(ValueError, match="was changed after it was written"):
        read_thresholds(path)
    assert read_thresholds(path, force=True).thresholds["building"].threshold == 0.9
    for content, words in (
        ("a: [1", "line 1"),
        ("lr: 3", "has no final_trained"),
        ("final_trained_prediction_thresholds: {class0: high}", "class0 is 'high'"),
        ("final_trained_prediction_thresholds: {class0: true}", "class0 is True"),
        ("final_trained_prediction_thresholds: {class0: -1}", "class0 is -1"),
        ("final_trained_prediction_thresholds: {}", "its classes are none"),
        ("final_trained_prediction_thresholds: {roof: 0.5}", "not class0"),
        ("{final_trained_prediction_thresholds: {}, schema: 9}", "version 9 is newer"),
        ("{final_trained_prediction_thresholds: {}, schema: 1}", "was changed after"),
        (
            "!!python/object/apply:os.system ['true']",
            "could not determine a constructor",
        ),
        ("\x00", "special characters|no file of trained"),
        ("final_trained_prediction_thresholds: {class0: 38.9}", "no share from 0 to 1"),
        (
            "final_trained_prediction_thresholds:\n  class0: 0.1\n  class0: 0.9",
            "line 3: final_trained_prediction_thresholds.class0 stands already in line 2",
        ),
        (
            NECSTLAB.replace("{fun", "[{fun").replace("0.38928}", "0.38928}]"),
            "class0 is no mapping",
        ),
        (
            "final_trained_prediction_thresholds: {class0: 0.5}\n"
            "metadata: {thresholds_training_output: [1]}",
            "thresholds_training_output is no mapping but list",
        ),
        (
            "final_trained_prediction_thresholds: {class0: 0.5}\nmetadata: [1]",
            "metadata is no mapping",
        ),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=words):
            read_thresholds(path)
    twice = text.replace("metric: iou", "metric: f1\nmetric: iou", 1)
    path.write_text(twice)
    for force in (False, True):
        with pytest.raises(ValueError, match="metric stands already in line"):
            read_thresholds(path, force)
    for old, new, words in (
        ("message: null", "message: 2026-01-31", ""),
        ("message: null", "message: !!set {a, b}", ""),
        (f"    threshold: {number}", "    threshold: 38.9", "no share from 0 to 1"),
        ("    status: flat", "    status: fine", "has the status 'fine'"),
        ("classes:\n- building", "classes:\n- roof", "'building' is not in list"),
    ):
        path.write_text(text.replace(old, new))
        assert path.read_text() != text
        with pytest.raises(ValueError, match="was changed after it was written"):
            read_thresholds(path)
        if words:
            with pytest.raises(ValueError, match=words):
                read_thresholds(path, force=True)
        else:
            forced = read_thresholds(path, force=True)
            assert forced.thresholds["building"].threshold == number
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match="no file of trained thresholds"):
        read_thresholds(path)
    broken = yaml.safe_load(text)
    del broken["scenes"]
    path.write_text(yaml.safe_dump(broken))
    with pytest.raises(ValueError, match="KeyError: 'scenes'"):
        read_thresholds(path, force=True)


def test_necstlabs_own_files(tmp_path):
    path = tmp_path / "model_thresholds_20200321T154533Z.yaml"
    path.write_text(NECSTLAB)
    found = read_thresholds(path)
    assert found.thresholds["class0"].threshold == 0.38928
    assert found.thresholds["class1"].threshold == 1e-3
    assert found.metric == "iou_score" and found.split == "validation"
    assert found.thresholds["class0"].value == pytest.approx(0.627)
    with pytest.raises(ValueError, match="does not say for which model"):
        decision_for(tmp_path, FOUR, None, path)
    decision, _ = decision_for(tmp_path, FOUR, None, path, force=True)
    assert decision.thresholds == {"field": 0.38928, "road": 1e-3}


def test_necstlabs_classes_that_failed_have_no_threshold(tmp_path):
    path = tmp_path / "model_thresholds_20200321T154533Z.yaml"
    failed = NECSTLAB.replace("success: true", "success: false")
    path.write_text(failed.replace("Solution found.", "2020-03-21"))
    found = read_thresholds(path)
    assert found.undefined == ["class0"] and list(found.decision.thresholds) == [
        "class1"
    ]
    assert found.thresholds["class0"].why == "2020-03-21"
    with pytest.raises(ValueError, match="no threshold for field .2020-03-21"):
        decision_for(tmp_path, FOUR, None, path, force=True)


def test_thresholds_read_from_a_file_are_checked_like_the_file(four, tmp_path):
    made = tune(four, classes=["building"], draws=0, blocks=None)
    back = read_thresholds(write_thresholds(made, four, tmp_path))
    assert decision_for(four, FOUR, None, back)[0] == made.decision
    other = folder_of(tmp_path / "other", {"0": four_classes(77, 32)}, null=None)
    with pytest.raises(ValueError, match="was trained with another model"):
        decision_for(other, FOUR, None, back)
    assert decision_for(other, FOUR, None, back, force=True)[0] == made.decision
    assert decision_for(other, FOUR, None, made)[0] == made.decision  # known here only
    path = tmp_path / "old.yaml"
    path.write_text(NECSTLAB)
    with pytest.raises(ValueError, match="does not say for which model"):
        decision_for(four, FOUR, None, read_thresholds(path))


def test_thresholds_are_shares_and_weights_may_be_large(four, tmp_path):
    with pytest.raises(ValueError, match="share from 0 to 1, got .'road': 38.9"):
        decision_for(four, FOUR, None, given={"road": 38.9})
    with pytest.raises(ValueError, match="share from 0 to 1"):
        decision_for(four, FOUR, None, given=38.9)
    made = tune(four, rule="weights", classes=list(FOUR), draws=0, blocks=None)
    assert max(made.decision.thresholds.values()) > 1
    back = read_thresholds(write_thresholds(made, four, tmp_path))
    assert back.decision == made.decision


def test_other_models_are_refused(four, tmp_path):
    made = tune(four, classes=["building"], draws=0, blocks=None)
    path = write_thresholds(made, four, tmp_path)
    decision, _ = decision_for(four, FOUR, None, path)
    assert decision.thresholds == made.decision.thresholds
    other = folder_of(tmp_path / "other", {"0": four_classes(77, 32)}, null=None)
    with pytest.raises(ValueError, match="was trained with another model"):
        decision_for(other, FOUR, None, path)
    assert decision_for(other, FOUR, None, path, force=True)[0] == decision
    with pytest.raises(ValueError, match="its classes are field, road"):
        decision_for(four, ("building", "background"), None, path)


def test_numbers_come_before_the_file_and_that_before_one_half(four, tmp_path):
    made = tune(four, classes=["building", "water"], rule="ratio", draws=0, blocks=None)
    path = write_thresholds(made, four, tmp_path)
    trained = made.decision.thresholds
    decision, _ = decision_for(four, FOUR, None, path, given={"water": 0.3})
    assert decision.thresholds == {"building": trained["building"], "water": 0.3}
    names = ("building", "road", "background", "null")
    plain, _ = decision_for(four, names, "null")
    assert plain.thresholds == {"building": 0.5, "road": 0.5}
    some, _ = decision_for(four, names, "null", given={"road": 0.2})
    assert some.thresholds == {"building": 0.5, "road": 0.2}
    one, _ = decision_for(four, names, "null", given=0.4)
    assert one.thresholds == {"building": 0.4, "road": 0.4}
    weights = tune(four, rule="weights", classes=list(FOUR), draws=0, blocks=None)
    path = write_thresholds(weights, four, tmp_path)
    with pytest.raises(ValueError, match="takes no thresholds beside"):
        decision_for(four, FOUR, None, path, given={"water": 0.3})
    lost = tune(counts_of_levels({}, {90: 4}))
    lost = replace(lost, classes=("building", "background"))
    with pytest.raises(ValueError, match="no threshold for building .none of 1 scenes"):
        decision_for(four, ("building", "background"), None, lost)


assert LabelFolder
