"""What the README and the docstrings show, runs and gives what they say."""

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
def test_examples_in_docstrings_give_what_they_show(module):
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
    # The table of what it holds, and what is planned within a budget.
    printed = capsys.readouterr().out
    assert "What ExtremeTensoring holds" in printed
    assert "Chosen: ExtremeTensoring(" in printed
