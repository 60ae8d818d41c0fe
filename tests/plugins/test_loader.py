"""Finding, choosing, checking and naming plugins. Each test installs plugins as a stranger would: with metadata."""

from __future__ import annotations

import dataclasses
import sys

import pytest
from installed import failure, hook

import tunecore
from tunecore import hookspecs, plugins
from tunecore.config import PluginsConfig, RunConfig
from tunecore.errors import ConfigError, DataError, PluginError
from tunecore.hook_check import HOOKS

GOOD = """
    from dataclasses import dataclass
    import tunecore

    @dataclass(frozen=True)
    class Options:
        rate: float = 0.5

    @tunecore.hookimpl
    def tunecore_register_objectives(register):
        register("echo", lambda options: ("echo", options.rate), Options)
"""


def test_a_good_plugin_registers_after_the_builtins_and_is_named(install):
    install("echo", GOOD)
    loaded = plugins.load_plugins()
    assert [info.owner for info in loaded.loaded] == [
        f"plugin 'builtin' (tunecore {tunecore.__version__})",
        "plugin 'echo' (dist-echo 1.2)",
    ]
    assert loaded.registry.create("objective", "echo", {"rate": 0.25}) == ("echo", 0.25)
    assert loaded.registry.entry("objective", "echo").owner == "plugin 'echo' (dist-echo 1.2)"
    assert loaded.registry.create("strategy", "full") == "full"
    assert loaded.versions()["echo"] == "dist-echo 1.2"
    assert loaded.broken == []


def test_an_object_with_methods_is_a_plugin_too(install):
    code = """
        import tunecore

        class Counter:
            calls = 0

            @property
            def fragile(self):
                raise RuntimeError("properties must not be evaluated")

            @tunecore.hookimpl(specname="tunecore_step_end")
            def after_step(self, metrics):
                self.calls += metrics["n"]

        counter = Counter()
    """
    module = install("counter", code, target=":counter")
    plugins.load_plugins().hooks.tunecore_step_end(run=[], metrics={"n": 3})
    assert sys.modules[module].counter.calls == 3


def test_hooks_are_called_builtins_first_then_by_distribution_and_name(install):
    install("b", hook("tunecore_step_end", "run", "run.append('b of z')"), dist="z")
    install("a", hook("tunecore_step_end", "run", "run.append('a of z')"), dist="z")
    install("c", hook("tunecore_step_end", "run", "run.append('c of y')"), dist="y")
    calls: list[str] = []
    plugins.load_plugins().hooks.tunecore_step_end(run=calls, metrics={})
    assert calls == ["builtin", "c of y", "a of z", "b of z"]


def test_configure_goes_from_plugin_to_plugin(install):
    change = "import dataclasses; return dataclasses.replace(config, output_dir=config.output_dir + '/{}')"
    install("one", hook("tunecore_configure", "config", change.format(1)), dist="a")
    install("silent", hook("tunecore_configure", "config"), dist="b")
    install("two", hook("tunecore_configure", "config", change.format(2)), dist="c")
    changed = plugins.load_plugins().hooks.tunecore_configure(config=RunConfig(output_dir="r"))
    assert changed.output_dir == "r/1/2"


def test_every_hook_reaches_a_plugin_with_all_its_arguments(install):
    body = "seen[{name!r}] = dict(locals())"
    parts = ["import tunecore", "seen = {}"]
    for name, arguments in HOOKS.items():
        listed = ", ".join(arguments)
        parts.append(f"@tunecore.hookimpl\ndef {name}({listed}):\n    {body.format(name=name)}")
    module = install("all", "\n".join(parts))
    loaded = plugins.load_plugins()
    config = RunConfig()
    for name, arguments in HOOKS.items():
        if not name.startswith("tunecore_register_"):
            given = {argument: config if name == "tunecore_configure" else [] for argument in arguments}
            getattr(loaded.hooks, name)(**given)
    seen = sys.modules[module].seen
    assert seen.keys() == HOOKS.keys()
    assert all(tuple(seen[name]) == arguments for name, arguments in HOOKS.items())


def test_listing_imports_nothing_and_is_sorted(install):
    module = install("b", "raise RuntimeError('imported')", dist="z")
    install("a", GOOD, dist="z")
    install("c", GOOD, dist="y")
    listed = plugins.list_plugins(PluginsConfig(block=("c",)))
    assert [(item.info.distribution, item.info.name, item.selected) for item in listed] == [
        ("y", "c", False), ("z", "a", True), ("z", "b", True),
    ]  # fmt: skip
    assert listed[0].reason == "blocked by plugins.block"
    assert module not in sys.modules


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_module_xyz", "ModuleNotFoundError: No module named 'no_such_module_xyz'"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("def broken(:", "SyntaxError"),
    ],
)
def test_import_errors_name_the_plugin_and_the_way_out(install, code, message):
    install("bad", code)
    text = failure()
    assert "plugin 'bad' (dist-bad 1.2) could not be loaded from 'plug_" in text
    assert message in text
    assert "plugins.block: [bad]" in text and "TUNECORE_DISABLE_PLUGINS=bad" in text and "uninstall dist-bad" in text


def test_a_missing_object_in_a_module_is_an_import_error(install):
    install("bad", "x = 1", target=":nothing")
    assert "AttributeError" in failure()


def test_keyboard_interrupt_at_import_passes(install):
    install("bad", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        plugins.load_plugins(strict=False)


def test_a_misspelt_hook_names_the_nearest(install):
    install("typo", hook("tunecore_steps_end", "run, metrics"))
    text = failure()
    assert text.startswith("plugin 'typo' (dist-typo 1.2): there is no hook 'tunecore_steps_end'. Did you mean")
    assert "tunecore_step_end" in text


def test_a_hook_like_no_other_lists_the_known(install):
    install("typo", hook("zzz", "run"))
    assert all(name in failure() for name in HOOKS)


def test_a_wrong_argument_names_the_right_ones(install):
    install("arg", hook("tunecore_step_end", "run, metric"))
    assert failure() == (
        "plugin 'arg' (dist-arg 1.2): hook tunecore_step_end takes (run, metrics), but not 'metric'\n"
        "Did you mean 'metrics'?"
    )


@pytest.mark.parametrize("arguments", ["run, metrics=None", "run, *, metrics"])
def test_an_argument_that_would_never_be_given_is_refused(install, arguments):
    install("arg", hook("tunecore_step_end", arguments))
    assert "argument 'metrics' of hook tunecore_step_end is keyword-only or has a default" in failure()


def test_an_unmarked_hook_is_refused(install):
    install("bare", "def tunecore_step_end(run):\n    pass\n")
    assert "function tunecore_step_end is not marked" in failure()
    assert "@tunecore.hookimpl" in failure()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1", "has no function marked with @tunecore.hookimpl"),
        ("import tunecore\n@tunecore.hookimpl(wrapper=True)\ndef tunecore_step_end(run):\n    yield", "is a wrapper"),
        ("import tunecore\n@tunecore.hookimpl\nasync def tunecore_step_end(run):\n    pass", "is a coroutine"),
        (
            "import tunecore\n@tunecore.hookimpl\ndef tunecore_step_end(run): pass\n"
            "@tunecore.hookimpl(specname='tunecore_step_end')\ndef again(run): pass",
            "implements hook tunecore_step_end twice",
        ),
    ],
)
def test_plugins_that_would_do_nothing_or_the_wrong_thing_are_refused(install, code, message):
    install("odd", code)
    text = failure()
    assert "plugin 'odd' (dist-odd 1.2)" in text and message in text


def test_a_class_is_not_a_plugin(install):
    install("cls", "class Plugin:\n    pass\n", target=":Plugin")
    assert "Plugin is a class" in failure() and "instance" in failure()


def test_a_taken_name_names_both_owners_and_leaves_no_trace(install):
    install("first", GOOD, dist="a")
    second = GOOD + "        register('other', lambda options: 'other')\n"
    second = second.replace('register("echo"', 'register("fresh", lambda options: 1)\n        register("echo"')
    install("second", second, dist="b", version="2.0")
    text = failure()
    assert "objective 'echo' of plugin 'second' (b 2.0) is already taken by plugin 'first' (a 1.2)" in text
    assert text.startswith("plugin 'second' (b 2.0) in hook tunecore_register_objectives: ")
    assert "plugins.block" in text
    lenient = plugins.load_plugins(strict=False)
    assert lenient.registry.names("objective") == ["echo"]
    assert [info.name for info in lenient.loaded] == ["builtin", "first"]


def test_a_plugin_that_fails_half_way_leaves_no_hook_behind(install):
    code = """
        import tunecore

        @tunecore.hookimpl
        def tunecore_register_heads(register):
            register("mine", lambda options: 1)

        @tunecore.hookimpl
        def tunecore_register_trackers(register):
            raise ValueError("no tracker today")

        @tunecore.hookimpl
        def tunecore_step_end(run):
            run.append("half")
    """
    install("half", code)
    loaded = plugins.load_plugins(strict=False)
    calls: list[str] = []
    loaded.hooks.tunecore_step_end(run=calls, metrics={})
    assert calls == ["builtin"]
    assert loaded.registry.names("head") == []
    assert [broken.info.name for broken in loaded.broken] == ["half"]
    assert str(loaded.broken[0].error) == (
        "plugin 'half' (dist-half 1.2) in hook tunecore_register_trackers: ValueError: no tracker today"
    )


def test_lenient_loading_keeps_the_good_and_collects_the_bad(install):
    install("bad", "import no_such_module_xyz")
    install("good", GOOD)
    install("typo", hook("tunecore_steps_end", "run"))
    loaded = plugins.load_plugins(strict=False)
    assert [info.name for info in loaded.loaded] == ["builtin", "good"]
    assert [broken.info.name for broken in loaded.broken] == ["bad", "typo"]


def test_one_name_in_two_distributions_names_both(install):
    install("same", GOOD, dist="a", version="1.0")
    install("same", GOOD, dist="b", version="2.0")
    text = failure()
    assert "two distributions have a plugin named 'same': a 1.0 and b 2.0" in text and "plugins.block: [a]" in text
    assert [b.info.distribution for b in plugins.load_plugins(strict=False).broken] == ["a", "b"]
    assert plugins.load_plugins(PluginsConfig(block=("a",))).versions()["same"] == "b 2.0"


@pytest.mark.parametrize("value", ["'>=2'", "'<1'"])
def test_another_api_version_is_refused(install, value):
    install("old", f"tunecore_api = {value}\n" + hook("tunecore_step_end", "run"))
    version = ".".join(map(str, hookspecs.HOOKSPEC_VERSION))
    assert f"was written for tunecore hooks {value}; this tunecore has version {version}" in failure()


def test_a_fitting_api_version_loads_and_a_malformed_one_is_named(install):
    install("fits", "tunecore_api = '>=1,<2'\n" + hook("tunecore_step_end", "run"))
    assert plugins.load_plugins().versions()["fits"] == "dist-fits 1.2"
    install("odd", "tunecore_api = 'one'\n" + hook("tunecore_step_end", "run"))
    assert "tunecore_api is 'one', which is no version range" in failure()


@pytest.mark.parametrize(
    ("name", "arguments", "body", "wanted"),
    [
        ("tunecore_configure", "config", "return {}", "returned a dict; it returns a RunConfig or nothing"),
        ("tunecore_step_end", "run", "return 3", "returned a int; it returns nothing"),
    ],
)
def test_a_wrong_return_type_is_named_when_it_happens(install, name, arguments, body, wanted):
    install("ret", hook(name, arguments, body))
    hooks = plugins.load_plugins().hooks
    given = {"config": RunConfig()} if name == "tunecore_configure" else {"run": [], "metrics": {}}
    with pytest.raises(PluginError, match=wanted) as caught:
        getattr(hooks, name)(**given)
    assert f"plugin 'ret' (dist-ret 1.2): hook {name}" in str(caught.value)


def test_a_register_hook_that_returns_instead_of_registering_is_refused(install):
    install("ret", hook("tunecore_register_heads", "register", "return ['head']"))
    assert "hook tunecore_register_heads returned a list; it returns nothing" in failure()


@pytest.mark.parametrize("code", ["raise ValueError('boom')", "raise SystemExit('boom')"])
def test_a_hook_that_raises_is_named_with_its_cause(install, code):
    install("raises", hook("tunecore_step_end", "run", code))
    with pytest.raises(PluginError) as caught:
        plugins.load_plugins().hooks.tunecore_step_end(run=[], metrics={})
    kind = code.split()[1].split("(")[0]
    assert str(caught.value) == f"plugin 'raises' (dist-raises 1.2) in hook tunecore_step_end: {kind}: boom"
    assert type(caught.value.__cause__).__name__ == kind


def test_an_error_of_tunecore_keeps_its_type_and_hint_and_names_the_plugin(install):
    body = "from tunecore.errors import DataError; raise DataError('row 3 is bad', hint='Mend it.')"
    install("data", hook("tunecore_batch_ready", "run, batch", body))
    with pytest.raises(DataError) as caught:
        plugins.load_plugins().hooks.tunecore_batch_ready(run=None, batch=None)
    assert str(caught.value) == "plugin 'data' (dist-data 1.2) in hook tunecore_batch_ready: row 3 is bad\nMend it."


def test_keyboard_interrupt_in_a_hook_passes(install):
    install("stop", hook("tunecore_step_end", "run", "raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        plugins.load_plugins().hooks.tunecore_step_end(run=[], metrics={})


def test_a_hook_the_contract_lacks_cannot_be_called(install):
    with pytest.raises(AttributeError, match="'tunecore_nothing' is not a hook"):
        plugins.load_plugins().hooks.tunecore_nothing(run=None)


def test_plugins_given_in_code_join_last_and_are_checked(install):
    class Mine:
        @tunecore.hookimpl
        def tunecore_step_end(self, run):
            run.append("mine")

    install("z", hook("tunecore_step_end", "run", "run.append('z')"))
    calls: list[str] = []
    loaded = plugins.load_plugins(extra=[Mine()])
    loaded.hooks.tunecore_step_end(run=calls, metrics={})
    assert calls == ["builtin", "z", "mine"]
    assert loaded.loaded[-1].owner == "plugin 'Mine' (given in code)"
    with pytest.raises(PluginError, match="Mine is a class"):
        plugins.load_plugins(extra=[Mine])


def test_the_factory_of_a_plugin_that_fails_is_named(install):
    install("echo", GOOD.replace('("echo", options.rate)', "1 / 0"))
    registry = plugins.load_plugins().registry
    wanted = r"plugin 'echo' \(dist-echo 1.2\): making objective 'echo' failed: ZeroDivision"
    with pytest.raises(PluginError, match=wanted):
        registry.create("objective", "echo")
    with pytest.raises(ConfigError, match=r"no option 'rat'. Did you mean 'rate'"):
        registry.create("objective", "echo", {"rat": 1})


def test_the_real_builtins_come_through_the_same_hooks(fresh_environment):
    loaded = plugins.load_plugins(PluginsConfig(load=False))
    assert {"masked_lm", "next_sentence", "causal_lm"} <= set(loaded.registry.names("objective"))
    assert {"full", "head_only"} <= set(loaded.registry.names("strategy"))
    assert {"bert", "roberta", "distilbert", "electra", "gpt2"} <= set(loaded.registry.names("family"))
    assert all(loaded.registry.names(kind) for kind in plugins.REGISTER_KINDS.values())
    assert {entry.owner for entry in loaded.registry} == {loaded.loaded[0].owner}
    assert all(dataclasses.is_dataclass(entry.options) for entry in loaded.registry)


@pytest.mark.parametrize(
    ("hook_name", "kind"),
    [
        ("tunecore_register_objectives", "objective"),
        ("tunecore_register_heads", "head"),
        ("tunecore_register_strategies", "strategy"),
        ("tunecore_register_optimizers", "optimizer"),
        ("tunecore_register_schedules", "schedule"),
        ("tunecore_register_sources", "source"),
        ("tunecore_register_families", "family"),
        ("tunecore_register_trackers", "tracker"),
    ],
)
def test_every_register_hook_registers_its_kind(install, hook_name, kind):
    install("mine", hook(hook_name, "register", "register('mine', lambda options: 'made')"))
    loaded = plugins.load_plugins()
    assert loaded.registry.create(kind, "mine") == "made"
    assert [entry.kind for entry in loaded.registry if entry.name == "mine"] == [kind]


def test_every_register_hook_has_a_kind():
    assert set(plugins.REGISTER_KINDS) == {name for name in HOOKS if name.startswith("tunecore_register_")}
