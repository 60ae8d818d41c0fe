"""Tiny BERT, GPT-2 and T5 models, and where each of their parameters lies, written out by hand."""

from types import SimpleNamespace

import pytest

from tunecore.models.families.builtin import FAMILIES
from tunecore.testing import make_model, make_tokenizer
from tunecore.types import ParamPlan

TASKS = {"bert": "sequence_classification", "gpt2": "sequence_classification", "t5": "span_corruption"}
DEPTHS = {
    "bert": {
        "bert.embeddings.": 0, "bert.encoder.layer.0.": 1, "bert.encoder.layer.1.": 2, "bert.pooler.": 3,
        "classifier.": 3, "tasks.": 3,
    },
    "gpt2": {
        "transformer.wte.": 0, "transformer.wpe.": 0, "transformer.h.0.": 1, "transformer.h.1.": 2,
        "transformer.ln_f.": 2, "score.": 3, "tasks.": 3,
    },
    "t5": {
        "shared.": 0, "encoder.block.0.": 1, "encoder.block.1.": 2, "encoder.final_layer_norm.": 2,
        "decoder.block.0.": 3, "decoder.block.1.": 4, "decoder.final_layer_norm.": 4, "lm_head.": 5, "tasks.": 5,
    },
}  # fmt: skip


@pytest.fixture(scope="session")
def tokenizers():
    return {name: make_tokenizer(name) for name in DEPTHS}


@pytest.fixture(params=list(DEPTHS))
def small(request, tokenizers):
    """A model with its family, the plans a run starts from, and the depth of each parameter."""
    name = request.param
    model = make_model([TASKS[name]], tokenizers[name], name)
    names = [*(n for n, _ in model.named_parameters()), "tasks.other.weight"]
    depths = {}
    for one in names:
        (depths[one],) = [depth for prefix, depth in DEPTHS[name].items() if one.startswith(prefix)]
    return SimpleNamespace(
        model=model, family=FAMILIES[name], name=name, depths=depths, plans=dict.fromkeys(names, ParamPlan()),
        blocks={"bert": 2, "gpt2": 2, "t5": 4}[name],
    )  # fmt: skip
