"""The course of the learning rate over a run."""

import pytest

from tf_models.studies.learning_rates import SCHEDULES, schedule


def rates(name, steps=100, **keywords):
    course = schedule(name, 0.5, steps, **keywords)
    if not callable(course):
        return [course] * (steps + 1)
    return [float(course(step)) for step in range(steps + 1)]


def test_cosine_warms_up_over_a_tenth_of_the_steps_and_decays_to_0():
    found = rates("cosine")
    assert found[0] == 0
    assert found[5] == pytest.approx(0.25)
    assert max(found) == found[10] == pytest.approx(0.5)
    assert found[55] == pytest.approx(0.25, abs=1e-3)
    assert found[10:] == sorted(found[10:], reverse=True)
    assert found[100] == pytest.approx(0, abs=1e-6)


def test_inverse_square_root_falls_with_the_root_of_the_step():
    found = rates("inverse_square_root", warmup_steps=16)
    assert found.index(max(found)) in (15, 16)
    assert max(found) == pytest.approx(0.5)
    # Four times the step, half the rate.
    assert found[80] == pytest.approx(found[20] / 2, rel=0.05)
    assert found[8] == pytest.approx(0.25, rel=0.15)


def test_warmup_stays_at_its_peak():
    found = rates("warmup")
    assert found == sorted(found)
    assert found[20:] == pytest.approx([0.5] * 81)


def test_cooldown_decays_to_0_in_the_last_tenth():
    found = rates("cooldown")
    assert found[20:90] == pytest.approx([0.5] * 70)
    assert found[95] == pytest.approx(0.25, rel=0.15)
    assert found[100] == pytest.approx(0, abs=1e-6)


def test_constant_returns_the_learning_rate():
    assert schedule("constant", 0.5, 100) == 0.5


@pytest.mark.parametrize("name", SCHEDULES)
def test_no_schedule_exceeds_the_peak_and_a_single_step_is_positive(name):
    assert max(rates(name)) <= 0.5 * (1 + 1e-6)
    assert rates(name, steps=1)[1] >= 0
    assert max(rates(name, steps=1)) > 0


@pytest.mark.parametrize("name", ["cosine", "warmup", "cooldown"])
def test_warmup_steps_sets_the_length_of_the_warm_up(name):
    found = rates(name, warmup_steps=40)
    assert found[20] == pytest.approx(0.25, rel=0.1)
    assert found[41] == pytest.approx(0.5, rel=1e-3)
