"""The probes give what scikit-learn's own models give, corrected by the support's class frequencies, on the protocol's draws."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.feature_probes import PROBES, RIDGE_C, Forest, Linear, _could_turn, draws_of, evaluate, fit, mean_dice
from benchmarks.feature_sets import FeatureSet, Filters, compute
from benchmarks.features_data import Cohort
from pipelines.params import load_params
from pipelines.systems.protocol import Task
from tests.tiny_cohort import LABELS, tiny_case, tiny_task


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Cohort:
    cases = tuple(tiny_case(number, site) for site, count in (("A", 4), ("B", 2), ("C", 1)) for number in range(count))
    params = load_params()
    labels = [params.cohort.labels[0].model_copy(update={"name": name}) for name in LABELS]
    params = params.model_copy(update={"cohort": params.cohort.model_copy(update={"name": "tiny", "labels": labels})})
    return Cohort("tiny", Path(tmp_path_factory.mktemp("tiny")), params, cases, manifest=None)


@pytest.fixture(scope="module")
def chosen(cohort) -> FeatureSet:
    part = Filters(sigmas=(1.0, 2.5))
    for case in cohort.cases:
        compute(cohort.folder, part, case, cohort.modalities)
    return FeatureSet("filters", (part,))


@pytest.mark.parametrize("classes", [2, 3])
def test_forest_asked_in_parts_says_what_the_whole_one_says(classes):
    from sklearn.ensemble import RandomForestClassifier

    generator = np.random.default_rng(0)
    rows = generator.normal(size=(3000, 12)).astype(np.float32)
    target = rows[:, 0] + rows[:, 1] * rows[:, 2] + 0.5 * generator.normal(size=3000)
    probe = Forest({})
    probe.forest = RandomForestClassifier(50, max_depth=8, random_state=0).fit(rows, np.digitize(target, [0, 1][:classes - 1]))
    probe.priors = np.array([0.9, 0.06, 0.04][:classes])
    new = generator.normal(size=(5000, 12)).astype(np.float32)
    whole = (probe.forest.predict_proba(new) * probe.priors**probe.params.prior_exponent).argmax(1)
    assert len(np.unique(whole)) == classes
    np.testing.assert_array_equal(probe.classes(new), whole)


def test_a_vote_is_open_as_long_as_the_trees_left_could_turn_it():
    votes, weights, leading = np.array([[6.0, 4.0], [9.0, 1.0]]), np.array([1.0, 1.0]), np.array([0, 0])
    assert _could_turn(votes, weights, leading, 5).tolist() == [True, False]
    assert _could_turn(votes, np.array([1.0, 0.5]), leading, 5).tolist() == [False, False]
    assert not _could_turn(votes[:, :1], weights[:1], leading, 50).any()  # one class only


def test_linear_probe_is_standardised_logistic_regression_with_corrected_odds():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    case, task = tiny_case(0), tiny_task()
    foreground = case.foreground()
    rows = np.stack([case.image(name)[foreground] * scale for name, scale in (("FLAIR", 1), ("T1w", 40))], axis=1)
    probe = Linear({case.id: rows})
    probe.params = probe.params.model_copy(update={"voxels_per_class": 10**6})  # every voxel, so that the sample is known
    probe.fit(task, [case], 0)
    truth = case.label()[foreground]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=RIDGE_C, max_iter=500)).fit(rows, truth)
    corrected = model.predict_proba(rows) * (np.bincount(truth) / len(truth)) ** probe.params.prior_exponent
    assert (probe.classes(rows) == corrected.argmax(1)).mean() > 0.999  # float32 against float64


def test_two_classes_and_an_unseen_one():
    case = tiny_case(0)
    only = SimpleNamespace(id=case.id, label=lambda: np.minimum(case.label(), 1), foreground=case.foreground)
    probe = Linear({case.id: case.image("FLAIR")[case.foreground()][:, None]})
    probe.fit(Task(LABELS, ("FLAIR",), tiny_task().prompts, None), [only], 0)
    assert probe.known.tolist() == [0, 1] and probe.priors[2] == 0
    assert set(probe.classes(np.array([[-1.0], [4.0]], np.float32))) == {0, 1}


def test_draws_follow_the_protocol_and_small_sites_are_named(cohort):
    draws, skipped = draws_of(cohort, (1, 3), 2)
    assert [(one.site, one.shots, one.seed) for one in draws] == [("A", 1, 0), ("A", 1, 1), ("A", 3, 0), ("A", 3, 1), ("B", 1, 0), ("B", 1, 1)]
    assert skipped == ["tiny, site B: 3 shot(s) left out, its 2 labelled subject(s) leave nobody to evaluate",
                       "tiny, site C: 1 shot(s) left out, its 1 labelled subject(s) leave nobody to evaluate",
                       "tiny, site C: 3 shot(s) left out, its 1 labelled subject(s) leave nobody to evaluate"]
    for one in draws:
        assert len(one.split.support) == one.shots and not one.split.calibration
        assert {case.id for case in one.split.support}.isdisjoint(case.id for case in one.split.query)


def test_rows_of_every_draw_and_probe_and_the_same_again(cohort, chosen):
    draws = [one for one in draws_of(cohort, (1, 3), 1)[0] if one.site == "A"]
    fitted = fit(cohort, chosen, draws)
    rows = [row for case in cohort.cases if case.site == "A" for row in evaluate(cohort, chosen, case, fitted)]
    assert len(rows) == 2 * (3 + 1)  # probes x query cases of 1 and of 3 shots
    assert set(rows[0]) == {"features", "probe", "cohort", "site", "shots", "seed", "case", "dice"}
    assert {row["probe"] for row in rows} == set(PROBES)
    assert np.mean([row["dice"] for row in rows]) > 0.6  # bright lesions in a noisy image: any probe finds them
    again = fit(cohort, chosen, draws)
    assert [row for case in cohort.cases if case.site == "A" for row in evaluate(cohort, chosen, case, again)] == rows


def test_dice_is_over_the_labels_that_are_there():
    truth = np.array([0, 1, 1, 0])
    assert mean_dice(truth, np.array([0, 1, 1, 2]), labels=2) == 1.0
    assert np.isnan(mean_dice(np.zeros(4), truth, labels=2))
