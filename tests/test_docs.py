"""The documentation keeps its word: links and commands hold, defaults are the code's."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tianshou_ext import cli
from tianshou_ext.policy import METHODS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SCRIPTS = {
    path.name: path
    for folder in ("examples/atari", "examples/mujoco", "examples/cellworld", "tools", "benchmarks")
    for path in (ROOT / folder).glob("*.py")
}
ANY = {"method": "iql", "seed": "0", "schedule": "linear"}
"""What stands for a placeholder, ``<method>``, that lists no choices."""

WORDS = {"on": (True,), "off": (False,), "none": (None, "none")}
"""Defaults that a table writes in words, and what they may be in the code."""

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


def blocks(page: Path, language: str) -> Iterator[str]:
    """Yield the code blocks of a page in one language."""
    for found in re.finditer(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S):
        yield found.group(1)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of each command of ours in a page; the first alternative of a choice."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"<(\w+)[^>]*>", lambda found: ANY.get(found[1], found[1]), line)
            words = shlex.split(line, comments=True)
            if words[:1] == ["tianshou-ext"] or (words[:1] == ["python"] and words[1] != "-m"):
                yield words


def table_rows(page: Path) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the options and the defaults of each row of a page's tables of options."""
    inside = False
    for line in page.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| option | default |"):
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not line.startswith("|---") and "of the example" not in cells[0]:
            yield re.findall(r"`(\w+)`", cells[0]), re.split(r", (?![^(]*\))", cells[1])


def number(text: str) -> str:
    """Return a number of a table as Python writes it, as 1,000,000."""
    return text.replace(",000", "000")


@every_page
def test_links_and_pictures_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", page.read_text())
    for target in (first or second for first, second in targets):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{target}: no such file"
        assert not anchor or anchor in anchors(file), f"{target}: no such heading"


@every_page
def test_commands_parse(page, monkeypatch):
    pytest.importorskip("tyro")
    for folder in {path.parent for path in SCRIPTS.values()}:
        monkeypatch.syspath_prepend(str(folder))
    load = cli._load

    def only_parse(target):
        @functools.wraps(load(target))
        def command(*args, **kwargs):
            return None

        return command

    monkeypatch.setattr(cli, "_load", only_parse)
    for words in commands(page):
        what = " ".join(words)
        if words[0] == "tianshou-ext":
            with pytest.raises(SystemExit) as ended:
                cli.main(words[1:])
            assert ended.value.code == 0, what
            continue
        script = SCRIPTS[Path(words[1]).name]
        assert Path(words[1]).name == words[1] or (ROOT / words[1]) == script, what
        module = importlib.import_module(script.stem)
        monkeypatch.setattr(sys, "argv", words[1:])
        try:
            flags = script.read_text().count("tianshou_flags=True") > 0
            cli.launch(lambda args: None, module.Args, tianshou_flags=flags)
        except SystemExit as error:
            pytest.fail(f"{what} does not parse ({error.code})")


@every_page
def test_what_examples_import_exists(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("tianshou_ext"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


@pytest.mark.parametrize("name", list(METHODS))
def test_options_and_defaults_of_a_page_are_the_codes(name):
    config = METHODS[name].config_class()
    fields = {field.name for field in dataclasses.fields(config)}
    page, compared = ROOT / f"docs/methods/{name}.md", 0
    for option in type(config).__annotations__:
        assert f"`{option}`" in page.read_text(), f"the page does not explain {option}"
    for options, defaults in table_rows(page):
        assert set(options) <= fields, f"no options: {set(options) - fields}"
        for option, default in zip(options, defaults, strict=False):
            try:
                said = WORDS.get(default) or (ast.literal_eval(number(default)),)
            except (SyntaxError, ValueError):
                continue  # words: "as lr", "the data's"
            value = getattr(config, option)
            assert value in said, f"{option} is {value}, the page has {default}"
            compared += 1
    assert compared > 0, "the page has no table of options"
