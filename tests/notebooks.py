"""The notebooks of colab/, executed: for the tests, and to be committed.

python -m tests.notebooks           # executes all at smoke size, in place
python -m tests.notebooks quickstart
"""

import os
import pathlib
import sys

import nbformat
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).parents[1] / "colab"
# A whole notebook takes three minutes at the most; machines that do much are slower.
SECONDS_A_CELL = 900


def paths():
    """The notebooks, sorted by their names."""
    return sorted(FOLDER.glob("*.ipynb"))


def execute(notebook, **environment):
    """Executes a notebook at smoke size in a process of its own, in its folder.

    Args:
        notebook: As `nbformat.read` returns it. Its outputs are replaced.
        **environment: Variables of the environment, as strings.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised an exception.
    """
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=SECONDS_A_CELL,
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": str(FOLDER)}},
        # What C++ writes to the standard error is no output of a cell.
        extra_arguments=["--IPKernelApp.capture_fd_output=False"],
    )
    client.execute(env=os.environ | {"ET_OPTIMIZER_SIZE": "smoke"} | environment)


def main(names):
    """Executes notebooks and writes them back with their outputs."""
    for path in paths():
        if names and path.stem not in names:
            continue
        print(f"Executing {path.name}", flush=True)
        notebook = nbformat.read(path, as_version=4)
        before = notebook.metadata.copy()
        execute(notebook)
        notebook.metadata = before  # Without the version of this machine's Python.
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main(sys.argv[1:])
