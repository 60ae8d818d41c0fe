"""Adapters as strategies of tunecore: ``lora``, and ``peft`` for any other kind that the library peft can merge.

The library is imported when one of them is used, not when the plugin is loaded.
"""

from __future__ import annotations

from collections.abc import Callable

from tunecore import hookimpl
from tunecore_peft.lora import Lora, LoraOptions
from tunecore_peft.peft_strategy import Peft, PeftOptions

tunecore_api = ">=1,<2"


@hookimpl
def tunecore_register_strategies(register: Callable[..., None]) -> None:
    register("lora", Lora, LoraOptions)
    register("peft", Peft, PeftOptions)
