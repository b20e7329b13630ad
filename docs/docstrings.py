"""How docstrings become pages: an extension of griffe, which reads them.

Docstrings here are written for `help()`. Griffe's reader of Google's style knows their
Args, Returns, Raises and Attributes; this brings the rest into a form that it knows.
"""

import re

import griffe

# "Args:" and the like, with all that is indented below it.
ARGUMENTS = re.compile(r"^Args:\n((?:(?: +.*)?\n?)+)", re.MULTILINE)
# "a, b, c: text", of which the names may take several lines.
HEADER = re.compile(r"^ {4}((?:[*\w]+,\s+)+[*\w]+):", re.MULTILINE)
# An entry of "Args:", which may be about several arguments.
ENTRY = re.compile(r"^ {4}([*\w][*\w, \n]*): (?:.*\n?)(?: {5,}.*\n?)*", re.MULTILINE)
# What begins a paragraph, and is no section of griffe's.
LEAD = re.compile(r"^(Memory|Range|Memory, in numbers)(?=:)", re.MULTILINE)
REFERENCE = re.compile(r"^Reference:\n((?:(?: +.*)?\n?)+)", re.MULTILINE)
DOCTEST = re.compile(r"^( *)>>>.*(?:\n\1\S.*)*", re.MULTILINE)
NAME = re.compile(r"`(et_optimizer\.\w+(?:\.\w+)*)`")


class Docstrings(griffe.Extension):
    """Rewrites every docstring of the package before it is read."""

    def on_package(self, *, pkg, **kwargs):
        """Rewrites them once the whole package is loaded and can be linked to."""
        base = pkg["optimizers.base.PreconditionedOptimizer"]
        classes = [c for c in _classes(pkg) if base in [c, *c.mro()]]
        # Bases before the classes that take over their arguments.
        for one in sorted(classes, key=lambda c: len(c.mro())):
            _declare_arguments(one)
        _rewrite(pkg, pkg)


def _classes(part):
    for member in part.members.values():
        if member.is_alias:
            continue
        if member.is_class:
            yield member
        if member.is_module or member.is_class:
            yield from _classes(member)


def _declare_arguments(optimizer):
    """Gives an optimizer a signature and entries for its own and inherited arguments.

    At run time `et_optimizer.optimizers.options` does the same.
    """
    parameters, entries = {}, {}
    for one in [optimizer, *optimizer.mro()]:
        text = one.docstring.value if one.docstring else ""
        section = ARGUMENTS.search(text)
        for entry in ENTRY.finditer(section[1] if section else ""):
            for name in re.findall(r"\w+", entry[1]):
                entries.setdefault(name, entry.group().rstrip("\n") + "\n")
        for name, member in one.members.items():
            if member.is_attribute and member.annotation and member.value:
                if "ClassVar" not in str(member.annotation) and name[0] != "_":
                    parameters.setdefault(name, _parameter(member))
    first = parameters.pop("learning_rate")
    parameters = {"learning_rate": first, **parameters}
    self = griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)
    made = griffe.Function(
        "__init__", parameters=griffe.Parameters(self, *parameters.values())
    )
    optimizer.set_member("__init__", made)
    listed = "Args:\n" + "".join(
        dict.fromkeys(entries[name] for name in parameters if name in entries)
    )
    text = optimizer.docstring.value
    if ARGUMENTS.search(text):
        text = ARGUMENTS.sub(lambda _: listed, text)
    else:
        text = f"{text}\n\n{listed}"
    optimizer.docstring.value = text


def _parameter(attribute):
    """An annotated attribute as a parameter; `field(default=…)` is its default."""
    annotation, value = str(attribute.annotation), str(attribute.value)
    annotation = re.sub(r"^InitVar\[(.*)\]$", r"\1", annotation)
    value = re.sub(r"^field\(default=(.*), kw_only=False\)$", r"\1", value)
    kind = griffe.ParameterKind.keyword_only
    if attribute.name == "learning_rate":
        kind = griffe.ParameterKind.positional_or_keyword
    return griffe.Parameter(
        attribute.name, annotation=annotation, kind=kind, default=value
    )


def _rewrite(part, package):
    if part.docstring is not None:
        part.docstring.value = rewritten(part.docstring.value, package)
    for member in part.members.values():
        if not member.is_alias:
            _rewrite(member, package)


def rewritten(text, package):
    """A docstring in the form that griffe and Markdown know.

    Args:
        text: The docstring.
        package: The package as griffe has it, of which names are linked.
    """
    text = ARGUMENTS.sub(lambda m: HEADER.sub(r"    \1:", m.group()), text)
    text = ARGUMENTS.sub(lambda m: _one_by_one(m.group()), text)
    text = LEAD.sub(r"**\1**", text)
    text = re.sub(r"^Example:$", "**Example**", text, flags=re.MULTILINE)
    text = REFERENCE.sub(lambda m: "**Reference**\n\n" + _dedented(m.group(1)), text)
    text = DOCTEST.sub(_fenced, text)
    return NAME.sub(lambda m: _linked(m, package), text)


def _one_by_one(section):
    """A section of arguments, of which those that share a text have it each."""
    items = re.split(r"(?m)^(?= {4}\S)", section)
    return "".join(map(_parted, items))


def _parted(item):
    names = HEADER.match(item)
    if names is None:
        return item
    text = item[names.end() :].rstrip("\n")
    return "".join(f"    {name}:{text}\n" for name in re.findall(r"[*\w]+", names[1]))


def _dedented(text):
    lines = text.splitlines()
    indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    return "\n".join(line[indent:] for line in lines) + "\n"


def _fenced(match):
    """An example at the prompt, as a block of code."""
    indent = match.group(1)
    return f"{indent}```pycon\n{match.group()}\n{indent}```"


def _linked(match, package):
    """A public name of the package, as a link to where it is described."""
    name = match.group(1)
    path = name.split(".")[1:]
    if path[0] not in package.exports:
        return match.group()
    try:
        package[path]
    except KeyError:
        return match.group()
    return f"[{match.group()}][{name}]"
