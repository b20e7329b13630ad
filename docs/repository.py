"""What the site takes from the rest of the repository: pages, pictures and files.

A hook of mkdocs, whose pages lie in docs/. Links of theirs lead out of that folder as
they do on GitHub (`../CHANGELOG.md`, `../tf_models/results/peers/memory.png`). Whatever
such a link leads to, and whatever the table of contents names that docs/ has not, gets
a place in the site: its path from the top of the repository.
"""

import pathlib
import posixpath
import re

from mkdocs.structure.files import File, InclusionLevel

ROOT = pathlib.Path(__file__).parents[1]
DOCS = "docs/"
# The target of a link or picture, without its anchor; not of another host or page part.
TARGET = re.compile(r"(?<=\]\()(?!\w+:)[^)#\s]+")
# A folder of results is linked to as on GitHub, and shown by its table.
OF_FOLDER = "results.csv"
# In a table a bar in code is written with a backslash for GitHub, which shows it not.
ROW = re.compile(r"^ *\|.*$", re.MULTILINE)
CODE = re.compile(r"`[^`\n]+`")
# A block of code in a list, indented as the item is.
FENCE = re.compile(r"^( {2,3})(```.*?^\1```)$", re.DOTALL | re.MULTILINE)


def on_files(files, config):
    """Adds the pages of the table of contents and all that any page links to."""
    for uri in _named(config.nav):
        _add(uri, files, config)
    waiting, seen = list(files.documentation_pages()), set()
    while waiting:
        page = waiting.pop()
        seen.add(page.src_uri)
        for target in TARGET.findall(page.content_string):
            found = _add(_uri(page, target), files, config)
            if found and found.is_documentation_page() and found.src_uri not in seen:
                waiting.append(found)
    return files


def on_page_markdown(markdown, page, config, files):
    """Makes links lead to where the site has what they lead to."""

    def link(match):
        uri = _uri(page.file, match.group())
        if files.get_file_from_path(uri) is None:
            return match.group()  # which is found to be broken then
        return posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".")

    markdown = ROW.sub(_without_backslashes, TARGET.sub(link, markdown))
    return FENCE.sub(_indented_by_4, markdown)


def _named(nav):
    """The pages that a table of contents names."""
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [uri for part in parts for uri in _named(part)]


def _add(uri, files, config):
    """The site's file of this place, made where there is one in the repository."""
    found = files.get_file_from_path(uri)
    if found is None and (ROOT / uri).is_file():
        found = File.generated(
            config,
            uri,
            abs_src_path=str(ROOT / uri),
            inclusion=InclusionLevel.INCLUDED,
        )
        files.append(found)
    return found


def _uri(page, target):
    """Where the site has what a page's link leads to."""
    place = page.src_uri if page.generated_by else DOCS + page.src_uri
    path = posixpath.normpath(posixpath.join(posixpath.dirname(place), target))
    if (ROOT / path).is_dir():
        path = f"{path}/{OF_FOLDER}"
    return path.removeprefix(DOCS)


def _without_backslashes(row):
    return CODE.sub(lambda code: code.group().replace("\\|", "|"), row.group())


def _indented_by_4(match):
    """A block in a list as Python-Markdown wants it; for GitHub 2 or 3 are enough."""
    indent, block = match.groups()
    return re.sub(f"(?m)^{indent}", "    ", indent + block)
