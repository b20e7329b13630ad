"""The examples of the README and of the docstrings run and give what they show."""

import doctest
import pathlib

import keras
import pytest

import et_optimizer
from et_optimizer import frequent_directions, schedules
from et_optimizer.memory import plan, report
from et_optimizer.views import tensor_index
from tests.published import run

README = pathlib.Path(__file__).parents[1] / "README.md"


@pytest.mark.parametrize(
    "module", [frequent_directions, plan, report, schedules, tensor_index]
)
def test_examples_in_docstrings_give_the_results_shown(module):
    names = {**vars(et_optimizer), **vars(module), "et_optimizer": et_optimizer}
    names["keras"] = keras
    found = doctest.testmod(module, extraglobs=names)
    assert found.attempted > 0 and found.failed == 0


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="one backend is enough"
)
def test_the_readme_runs_from_top_to_bottom(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where it saves a model
    names = run(README)
    assert isinstance(names["model"].optimizer, et_optimizer.ExtremeTensoring)
    printed = capsys.readouterr().out
    assert "State of ExtremeTensoring" in printed
    assert "Planned memory of ExtremeTensoring" in printed
    assert "Chosen: ExtremeTensoring(" in printed
