"""Every hook with every fault, strict and lenient: the plugin and the hook are named, and nothing else is harmed."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from types import SimpleNamespace

import pytest

import tunecore
from tunecore import plugins
from tunecore.config import PluginsConfig, RunConfig
from tunecore.errors import DataError, PluginError
from tunecore.hook_check import HOOKS

REGISTERING = tuple(name for name in HOOKS if name.startswith("tunecore_register_"))
RUNNING = tuple(name for name in HOOKS if name not in REGISTERING)
QUIET = PluginsConfig(load=False)


@pytest.fixture(autouse=True)
def light_builtin(fresh_environment):
    """Built-ins without torch: tests/plugins/test_loader.py takes the real ones."""
    module = SimpleNamespace(__name__="light", tunecore_run_end=tunecore.hookimpl(lambda run: None))
    module.tunecore_run_end.__name__ = "tunecore_run_end"
    fresh_environment.setitem(sys.modules, "light_builtin", module)
    fresh_environment.setattr(plugins, "BUILTIN", "light_builtin")


def plugin_of(hook, body, name="Faulty", **more):
    """A plugin given in code whose hook, with all its arguments, does ``body(arguments)``."""
    names = ", ".join(HOOKS[hook])
    space = {"body": body, "tunecore": tunecore}
    given = ", ".join(f"{name}={name}" for name in HOOKS[hook])
    exec(f"@tunecore.hookimpl\ndef {hook}(self, {names}):\n    return body(dict({given}))", space)
    return type(name, (), {hook: space[hook], **more})()


def load(*extra, strict=True):
    return plugins.load_plugins(QUIET, extra=extra, strict=strict)


def arguments_of(hook):
    return {name: RunConfig() if name == "config" else [] for name in HOOKS[hook]}


def raising(error):
    def body(_):
        raise error

    return body


class TextlessError(Exception):
    def __str__(self):
        raise ZeroDivisionError


FAULTS = {
    "an error": (raising(ValueError("boom")), " in hook {hook}: ValueError: boom"),
    "SystemExit": (raising(SystemExit(3)), " in hook {hook}: SystemExit: 3"),
    "an error without words": (raising(AssertionError()), " in hook {hook}: AssertionError: "),
    "StopIteration": (raising(StopIteration("end")), " in hook {hook}: StopIteration: end"),
    "a deep recursion": (raising(RecursionError("deep")), " in hook {hook}: RecursionError: deep"),
    "no memory": (raising(MemoryError()), " in hook {hook}: MemoryError: "),
    "an error whose text fails": (raising(TextlessError()), " in hook {hook}: TextlessError (its text cannot be made"),
    "a list returned": (lambda _: [1], ": hook {hook} returned a list; it returns "),
    "False returned": (lambda _: False, ": hook {hook} returned a bool; it returns "),
    "a generator returned": (lambda _: (x for x in ()), ": hook {hook} returned a generator; it returns "),
    "a class returned": (lambda _: RunConfig, ": hook {hook} returned a type; it returns "),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("hook", REGISTERING)
def test_a_fault_at_registration_is_named_strictly_and_collected_leniently(hook, fault):
    body, message = FAULTS[fault]
    wanted = "plugin 'Faulty' (given in code)" + message.format(hook=hook)

    def half_way(arguments):
        arguments["register"]("mine", lambda options: "made")
        return body(arguments)

    with pytest.raises(PluginError) as caught:
        load(plugin_of(hook, half_way))
    assert str(caught.value).startswith(wanted)
    good = plugin_of("tunecore_step_end", lambda given: given["run"].append("good"), "Good")
    loaded = load(plugin_of(hook, half_way), good, strict=False)
    assert [info.name for info in loaded.loaded] == ["builtin", "Good"]
    assert [str(broken.error).startswith(wanted) for broken in loaded.broken] == [True]
    assert list(loaded.registry) == [], "what it registered before it failed is gone"
    calls = []
    loaded.hooks.tunecore_step_end(run=calls, metrics={})
    assert calls == ["good"]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("hook", RUNNING)
def test_a_fault_while_running_names_plugin_and_hook(hook, fault):
    body, message = FAULTS[fault]
    hooks = load(plugin_of(hook, body)).hooks
    with pytest.raises(PluginError) as caught:
        getattr(hooks, hook)(**arguments_of(hook))
    assert str(caught.value).startswith("plugin 'Faulty' (given in code)" + message.format(hook=hook))
    if "returned" not in fault:
        assert caught.value.__cause__ is not None


@pytest.mark.parametrize("hook", HOOKS)
def test_an_error_of_ours_and_an_interrupt_pass_with_their_type(hook):
    def call(error):
        loaded = load(plugin_of(hook, raising(error)))
        getattr(loaded.hooks, hook)(**arguments_of(hook))

    with pytest.raises(DataError, match=rf"plugin 'Faulty' \(given in code\) in hook {hook}: row 3"):
        call(DataError("row 3"))
    with pytest.raises(KeyboardInterrupt):
        call(KeyboardInterrupt())


@pytest.mark.parametrize("hook", RUNNING)
def test_the_plugins_before_a_faulty_one_have_had_their_turn(hook):
    calls = []
    first = plugin_of(hook, lambda _: calls.append("first"), "First")
    last = plugin_of(hook, lambda _: calls.append("last"), "Last")
    hooks = load(first, plugin_of(hook, raising(ValueError())), last).hooks
    with pytest.raises(PluginError):
        getattr(hooks, hook)(**arguments_of(hook))
    assert calls == ["first"]


@pytest.mark.parametrize("hook", HOOKS)
def test_what_a_hook_prints_is_its_own_affair(hook, capsys):
    hooks = load(plugin_of(hook, lambda _: print("hello"))).hooks
    getattr(hooks, hook)(**arguments_of(hook))
    assert "hello" in capsys.readouterr().out


def test_a_configuration_cannot_be_changed_in_place():
    def change(given):
        given["config"].training.steps = 3

    with pytest.raises(PluginError, match=r"'Faulty' .* in hook tunecore_configure: FrozenInstanceError: .*'steps'"):
        load(plugin_of("tunecore_configure", change)).hooks.tunecore_configure(config=RunConfig())


def test_a_configuration_made_wrong_is_an_error_of_the_plugin():
    def change(given):
        training = dataclasses.replace(given["config"].training, steps=-3)
        return dataclasses.replace(given["config"], training=training)

    with pytest.raises(tunecore.TunecoreError, match=r"'Faulty' .* in hook tunecore_configure: training.steps is -3"):
        load(plugin_of("tunecore_configure", change)).hooks.tunecore_configure(config=RunConfig())


@dataclasses.dataclass(frozen=True)
class Options:
    """A frozen dataclass, as it should be."""

    rate: float = 0.5


@dataclasses.dataclass
class Thawed:
    """One that can change."""


REGISTRATIONS = {
    "no name": (("", len, Options), "was registered under ''; names are non-empty strings"),
    "a number for a name": ((3, len, Options), "was registered under 3; names are non-empty strings"),
    "a factory that is none": (("mine", "made", Options), "factory of {kind} 'mine' is 'made', which cannot be called"),
    "options that can change": (("mine", len, Thawed), "Options of {kind} 'mine' must be a class made by"),
    "options that are an instance": (("mine", len, Options()), "Options of {kind} 'mine' must be a class made by"),
    "options that are a dict": (("mine", len, {}), "Options of {kind} 'mine' must be a class made by"),
    "too few arguments": (("mine",), "TypeError: "),
}


@pytest.mark.parametrize("fault", REGISTRATIONS)
@pytest.mark.parametrize("hook", REGISTERING)
def test_a_wrong_registration_is_named(hook, fault):
    given, message = REGISTRATIONS[fault]
    with pytest.raises(PluginError) as caught:
        load(plugin_of(hook, lambda arguments: arguments["register"](*given)))
    assert message.format(kind=plugins.REGISTER_KINDS[hook]) in str(caught.value)
    assert f"plugin 'Faulty' (given in code) in hook {hook}: " in str(caught.value)


@pytest.mark.parametrize("hook", REGISTERING)
def test_a_component_of_a_taken_name_names_both(hook):
    def register(arguments):
        arguments["register"]("same", lambda options: "made")

    with pytest.raises(
        PluginError, match=r"'same' of plugin 'Two' .* is already taken by plugin .One. \(given in"
    ):
        load(plugin_of(hook, register, "One"), plugin_of(hook, register, "Two"))


SLOW = """
import time
time.sleep(1.5)
import tunecore

@tunecore.hookimpl
def tunecore_step_end(run):
    run.append("slow")
"""


def test_a_slow_import_is_waited_for_when_it_is_needed_and_not_before(tmp_path):
    (tmp_path / "slow_plugin.py").write_text(SLOW)
    info = tmp_path / "slow-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slow\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tunecore.plugins]\nslow = slow_plugin\n")
    code = (
        "import time; begun = time.perf_counter(); from tunecore.plugins import list_plugins\n"
        "assert [item.info.name for item in list_plugins()] == ['slow']\n"
        "import sys; assert 'slow_plugin' not in sys.modules"
    )
    path = f"{tmp_path}:{':'.join(p for p in sys.path if p)}"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": path}, timeout=60)
