"""Normalised scores: D4RL's formula and numbers."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from tianshou_ext.errors import InputError
from tianshou_ext.evaluation.scores import normalized_score, reference_scores, references

TABLE = Path(__file__).parents[2].parent / "shared/data/formats/d4rl_ref_scores.csv"


def test_the_ends_are_0_and_100_for_every_id():
    assert len(references()) == 176
    for name, reference in references().items():
        scores = normalized_score(name, [reference.minimum, reference.maximum])
        assert np.allclose(scores, [0, 100])
        assert reference.dataset == name and reference.dataset_file.endswith(".hdf5")


def test_a_published_number():
    # TD3+BC's table: a return of 3234.3 on hopper is 100; 1000 is (1000 + 20.27) / 3254.57.
    assert normalized_score("hopper-medium-v2", 1000.0) == pytest.approx(31.3489, abs=1e-4)
    returns = np.array([[0.0, 1.0], [0.5, 0.25]])
    assert np.array_equal(normalized_score("antmaze-umaze-v2", returns), 100 * returns)


@pytest.mark.skipif(not TABLE.exists(), reason="needs the shared table")
def test_the_numbers_are_those_of_the_table():
    with TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["env_id"] for row in rows] == list(references())
    for row in rows:
        found = reference_scores(row["env_id"])
        assert found.minimum == float(row["ref_min_score"])
        assert found.maximum == float(row["ref_max_score"])
        assert found.dataset_file == row["dataset_file"]
        steps = row["max_episode_steps"]
        assert found.max_episode_steps == (int(steps) if steps else None)


@pytest.mark.parametrize(
    ("task", "dataset"),
    [
        ("Hopper-v4", "hopper-medium-v2"),
        ("HalfCheetah-v5", "halfcheetah-random-v0"),
        ("Ant-v2", "ant-expert-v2"),
        ("AdroitHandPen-v1", "pen-human-v1"),
        ("FrankaKitchen-v1", "kitchen-mixed-v0"),
    ],
)
def test_a_task_of_gymnasium_means_its_datasets(task: str, dataset: str):
    assert normalized_score(task, 77.0) == normalized_score(dataset, 77.0)


@pytest.mark.parametrize("family", ["ant", "hopper", "door", "pen", "kitchen", "walker2d"])
def test_a_family_shares_its_scores(family: str):
    found = {
        (one.minimum, one.maximum)
        for name, one in references().items()
        if name.startswith(f"{family}-")
    }
    assert len(found) == 1


@pytest.mark.parametrize("name", ["hopper-medum-v2", "hopper", "Humanoid-v4", "maze2d-v1", ""])
def test_an_unknown_id_is_refused(name: str):
    with pytest.raises(InputError, match="expected a D4RL id"):
        reference_scores(name)


def test_close_ids_are_named():
    with pytest.raises(InputError, match="hopper-medium-v2"):
        reference_scores("hopper-medum-v2")
