"""Sentence vectors against plain transformers on single rows, and their losses against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel

from tunecore.errors import ConfigError, DataError
from tunecore.heads.sentence_embedding import NAME, SentenceEmbedding, SentenceEmbeddingOptions, cosent
from tunecore.models.families.builtin import FAMILIES
from tunecore.testing import tiny_documents
from tunecore.training.whole_rows import metrics_over
from tunecore.types import Head, Record

ONE_STACK = sorted(name for name, family in FAMILIES.items() if not family.encoder_decoder)
SCORES = (0.5, 3, 1.25, 4.0, 2.0, 0.0, 4.0, 5.0, 1.0, 2.5, 0.25, 3.5)


def head(**options):
    return SentenceEmbedding(SentenceEmbeddingOptions(**options))


def records(count=12):
    texts = tiny_documents()
    return [
        Record(
            {"text": texts[i][: 20 + 7 * i], "text_pair": texts[-1 - i][:60 - 3 * i], "no": texts[i][30:60],
             "label": SCORES[i]}, "pairs.jsonl", i + 1,
        )
        for i in range(count)
    ]  # fmt: skip


def vector(made, text, pooling):
    """The vector of one text, by the plain model on that row alone."""
    encoded = made.tokenizer(text, truncation=True, max_length=32, return_tensors="pt", return_attention_mask=False)
    model = made.unit.model
    with torch.no_grad():
        hidden = made.family.backbone(model)(**encoded).last_hidden_state[0]
        row = hidden[-1 if made.family.causal else 0]
        return {
            "mean": hidden.mean(0), "first": hidden[0], "last": hidden[-1],
            "pooler": made.family.pooled(model, row[None])[0],
        }[pooling].double().numpy()  # fmt: skip


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def expected(made, options, pooling="mean"):
    """The loss of all rows, by the definition."""
    first, second, wrong = (
        [vector(made, r.fields[name], pooling) for r in made.records] for name in ("text", "text_pair", "no")
    )
    rows, size = len(made.records), options.get("group_size", 32)
    groups = [range(i, min(i + size, rows)) for i in range(0, rows, size)]
    t = options.get("temperature", 0.05)
    if options["loss"] == "cosine":
        low, high = options.get("min", 0.0), options.get("max", 1.0)
        wanted = [(r.fields["label"] - low) / (high - low) for r in made.records]
        return sum((cosine(a, b) - y) ** 2 for a, b, y in zip(first, second, wanted, strict=True))
    total = 0.0
    for group in groups:
        if options["loss"] == "cosent":
            score = {i: made.records[i].fields["label"] for i in group}
            near = {i: cosine(first[i], second[i]) / t for i in group}
            wrongs = sum(math.exp(near[j] - near[i]) for i in group for j in group if score[i] > score[j])
            total += len(group) * math.log(1 + wrongs)
            continue
        others = [second[i] for i in group] + ([wrong[i] for i in group] if "negative" in options else [])
        for place, i in enumerate(group):
            scores = [cosine(first[i], other) / t for other in others]
            total += math.log(sum(map(math.exp, scores))) - scores[place]
    return total


LOSSES = [
    {"loss": "cosine", "min": 0.0, "max": 5.0},
    {"loss": "cosent", "group_size": 5, "temperature": 0.5},
    {"loss": "info_nce", "group_size": 5, "temperature": 0.5},
    {"loss": "info_nce", "group_size": 4, "temperature": 0.5, "negative": "no"},
]


@pytest.mark.parametrize("options", LOSSES, ids=lambda options: "-".join(map(str, options.values())))
def test_losses_are_their_definitions(options, build):
    made = build("bert", head(**options), records())
    with torch.no_grad():
        losses = [made.unit(batch)[NAME] for batch in made.pack(parts=2)]
    assert sum(loss.num_targets for loss in losses) == 12
    assert sum(loss.total.item() for loss in losses) == pytest.approx(expected(made, options), rel=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "first", "last", "pooler"])
@pytest.mark.parametrize("family", ONE_STACK)
def test_vectors_are_those_of_each_text_alone(family, pooling, build):
    options = {"loss": "cosine", "min": 0.0, "max": 5.0}
    made = build(family, head(pooling=pooling, **options), records(6))
    (batch,) = made.pack()
    with torch.no_grad():
        losses, raw = made.unit.assess(batch)
    assert raw.norm(dim=-1).tolist() == pytest.approx([1.0] * 12, rel=1e-5)
    texts = [r.fields[name] for r in made.records for name in ("text", "text_pair")]
    want = np.stack([v / np.linalg.norm(v) for v in (vector(made, text, pooling) for text in texts)])
    torch.testing.assert_close(raw.double(), torch.from_numpy(want), rtol=1e-3, atol=1e-4)
    assert losses[NAME].total.item() == pytest.approx(expected(made, options, pooling), rel=1e-3)


@pytest.mark.parametrize("options", LOSSES, ids=lambda options: "-".join(map(str, options.values())))
def test_groups_are_never_split_and_splitting_changes_no_gradient(options, build, assert_same_gradients):
    made = build("bert", head(**options), records())
    whole = made.gradient(made.pack())
    for batches in (made.pack(parts=3), made.pack(max_tokens=8)):
        assert len(batches) > 1 and not set(batches[0].groups) & set(batches[1].groups)
        assert_same_gradients(whole, made.gradient(batches))


@pytest.mark.parametrize("options", LOSSES, ids=lambda options: "-".join(map(str, options.values())))
def test_metrics_are_over_all_rows_whatever_the_batches(options, build):
    made = build("bert", head(**options), records())
    found = []
    for batches in (made.pack(), made.pack(max_tokens=8)):
        metrics = metrics_over(made.head, made.rows)
        for batch in batches:
            with torch.no_grad():
                metrics.update(made.unit.predict(batch), batch)
        found.append(metrics.compute())
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    first, second, wrong = (
        [vector(made, r.fields[name], "mean") for r in made.records] for name in ("text", "text_pair", "no")
    )
    if options["loss"] != "info_nce":
        cosines = [cosine(a, b) for a, b in zip(first, second, strict=True)]
        assert found[0]["pearson"] == pytest.approx(np.corrcoef(cosines, SCORES)[0, 1], abs=1e-4)
        return
    others = second + (wrong if "negative" in options else [])
    ranks = [1 + sum(cosine(a, b) > cosine(a, second[i]) for b in others) for i, a in enumerate(first)]
    assert found[0]["mrr"] == pytest.approx(np.mean([1 / rank for rank in ranks]))
    assert found[0]["accuracy"] == pytest.approx(np.mean([rank == 1 for rank in ranks]))
    assert made.head.default_metric in found[0]


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", "gpt2"])
@pytest.mark.parametrize("options", LOSSES, ids=lambda options: "-".join(map(str, options.values())))
def test_gradients_are_those_of_plain_transformers(options, family, build, assert_same_gradients, tmp_path):
    made = build(family, head(**options), records())
    plain = made.plain(tmp_path, AutoModel)
    vectors = []
    for name in ("text", "text_pair", "no"):
        texts = [r.fields[name] for r in made.records]
        inputs = made.tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="pt")
        mask = inputs["attention_mask"][..., None].float()
        vectors.append((plain(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1))
    first, second, wrong = vectors
    size, t, rows = options.get("group_size", 32), options.get("temperature", 1.0), torch.arange(12)
    scores = torch.tensor(SCORES) / options.get("max", 1)
    loss = torch.zeros(())
    for group in rows.split(size) if options["loss"] != "cosine" else [rows]:
        near = torch.cosine_similarity(first[group], second[group]) / t
        if options["loss"] == "cosine":
            loss = loss + (near - scores).square().sum()
        elif options["loss"] == "cosent":
            apart = (near[None] - near[:, None])[scores[group][:, None] > scores[group][None]]
            loss = loss + len(group) * torch.log1p(apart.exp().sum())
        else:
            others = torch.cat([second[group], wrong[group]]) if "negative" in options else second[group]
            similar = torch.cosine_similarity(first[group][:, None], others[None], dim=-1) / t
            loss = loss + torch.nn.functional.cross_entropy(similar, torch.arange(len(group)), reduction="sum")
    loss.backward()
    theirs = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    assert_same_gradients(theirs, made.gradient(made.pack(parts=2)), tolerance=5e-3)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-20, 20), st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=12))
def test_cosent_is_its_definition_for_any_scores_and_groups(rows):
    scaled, scores, groups = (torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True))
    total = 0.0
    for group in {g for _, _, g in rows}:
        here = [(c, s) for c, s, g in rows if g == group]
        wrong = sum(math.exp(cj - ci) for ci, si in here for cj, sj in here if si > sj)
        total += len(here) * math.log1p(wrong)
    assert cosent(scaled, scores, groups.long()).item() == pytest.approx(total, rel=1e-9, abs=1e-9)


def test_a_row_is_one_group_of_texts_the_first_with_the_target(build):
    made = build("bert", head(loss="info_nce", negative="no"), records(3))
    (row,) = made.rows.examples(1, 0, None)[:1]
    assert isinstance(made.head, Head)
    assert [e.part for e in made.rows.examples(1, 0, None)] == [0, 1, 2]
    assert row.targets[NAME].labels.tolist() == [1]
    assert {e.group for e in made.examples} == {0}  # the group of rows, not the row


def test_predictions_are_vectors_cosines_or_scores():
    ours = head(normalize=False)
    one = ours.decode([torch.tensor([3.0, 4.0])], None, 2)
    assert (one.label, one.row_id) == ([3.0, 4.0], 2)
    both = [torch.tensor([1.0, 0.0]), torch.tensor([3.0, 4.0])]
    assert ours.decode(both, None, 0).label == pytest.approx(0.6)
    assert head(loss="cosine", min=0, max=5).decode(both, None, 0).label == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"text": "a", "label": 1}, {}, r"a\.csv:2: there is no column 'text_pair'; columns found: text, label"),
        ({"text": "a", "text_pair": "b"}, {}, r"a\.csv:2: there is no column 'label'"),
        ({"text": "a", "text_pair": "b", "label": "nan"}, {}, r"a\.csv:2: the number \(column 'label'\) is nan"),
        ({"text": "a", "text_pair": "b", "label": ""}, {}, r"a\.csv:2: the number \(column 'label'\) is missing"),
        ({"text": "a", "text_pair": 3, "label": 1}, {}, r"a\.csv:2: column 'text_pair' is 3"),
        ({"text": "a", "text_pair": "b", "label": 3}, {"loss": "cosine"}, r"a\.csv:2: 3.0 .*outside -1.0 to 1.0"),
        ({"text": "a", "text_pair": "b", "label": 6}, {"loss": "cosine", "min": 0, "max": 5}, r"outside 0 to 5"),
        ({"text": "a", "text_pair": "b"}, {"loss": "info_nce", "negative": "no"}, r"no column 'no'"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(row, options, message):
    with pytest.raises(DataError, match=message):
        head(**options).prepare([Record(row, "a.csv", 2)])


def test_scores_that_are_all_the_same_teach_nothing():
    rows = [Record({"text": "a", "text_pair": "b", "label": 1}, "a.csv", i) for i in (2, 3)]
    with pytest.raises(DataError, match=r"every training row has the score 1.0.*a\.csv"):
        head().prepare(rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "mse"}, "loss is 'mse'; it must be one of cosent, cosine, info_nce"),
        ({"pooling": "max"}, "pooling is 'max'"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"group_size": 1}, "group_size is 1"),
        ({"negative": "no"}, "negative is set"),
        ({"loss": "cosine", "min": 0.0}, "set both or neither"),
        ({"min": 0.0, "max": 5.0}, "which the loss cosent does not read"),
    ],
)
def test_options_that_do_not_fit_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        head(**options)
