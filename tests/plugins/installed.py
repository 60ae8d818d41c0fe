"""Words for plugins that tests install: their code, and why they do not load."""

from __future__ import annotations

import pytest

from tunecore import plugins
from tunecore.config import PluginsConfig
from tunecore.errors import PluginError


def failure(**options) -> str:
    with pytest.raises(PluginError) as caught:
        plugins.load_plugins(PluginsConfig(**options))
    return str(caught.value)


def hook(name: str, arguments: str, body: str = "pass") -> str:
    return f"import tunecore\n@tunecore.hookimpl\ndef {name}({arguments}):\n    {body}\n"
