"""Batched generation against one prompt at a time in plain transformers; draws against the distribution they are of."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from tunecore.data.packing import pack
from tunecore.errors import ConfigError, DataError
from tunecore.generation import GenerationOptions, split_options
from tunecore.models.families.builtin import FAMILIES
from tunecore.models.loading import save_model
from tunecore.testing import make_model, make_tokenizer
from tunecore.training.distributed import Ranks
from tunecore.training.generation import Answers, Sampler, Writer
from tunecore.training.unit import ForwardPass
from tunecore.types import Example, Record

TASK = {"t5": "span_corruption", "bart": "denoising", "gpt2": "causal_lm", "llama": "causal_lm"}
TEXTS = ["The river carries", "A small boat remembers the quiet town. My", "Her", "Every morning train"]
NEW = 8


def shake(model, scale):
    """Away from even logits: of a new model nothing is likelier than anything else."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)


@pytest.fixture(scope="module", params=TASK)
def world(request, tmp_path_factory):
    """(name, tokenizer, our model, the same model as plain transformers loads it)."""
    name = request.param
    tokenizer, folder = make_tokenizer(name), tmp_path_factory.mktemp(name)
    model = make_model([TASK[name]], tokenizer, name)
    shake(model, 0.4 if name == "bart" else 0.15)
    save_model(model, folder, tokenizer)
    auto = AutoModelForSeq2SeqLM if FAMILIES[name].encoder_decoder else AutoModelForCausalLM
    return name, tokenizer, model, auto.from_pretrained(folder, attn_implementation="eager").eval()


def prompts_of(tokenizer, texts=TEXTS):
    return [np.asarray(tokenizer(text).input_ids, dtype=np.int64) for text in texts]


def write(world, prompts, row_ids=None, max_tokens=1 << 14, **options):
    name, tokenizer, model, _ = world
    made = GenerationOptions(**{"max_new_tokens": NEW, **options})
    writer = Writer(model, FAMILIES[name], tokenizer, 32, made, max_tokens=max_tokens)
    batches = list(writer.write(prompts, row_ids))
    written = dict(pair for batch in batches for pair in batch)
    assert sorted(written) == list(range(len(prompts)))
    return [written[place].ids for place in range(len(prompts))], [len(batch) for batch in batches]


def one_by_one(world, prompts, **options):
    """Plain transformers, one prompt a call, nothing padded, the whole row read anew for every token."""
    name, tokenizer, _, plain = world
    found = []
    for prompt in prompts:
        ids = torch.from_numpy(prompt)[None]
        output = plain.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, use_cache=False,
            **{"do_sample": False, "pad_token_id": tokenizer.pad_token_id, **options},
        )[0].tolist()  # fmt: skip
        new = output[1 if FAMILIES[name].encoder_decoder else len(prompt) :]
        end = new.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in new else len(new)
        found.append(tuple(new[:end]))
    return found


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "length_penalty": 0.5}, {"no_repeat_ngram_size": 2}])
def test_a_batch_writes_what_each_prompt_alone_would_give(world, options):
    prompts = prompts_of(world[1])
    ours, sizes = write(world, prompts, **options)
    assert sizes == [4]
    assert ours == one_by_one(world, prompts, **options)
    assert len(set(ours)) > 1, "all prompts have one answer: nothing is shown"
    assert write(world, prompts, max_tokens=1, **options) == (ours, [1, 1, 1, 1])


def test_draws_do_not_depend_on_the_batch_and_repeat_by_seed(world):
    prompts = prompts_of(world[1])
    drawn, _ = write(world, prompts, do_sample=True, temperature=1.5, seed=3)
    assert write(world, prompts, max_tokens=1, do_sample=True, temperature=1.5, seed=3)[0] == drawn
    alone, _ = write(world, prompts[2:3], [2], do_sample=True, temperature=1.5, seed=3)
    assert alone == drawn[2:3]
    assert write(world, prompts, do_sample=True, temperature=1.5, seed=4)[0] != drawn
    state = torch.get_rng_state()
    write(world, prompts, do_sample=True)
    assert torch.equal(state, torch.get_rng_state())


def test_drawing_from_the_one_likeliest_is_greedy(world):
    prompts = prompts_of(world[1])
    greedy, _ = write(world, prompts)
    assert write(world, prompts, top_k=1)[0] == write(world, prompts, top_p=1e-6)[0] == greedy
    assert write(world, prompts, do_sample=True, temperature=0.0)[0] == greedy


@pytest.mark.parametrize(
    ("options", "allowed"), [({}, 5), ({"temperature": 0.5}, 5), ({"top_k": 2}, 2), ({"top_p": 0.8}, 3)]
)
def test_draws_follow_the_distribution(options, allowed):
    logits = torch.tensor([0.0, 2.0, 1.0, -1.0, 1.5])
    p = (logits / options.get("temperature", 1.0)).softmax(-1)
    kept = torch.zeros(5).scatter(0, p.topk(allowed).indices, 1.0)
    expected = (p * kept / (p * kept).sum()).tolist()
    if "top_p" in options:  # the fewest likeliest that reach 0.8 together
        best = p.sort(descending=True).values.cumsum(0)
        assert best[allowed - 2] < 0.8 <= best[allowed - 1]
    rows = 4000
    sampler = Sampler(GenerationOptions(do_sample=True, **options), range(rows))
    counts = Counter(sampler(torch.zeros(rows, 1, dtype=torch.int64), logits.expand(rows, 5)).argmax(-1).tolist())
    for token, share in enumerate(expected):
        deviation = math.sqrt(share * (1 - share) / rows)
        assert abs(counts[token] / rows - share) <= 4.5 * deviation


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_prompt_that_sees_itself_is_read_as_a_packed_prefix(name):
    """Greedy search, every token by one packed forward with the prompt as prefix."""
    tokenizer, family = make_tokenizer(name), FAMILIES[name]
    model = make_model(["causal_lm"], tokenizer, name)
    shake(model, 0.15)
    prompts = prompts_of(tokenizer)
    expected = []
    for prompt in prompts:
        ids = prompt
        for _ in range(NEW):
            (batch,) = pack(
                [Example(0, ids, prefix_len=len(prompt))], max_tokens=1024, pad_id=0,
                position_offset=family.position_offset(model),
            )  # fmt: skip
            with torch.no_grad():
                row = ForwardPass(model, family, batch).hidden()[len(ids) - 1 : len(ids)]
                hidden, weight, _ = family.token_head(model, row)
            token = int((hidden @ weight.T).argmax())
            if token == tokenizer.eos_token_id:
                break
            ids = np.append(ids, token)
        expected.append(tuple(ids[len(prompt) :].tolist()))
    options = GenerationOptions(max_new_tokens=NEW)
    seen, unseen = (
        [
            dict(pair for batch in Writer(
                model, family, tokenizer, 32, options, bidirectional_prompt=whole, max_tokens=tokens
            ).write(prompts) for pair in batch)
            for tokens in (1 << 14, 1)
        ]
        for whole in (True, False)
    )  # fmt: skip
    assert seen[0] == seen[1] and unseen[0] == unseen[1]
    assert [seen[0][i].ids for i in range(len(prompts))] == expected
    assert seen[0] != unseen[0]


def test_text_comes_piece_by_piece(world):
    name, tokenizer, model, _ = world
    pieces: dict[int, list[str]] = {}
    writer = Writer(model, FAMILIES[name], tokenizer, 32, GenerationOptions(max_new_tokens=NEW))
    batches = list(writer.write(prompts_of(tokenizer), on_text=lambda i, text: pieces.setdefault(i, []).append(text)))
    for place, answer in (pair for batch in batches for pair in batch):
        assert "".join(pieces.get(place, [])).strip() == answer.text.strip()
    assert [len(batch) for batch in batches] == [1] * len(TEXTS)


def test_an_empty_prompt_begins_a_text():
    tokenizer = make_tokenizer("gpt2")
    model = make_model(["causal_lm"], tokenizer, "gpt2")
    writer = Writer(model, FAMILIES["gpt2"], tokenizer, 32, GenerationOptions(max_new_tokens=3))
    empty, begun = (np.asarray(ids, dtype=np.int64) for ids in ([], [tokenizer.bos_token_id]))
    (((_, one), (_, other)),) = writer.write([empty, begun])
    assert one == other


def test_what_does_not_fit_the_positions_is_named():
    tokenizer = make_tokenizer("gpt2")
    model = make_model(["causal_lm"], tokenizer, "gpt2")
    writer = Writer(model, FAMILIES["gpt2"], tokenizer, 32, GenerationOptions(max_new_tokens=30))
    with pytest.raises(DataError, match=r"prompt 1 has 5 tokens and max_new_tokens is 30, but .* positions end at 32"):
        list(writer.write([np.arange(2), np.arange(5)]))
    bart = make_model(["denoising"], make_tokenizer("bart"), "bart")
    with pytest.raises(DataError, match="max_new_tokens is 40"):
        list(Writer(bart, FAMILIES["bart"], make_tokenizer("bart"), 40, GenerationOptions()).write([np.arange(2)]))


@pytest.mark.parametrize("name", ["bart", "gpt2"])
def test_positions_are_used_up_to_the_last(name):
    tokenizer, family = make_tokenizer(name), FAMILIES[name]
    model = make_model([TASK[name]], tokenizer, name)
    assert family.max_length(model) == 32
    prompt = np.full(32 if name == "bart" else 2, 7)
    options = GenerationOptions(max_new_tokens=32 if name == "bart" else 31, min_new_tokens=31)
    (((_, answer),),) = Writer(model, family, tokenizer, 32, options).write([prompt])
    assert len(answer.ids) >= 31


def test_lengths_left_open_follow_max_length():
    for name, expected in (("t5", 20), ("gpt2", 10)):
        tokenizer = make_tokenizer(name)
        model = make_model([TASK[name]], tokenizer, name)
        assert Writer(model, FAMILIES[name], tokenizer, 20, GenerationOptions()).max_new_tokens == expected


def test_a_model_that_cannot_write_is_refused():
    tokenizer = make_tokenizer("bert")
    model = make_model(["masked_lm"], tokenizer)
    with pytest.raises(ConfigError, match="BertForMaskedLM cannot generate"):
        Writer(model, FAMILIES["bert"], tokenizer, 32, GenerationOptions())


def test_options_of_ours_and_of_transformers_are_told_apart():
    options, others = split_options({"top_k": 3, "bad_words_ids": [[1]]}, GenerationOptions(seed=5))
    assert (options.top_k, options.seed, options.samples, others) == (3, 5, True, {"bad_words_ids": [[1]]})
    assert not GenerationOptions(top_k=3, do_sample=False).samples
    assert not GenerationOptions(top_k=3, temperature=0).samples
    assert GenerationOptions(do_sample=True).samples




class Rows:
    def __init__(self, records):
        self.records = records

    def __len__(self):
        return len(self.records)


class Written:
    """Keeps what it is fed with."""

    def __init__(self):
        self.rows = {}

    def update_row(self, raw, record, row_id):
        (answer,) = raw
        self.rows[row_id] = (record.fields["text"], answer.ids)

    def state(self):
        return sorted(self.rows)

    def merge(self, others):
        for rows in others:
            self.rows.update(dict.fromkeys(rows))

    def compute(self):
        return {"rows": sorted(self.rows)}


class Echo:
    """A head of a plugin: only what is needed to write."""

    generate = True

    def prompt(self, record, tokenizer, max_length):
        return np.asarray(tokenizer(record.fields["text"]).input_ids[:max_length], dtype=np.int64)

    def metrics(self):
        return Written()


@pytest.fixture(scope="module")
def gpt2():
    tokenizer = make_tokenizer("gpt2")
    model = make_model(["causal_lm"], tokenizer, "gpt2")
    shake(model, 0.15)
    return Writer(model, FAMILIES["gpt2"], tokenizer, 32, GenerationOptions(max_new_tokens=4, temperature=1.2))


def answers(writer, **options):
    records = [Record({"text": f"{TEXTS[i % 4]} {i}"}, "rows", i) for i in range(11)]
    return Answers(writer, Echo(), Rows(records), 16, **options)


@pytest.mark.parametrize(("most", "expected"), [(None, list(range(11))), (4, [0, 2, 5, 8]), (99, list(range(11)))])
def test_ranks_share_the_rows_and_draw_what_one_would(gpt2, most, expected):
    alone = answers(gpt2, max_rows=most)
    assert sum(alone) == len(expected)
    shares = [answers(gpt2, max_rows=most, ranks=Ranks(rank=rank, world_size=3)) for rank in range(3)]
    for share in shares:
        assert sum(share) == len(share.row_ids)
    assert sorted(alone.metrics.rows) == expected
    assert {row: text for share in shares for row, text in share.metrics.rows.items()} == alone.metrics.rows
    assert sum(len(share.metrics.rows) for share in shares) == len(expected)


def test_only_the_first_rank_shows_progress(gpt2):
    shown = []

    def watch(amounts, total):
        for amount in amounts:
            shown.append((amount, total))
            yield amount

    list(answers(gpt2, ranks=Ranks(rank=1, world_size=2), watch=watch))
    assert shown == []
    list(answers(gpt2, max_rows=3, watch=watch))
    assert shown == [(3, 3)]
