from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from tunecore.data.packing import pack
from tunecore.data.streams import PhiloxStream
from tunecore.errors import ConfigError
from tunecore.objectives.causal_lm import CausalLM, CausalLMOptions
from tunecore.types import Example, Progress

START = Progress(0, 100, 0.0, 1.0)


def with_targets(ids, row_id=0):
    example = Example(row_id=row_id, input_ids=np.asarray(ids, dtype=np.int64))
    return CausalLM(CausalLMOptions()).corrupt(example, None, PhiloxStream(0), START)


def test_targets_are_the_next_tokens_and_inputs_stay():
    example = with_targets([7, 8, 9, 5])
    assert example.input_ids.tolist() == [7, 8, 9, 5]
    assert example.targets["causal_lm"].index.tolist() == [0, 1, 2]
    assert example.targets["causal_lm"].labels.tolist() == [8, 9, 5]


def test_a_single_token_has_nothing_to_predict():
    assert with_targets([7]).targets == {}


def test_targets_never_cross_a_packed_boundary():
    batch, = pack([with_targets([7, 8, 9]), with_targets([1, 2], row_id=1)], max_tokens=64, position_offset=0, pad_id=0)
    ids = batch.input_ids[0]
    index, labels, level = batch.targets["causal_lm"]
    assert level == "token"
    assert index.tolist() == [0, 1, 3]
    assert labels.tolist() == ids[index + 1].tolist() == [8, 9, 2]


def test_assemble_lays_the_chunk_out(make_corpus):
    corpus = make_corpus([(0, [[[10], [11]]])])
    example = CausalLM(CausalLMOptions()).assemble(corpus, 0, PhiloxStream(0))
    assert np.array_equal(example.input_ids, corpus.add_special(corpus[0]).input_ids)


def test_a_family_that_reads_both_ways_is_refused():
    with pytest.raises(ConfigError, match="bert reads both ways"):
        CausalLM(CausalLMOptions()).build(None, SimpleNamespace(causal=False, model_type="bert"))
    assert CausalLM(CausalLMOptions()).build(None, SimpleNamespace(causal=True, model_type="gpt2")) is None


def test_options_out_of_range_are_named():
    with pytest.raises(ConfigError, match=r"causal_lm\.label_smoothing"):
        CausalLMOptions(label_smoothing=-0.5)
