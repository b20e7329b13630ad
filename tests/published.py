"""The library's public names, and the Python code of its pages."""

import inspect
import re


def public(module):
    """The public names of a module, in order."""
    own = [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and name[0] != "_"
    ]
    return getattr(module, "__all__", own)


def functions_and_classes(module):
    """The public functions and classes of a module and of its submodules."""
    for name in public(module):
        value = getattr(module, name)
        if inspect.ismodule(value):
            yield from functions_and_classes(value)
        elif callable(value):
            yield value


def blocks(page):
    """The Python blocks of a page (a path), without the indentation of lists."""
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        indent = re.match(" *", block).group()
        yield re.sub(f"(?m)^{indent}", "", block)


def run(page):
    """Runs a page from top to bottom and returns the names that it defines."""
    names = {}
    for block in blocks(page):
        exec(block, names)
    return names
