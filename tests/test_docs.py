"""The pages of docs/ run, build, and describe every public name."""

import html.parser
import importlib
import importlib.util
import inspect
import os
import pathlib
import re
import subprocess
import sys

import keras
import pytest

import et_optimizer
from tests.published import blocks, public, run

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {page.relative_to(DOCS).as_posix(): page for page in DOCS.rglob("*.md")}
# The pages with `memory_report`'s counts for Keras's Adafactor and this library's.
SHOW_ADAFACTORS = {"memory.md", "migrating.md"}
BUILDER = ("material", "mkdocs", "mkdocstrings")

needs_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="the pages use tf_keras",
)


WITH_PYTHON = sorted(name for name, page in PAGES.items() if any(blocks(page)))


@needs_tensorflow
@pytest.mark.parametrize("name", WITH_PYTHON)
def test_a_page_runs_from_top_to_bottom(name, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where it saves a model
    run(PAGES[name])
    printed = capsys.readouterr().out
    slots = re.findall(r"wide/kernel.*?1,024,000 │\s*([\d,]+) │", printed)
    is_shown = name in SHOW_ADAFACTORS
    assert slots == (["1,026,512", "2,512"] if is_shown else [])


def described():
    """The full names on the API pages."""
    pages = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    return set(re.findall(r"^::: (\S+)$", pages, re.MULTILINE))


def missing(module):
    """The public names of a module and its submodules that no page describes."""
    known, found = described(), []
    for name in public(module):
        value, full = getattr(module, name), f"{module.__name__}.{name}"
        if full not in known and name != "__version__":
            found.append(full)
        if inspect.ismodule(value):
            found += missing(value)
    return found


def test_every_public_name_is_on_an_api_page():
    assert missing(et_optimizer) == []
    assert "`__version__`" in (DOCS / "api" / "index.md").read_text()


@needs_tensorflow
def test_every_optimizer_for_tf_keras_is_on_an_api_page():
    module = importlib.import_module("et_optimizer.tf_keras")
    classes = [name for name in public(module) if inspect.isclass(vars(module)[name])]
    assert {f"et_optimizer.tf_keras.{name}" for name in classes} <= described()


@pytest.mark.one_backend
def test_the_pictures_are_what_draw_py_draws(tmp_path):
    spec = importlib.util.spec_from_file_location("draw", DOCS / "draw.py")
    drawing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawing)
    drawing.main(tmp_path)

    def shown(folder):
        # Releases of matplotlib differ in their SVG, but not in texts and colours.
        return {
            path.name: (
                re.findall(r">([^<>]+)</text>", path.read_text()),
                re.findall(r'style="(fill:[^"]*)"', path.read_text()),
            )
            for path in folder.iterdir()
        }

    assert shown(DOCS / "pictures") == shown(tmp_path)
    assert all(words and colours for words, colours in shown(tmp_path).values())


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site. Broken links and anchors are errors."""
    if not all(map(importlib.util.find_spec, BUILDER)):
        pytest.skip("needs mkdocs: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir"]
    built = subprocess.run(
        [*command, str(folder)],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return folder


class Loaded(html.parser.HTMLParser):
    """The pictures of a page, and the addresses of its scripts and styles."""

    def __init__(self, page):
        super().__init__()
        self.pictures, self.addresses = [], []
        self.feed(page.read_text())

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "img":
            self.pictures.append(attributes)
        if tag == "link" and attributes.get("rel") != "canonical":
            self.addresses.append(attributes.get("href") or "")
        self.addresses.append(attributes.get("src") or "")


@pytest.mark.one_backend
def test_the_site_builds_without_a_warning(site):
    assert (site / "index.html").is_file()
    built = {
        page.relative_to(site).with_suffix(".md").as_posix() for page in pages(site)
    }
    assert set(PAGES) <= built


def pages(site):
    return [page for page in site.rglob("*.html") if page.name != "404.html"]


@pytest.mark.one_backend
def test_every_picture_has_a_text_alternative(site):
    shown = [(page.name, one) for page in pages(site) for one in Loaded(page).pictures]
    assert len(shown) > 10
    assert [name for name, picture in shown if not picture.get("alt")] == []


@pytest.mark.one_backend
def test_the_site_loads_nothing_from_another_host(site):
    addresses = {one for page in pages(site) for one in Loaded(page).addresses}
    assert [one for one in addresses if re.match(r"(\w+:)?//", one)] == []
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", styles)


@pytest.mark.one_backend
def test_every_argument_is_on_an_api_page(site):
    shown = "".join(page.read_text() for page in (site / "api").glob("*.html"))
    counted = 0
    for full in sorted(described()):
        module, _, name = full.rpartition(".")
        if module not in sys.modules or full.endswith(".tf_keras"):
            continue
        thing = getattr(sys.modules[module], name)
        if not callable(thing) or not re.search("Args|Attributes", thing.__doc__):
            continue
        for argument, parameter in inspect.signature(thing).parameters.items():
            own = f'id="{full}({argument})"', f'title="{full}.{argument}"'
            is_one = parameter.kind is not parameter.VAR_KEYWORD
            assert not is_one or any(one in shown for one in own), f"{full}: {argument}"
            counted += is_one
    assert counted > 100


@pytest.mark.one_backend
def test_the_search_index_has_the_main_names(site):
    index = (site / "search" / "search_index.json").read_text()
    for name in ("ExtremeTensoring", "memory_plan", "SketchyShampoo", "Changelog"):
        assert name in index
