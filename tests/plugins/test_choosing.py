"""Which plugins take part: allow, block, require and load of the configuration, and the environment."""

from __future__ import annotations

import warnings

import pytest
from installed import failure, hook

from tunecore import plugins
from tunecore.config import PluginsConfig


def names(**options) -> list[str]:
    return [info.name for info in plugins.load_plugins(PluginsConfig(**options)).loaded[1:]]


@pytest.fixture
def two(install):
    install("one", hook("tunecore_step_end", "run"), dist="My_First.Plugin")
    install("two", hook("tunecore_step_end", "run"), dist="second")


@pytest.mark.usefixtures("two")
def test_allow_and_block_take_entry_point_or_distribution_names():
    assert names() == ["one", "two"]
    assert names(allow=("one",)) == ["one"]
    assert names(allow=("my-first-plugin",)) == ["one"]
    assert names(block=("second",)) == ["one"]
    assert names(allow=()) == []
    assert names(load=False) == []
    assert names(allow=("two",), require=("one",)) == ["one", "two"]


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({"TUNECORE_PLUGINS": "one"}, ["one"]),
        ({"TUNECORE_PLUGINS": "second, one"}, ["one", "two"]),
        ({"TUNECORE_PLUGINS": ""}, []),
        ({"TUNECORE_DISABLE_PLUGINS": "one"}, ["two"]),
        ({"TUNECORE_DISABLE_PLUGINS": "*"}, []),
        ({"TUNECORE_DISABLE_PLUGIN_AUTOLOAD": "1"}, []),
        ({"TUNECORE_DISABLE_PLUGIN_AUTOLOAD": "0"}, ["one", "two"]),
        ({"TUNECORE_DISABLE_PLUGIN_AUTOLOAD": "1", "TUNECORE_PLUGINS": "two"}, ["two"]),
    ],
)
def test_the_environment_chooses(fresh_environment, environment, wanted):
    for name, value in environment.items():
        fresh_environment.setenv(name, value)
    assert names() == wanted


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("where", ["allow", "block", "TUNECORE_PLUGINS", "TUNECORE_DISABLE_PLUGINS"])
def test_a_name_that_matches_nothing_warns_with_the_nearest(fresh_environment, where):
    options = {}
    if where.startswith("TUNECORE"):
        fresh_environment.setenv(where, "secnd")
    else:
        options[where] = ("secnd",)
    wanted = "names 'secnd', which matches no installed plugin; did you mean 'second'"
    with pytest.warns(plugins.PluginWarning, match=wanted):
        plugins.load_plugins(PluginsConfig(**options))


@pytest.mark.usefixtures("two")
def test_names_that_match_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plugins.load_plugins(PluginsConfig(allow=("one",), block=("second",)))


@pytest.mark.usefixtures("two")
def test_a_required_plugin_must_be_installed_and_let_in():
    assert failure(require=("absent-plugin",)) == (
        "plugins.require names 'absent-plugin', which is not installed\n"
        "Install it (pip install absent-plugin), or take it out of plugins.require."
    )
    assert "may not load: blocked by plugins.block" in failure(require=("one",), block=("one",))
    assert "may not load: plugins.load is false" in failure(require=("one",), load=False)
