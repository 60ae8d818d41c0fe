"""How deep a parameter lies: what strategies count by.

Depth 0 is the embeddings, 1 to L are the blocks from the input up, L + 1 is all above them: the model's heads, and the
parameters of objectives' and heads' own modules. With two stacks the blocks are the encoder's and then the decoder's.
"""

from __future__ import annotations

from tunecore.types import Layers

EMBEDDINGS = 0
"""The depth of the embeddings."""


class Depths:
    """The depth of each parameter of a model, by name.

    Args:
        layers: ``family.layers(model)``.
    """

    def __init__(self, layers: Layers) -> None:
        self._prefixes = (layers.embeddings, *layers.blocks)

    @property
    def num_blocks(self) -> int:
        """L."""
        return len(self._prefixes) - 1

    @property
    def head(self) -> int:
        """L + 1."""
        return len(self._prefixes)

    def of(self, name: str) -> int:
        """The depth of the parameter called ``name``."""
        return next((at for at, prefixes in enumerate(self._prefixes) if name.startswith(prefixes)), self.head)
