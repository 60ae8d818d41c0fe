"""How a tokenizer lays out one text or two among its special tokens, read off its own template.

Shape letter: L tokens of one example.
"""

from __future__ import annotations

from typing import NamedTuple

from transformers import PreTrainedTokenizerFast

from tunecore.data.tokenizer import roles, text_backend


class Template(NamedTuple):
    """Special tokens before, between and after the texts, and the segment of each of the five parts."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    segments: tuple[int, int, int, int, int]

    @property
    def num_special(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)


class SpecialLayout(NamedTuple):
    """Roles and templates of a tokenizer.

    ``separates_documents``: the template adds nothing (GPT-2), so the beginning- and end-of-text tokens are put where
    a document begins and ends, and between two texts.
    """

    vocab_size: int
    cls_id: int | None
    sep_id: int | None
    mask_id: int | None
    pad_id: int
    bos_id: int | None
    eos_id: int | None
    single: Template
    pair: Template
    separates_documents: bool
    has_segments: bool
    sentinel_ids: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> SpecialLayout:
        """Probe the tokenizer's template with a text and a pair of texts."""
        role = roles(tokenizer)
        single, pair = probe_template(tokenizer, False), probe_template(tokenizer, True)
        separates = False
        if pair.num_special == 0 and role.eos_id is not None:
            separates = True
            bos, eos = () if role.bos_id is None else (role.bos_id,), (role.eos_id,)
            single, pair = Template(bos, (), eos, (0,) * 5), Template(bos, eos, eos, (0,) * 5)
        known = [i for i in (role.pad_id, role.eos_id, 0) if i is not None]
        return cls(
            vocab_size=len(tokenizer), cls_id=role.cls_id, sep_id=role.sep_id, mask_id=role.mask_id, pad_id=known[0],
            bos_id=role.bos_id, eos_id=role.eos_id, single=single, pair=pair, separates_documents=separates,
            has_segments="token_type_ids" in tokenizer.model_input_names and any(pair.segments),
            sentinel_ids=_sentinels(tokenizer),
        )


def _sentinels(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """Ids of <extra_id_0>, <extra_id_1> ... up to the first that is missing."""
    found: list[int] = []
    while (sentinel := tokenizer.backend_tokenizer.token_to_id(f"<extra_id_{len(found)}>")) is not None:
        found.append(sentinel)
    return tuple(found)


def probe_template(tokenizer: PreTrainedTokenizerFast, two: bool) -> Template:
    """What the tokenizer's own template puts around a text, or around and between two."""
    backend = text_backend(tokenizer)  # a saved tokenizer may pad everything it encodes
    first = backend.encode("a", add_special_tokens=False)
    second = backend.encode("b", add_special_tokens=False) if two else None
    made = backend.post_process(first, second, add_special_tokens=True)
    ids, types = list(made.ids), list(made.type_ids)
    texts = [i for i, special in enumerate(made.special_tokens_mask) if not special]
    a_start, a_stop = texts[0], texts[0] + len(first.ids)
    b_start, b_stop = (texts[len(first.ids)], texts[-1] + 1) if two else (a_stop, a_stop)

    def segment(start: int, stop: int) -> int:
        return int(types[start]) if stop > start else 0

    edges = (0, a_start, a_stop, b_start, b_stop, len(ids))
    return Template(
        before=tuple(ids[:a_start]), between=tuple(ids[a_stop:b_start]), after=tuple(ids[b_stop:]),
        segments=(
            segment(*edges[0:2]), segment(*edges[1:3]), segment(*edges[2:4]), segment(*edges[3:5]), segment(*edges[4:6])
        ),
    )
