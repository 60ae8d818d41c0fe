import ast
import doctest
import importlib
import json
import re
from pathlib import Path

import pytest
import yaml

from tunecore.config import PluginsConfig
from tunecore.config_io import check_components, load_config, load_stages
from tunecore.plugins import load_plugins
from tunecore.search.space import check_space

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md"])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    return [body for name, body in FENCE.findall(page.read_text(encoding="utf-8")) if name == language]


def heading_anchors(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


def test_the_numbers_of_concepts_are_computed():
    source = "".join(blocks(DOCS / "concepts.md", "pycon"))
    test = doctest.DocTestParser().get_doctest(source, {}, "concepts.md", str(DOCS / "concepts.md"), 0)
    assert len(test.examples) > 40
    report = []
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)


@pytest.mark.parametrize("number", ["0.4740", "0.5260", "0.5516", "1.01", "2.02", "3.03"])
def test_concepts_has_the_worked_numbers(number):
    assert number in (DOCS / "concepts.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name} links to {target}, which is not there"
        if anchor and path.suffix == ".md":
            assert anchor in heading_anchors(path), f"{page.name} links to {target}; there is no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_code_blocks_can_be_read(page):
    for body in blocks(page, "python"):
        ast.parse(body, filename=str(page))
    for body in blocks(page, "json"):
        json.loads(body)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_fences_are_closed(page):
    assert page.read_text(encoding="utf-8").count("\n```") % 2 == 0


def test_yaml_blocks_are_configurations():
    found, registry = 0, load_plugins(PluginsConfig(load=False)).registry
    for page in PAGES:
        for body in blocks(page, "yaml"):
            config = load_config(yaml.safe_load(body))
            for one in (config, *(stage.config for stage in load_stages(config))):
                check_components(one, registry)
                if one.search.space:
                    check_space(one, registry)
            found += 1
    assert found > 0


def test_the_plugin_of_the_readme_works(tmp_path, monkeypatch):
    path = tmp_path / "readme_plugin.py"
    path.write_text(blocks(ROOT / "README.md", "python")[1], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("readme_plugin")
    registry = load_plugins(PluginsConfig(load=False), extra=[module]).registry
    schedule = registry.create("schedule", "halving", {"every": 500})
    assert [schedule(step, 2000) for step in (0, 499, 500, 1999)] == [1.0, 1.0, 0.5, 0.125]


def test_readme_keeps_its_promises_of_length():
    python = blocks(ROOT / "README.md", "python")
    lengths = [len([line for line in body.splitlines() if line.strip()]) for body in python]
    assert lengths[0] <= 20, "the API in twenty lines"
    assert lengths[1] <= 15, "a plugin in fifteen lines"
