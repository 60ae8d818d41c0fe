"""What is fuzzed: a reader of the library, and valid files for it; it must read, or raise a typed error."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from mutate import json_bytes, mutated, mutated_json
from safetensors.torch import save

from tunecore import checkpoint
from tunecore.config import RunConfig
from tunecore.config_io import dump_config, load_config
from tunecore.data.corpus_file import CorpusFile
from tunecore.data.sources import expand_paths, read_records
from tunecore.data.tokenizer import load_tokenizer
from tunecore.models.families.builtin import FAMILIES
from tunecore.models.folder import check_config, load_tensors, loaded_config, weight_files
from tunecore.run_folder import read_result
from tunecore.saved_tasks import facts_of_transformers, head_of_transformers, read_saved
from tunecore.tiny import make_corpus, make_tokenizer, tiny_documents, tiny_records
from tunecore.tracking.jsonl import read_rows
from tunecore.tracking.report import write_report
from tunecore.training.state import read_state

Read = Callable[[Path], Any]


class Target(NamedTuple):
    """A reader under attack."""

    name: str
    """Of the file the reader is given, in a folder of its own."""
    read: Read
    """Is given that file."""
    share: int
    """Executions of the default run; all together are ten thousand."""
    seeds: list[bytes]
    tree: Any = None
    """The JSON value of the file, where there is one: half of the executions change it as a tree."""
    finish: Callable[[bytes], bytes] = bytes
    """Puts digests in order, or packs, so that what lies behind is met; in half of the executions."""
    inner: list[bytes] | None = None
    """What is damaged before it is packed."""

    def made(self, random: Random) -> bytes:
        """One damaged file."""
        if self.inner is not None and random.random() < 0.5:
            return self.finish(mutated(random.choice(self.inner), self.inner, random))
        if self.tree is not None and random.random() < 0.5:
            data = json_bytes(mutated_json(self.tree, random))
        else:
            data = mutated(random.choice(self.seeds), self.seeds, random)
        return self.finish(data) if self.inner is None and random.random() < 0.5 else data


def _read_all(path: Path) -> None:
    list(read_records(expand_paths([str(path)])))


def _resigned(data: bytes) -> bytes:
    """A manifest whose own digest is right again."""
    try:
        content = json.loads(data)
        content.pop("sha256")
        canonical = checkpoint._canonical(content)
        return checkpoint._manifest_bytes(content, checkpoint.hashlib.sha256(canonical).hexdigest())
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return data


def _manifest(path: Path) -> None:
    if not (path.parent / "state.json").exists():
        (path.parent / "state.json").write_text("{}")
    checkpoint.verify(path.parent)


def _config_json(path: Path) -> None:
    saved, _ = read_saved(path.parent)
    head = head_of_transformers(saved)
    if head is not None:
        facts_of_transformers(saved, head)
    family = FAMILIES["bert"]
    check_config(family, loaded_config(family.auto_class(frozenset()), saved, {}, path.parent), str(path))


def _corpus(path: Path) -> None:
    corpus = CorpusFile(path)
    corpus.ids[:64].sum() + corpus.ids[-64:].sum()
    for column in corpus.columns:
        corpus.bits(column, 0, len(corpus.ids))
    corpus.verify()


def _tokenizer(path: Path) -> None:
    load_tokenizer(path)


def _report(path: Path) -> None:
    read_rows(path)
    write_report(path.parent)


def _zip(**members: bytes) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_", "."), content)
    return held.getvalue()


def _zipped_json(content: bytes) -> bytes:
    return _zip(a_json=b"[]", b_jsonl=content)


def _parquet() -> bytes:
    held = io.BytesIO()
    rows = [record.fields for record in tiny_records()]
    columns = {name: [row[name] for row in rows] for name in ("text", "label", "tokens", "answers")}
    pq.write_table(pa.table({**columns, "n": list(range(len(rows)))}), held)
    return held.getvalue()


def _squad() -> dict[str, Any]:
    rows = [record.fields for record in tiny_records()]
    questions = [{"id": str(n), **{k: row[k] for k in ("question", "answers")}} for n, row in enumerate(rows)]
    return {"data": [{"title": "t", "paragraphs": [{"context": rows[0]["context"], "qas": questions}]}]}


def make_targets(folder: Path) -> dict[str, Target]:
    """All targets; ``folder`` is for files made on the way."""
    rows = [dict(record.fields) for record in tiny_records()]
    table = [{"text": row["text"], "label": row["label"]} for row in rows]
    csv = "text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in table)
    jsonl = "".join(json.dumps(row) + "\n" for row in rows).encode()
    conll = "\n".join("".join(f"{w}\t{t}\n" for w, t in zip(r["tokens"], r["tags"], strict=True)) for r in rows)
    text = "\n\n".join(tiny_documents()).encode()
    checkpoint.commit(
        folder, "step-1", lambda f: (f / "state.json").write_text("{}"), {"step": 1, "config": {"a": 1.5}}
    )
    manifest = (folder / "step-1" / checkpoint.MANIFEST).read_bytes()
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    words = (folder / "tokenizer" / "tokenizer.json").read_bytes()
    make_corpus(tokenizer, folder, unit="sentence", columns=("sentence_starts", "word_starts"))
    corpus = next(folder.glob("corpus-*.arrow")).read_bytes()
    config = FAMILIES["bert"].auto_class(frozenset()).config_class(num_hidden_layers=2).to_dict()
    config["tunecore"] = {"head": {"name": "x", "options": {}, "facts": {"labels": ["a"]}}, "max_length": 32}
    state = {
        "format": 1, "step": 3, "total_steps": 9, "seed": 0, "optimizer": {}, "strategies": [["full", {}]],
        "tracked": {},
        "machine": {"threads": 1}, "counters": {"window": {"loss": [1.5, 3]}, "tokens": 3},
    }  # fmt: skip
    tensors = save({"a": torch.zeros(3, 4), "b.c": torch.ones(5, dtype=torch.int64), "s": torch.tensor(1.0)})
    run_file = dump_config(RunConfig(objectives={"masked_lm": {"weight": 1.0}}, strategies=("full",))).encode()
    metrics = [{"step": n, "loss": 2.0 / n, "time": n * 0.5, "phase": "train"} for n in range(1, 9)]
    index = {"metadata": {"total_size": 9}, "weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}
    return {
        "manifest": Target(checkpoint.MANIFEST, _manifest, 2000, [manifest], json.loads(manifest), _resigned),
        "safetensors": Target("model.safetensors", load_tensors, 1000, [tensors]),
        "index": Target(
            "model.safetensors.index.json", lambda p: weight_files(p.parent), 500, [json_bytes(index)], index
        ),
        "config.json": Target("config.json", _config_json, 300, [json_bytes(config)], config),
        "state.json": Target("state.json", read_state, 800, [json_bytes(state)], state),
        "corpus": Target("corpus.arrow", _corpus, 500, [corpus]),
        "run.yaml": Target("run.yaml", load_config, 100, [run_file]),
        "run.json": Target(
            "run.yaml", load_config, 100, [json_bytes(json.loads(json.dumps(_plain_run())))], _plain_run()
        ),
        "csv": Target("a.csv", _read_all, 700, [csv.encode()]),
        "tsv": Target("a.tsv", _read_all, 500, [csv.replace(",", "\t").encode()]),
        "jsonl": Target("a.jsonl", _read_all, 600, [jsonl, text], rows[0]),
        "json": Target("a.json", _read_all, 600, [json_bytes(rows), json_bytes(_squad())], _squad()),
        "conll": Target("a.conll", _read_all, 500, [conll.encode()]),
        "txt": Target("a.txt", _read_all, 400, [text]),
        "parquet": Target("a.parquet", _read_all, 400, [_parquet()]),
        "gz": Target("a.csv.gz", _read_all, 300, [gzip.compress(csv.encode())], None, gzip.compress, [csv.encode()]),
        "zip": Target("a.zip", _read_all, 300, [_zip(a_csv=csv.encode(), b_jsonl=jsonl)], None, _zipped_json, [jsonl]),
        "tokenizer.json": Target("tokenizer.json", _tokenizer, 100, [words], json.loads(words)),
        "result.json": Target(
            "result.json",
            lambda p: read_result(p.parent),
            200,
            [json_bytes({"steps": 3})],
            {"steps": 3, "metrics": {"a": 1}},
        ),
        "report": Target(
            "metrics.jsonl", _report, 100, ["".join(json.dumps(m) + "\n" for m in metrics).encode()], metrics[0]
        ),
    }


def _plain_run() -> dict[str, Any]:
    return {"head": {"x": {"a": 1}}, "training": {"steps": 3, "learning_rate": 1e-3}, "data": {"train": ["a", "b"]}}
