"""A decoder or an encoder-decoder pretrained on novels: the held-out loss beside that of token frequencies.

    python benchmarks/pretrain_novels.py --text novels.zip --output runs/gpt2 --family gpt2 --steps 4000
    python benchmarks/pretrain_novels.py --text novels.zip --output runs/t5 --family t5 --steps 4000

The last novels of the archive are held out. The same command again resumes, or only measures again. A perplexity per
word is exp(nats / words), words being what stands between spaces. Without dropout: in so short a run nothing overfits.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import RESULTS, machine

from tunecore import Engine
from tunecore.data.corpus import Corpus
from tunecore.data.loader import eval_batches
from tunecore.engine import with_options
from tunecore.inputs import pretrain_rows, text_corpus

BASELINE_ROWS = 20_000
"""Training rows whose targets give the frequencies; sentinels are among them, as they are not among a text's tokens."""
NO_DROPOUT = {
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "t5": {"dropout_rate": 0.0},
    "bart": {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0},
    "llama": {"attention_dropout": 0.0},
}


def split(archive: str, folder: Path, held_out: int) -> tuple[Path, Path]:
    """Unpack the novels once: folders of those trained on and of those held out."""
    parts = folder / "train", folder / "held-out"
    with zipfile.ZipFile(archive) as novels:
        names = sorted(name for name in novels.namelist() if name.endswith(".txt"))
        for number, name in enumerate(names):
            part = parts[number >= len(names) - held_out]
            part.mkdir(parents=True, exist_ok=True)
            path = part / Path(name).name
            if not path.exists():
                path.write_bytes(novels.read(name))
    return parts


def labels_of(engine: Engine, corpus: Corpus, loss: str, max_rows: int | None = None) -> np.ndarray:
    """The targets of an evaluation's rows."""
    config = replace(engine.config, data=replace(engine.config.data, max_length=engine.session.max_length))
    rows = pretrain_rows(corpus, engine.session.objectives, config, evaluation=True)
    batches = eval_batches(rows, max_rows=max_rows, **engine.session.packing(4096))
    return np.concatenate([batch.targets[loss].labels.numpy() for batch in batches if loss in batch.targets])


def held_out_figures(engine: Engine, train: Path, held_out: Path) -> dict[str, float]:
    """Loss on the whole held-out text, that of the frequencies of training targets, and the text's size."""
    session = engine.session
    (loss,) = session.unit.losses
    trained, held = (
        text_corpus([str(part)], session.tokenizer, session.objectives, engine.config, engine.plugins.registry)
        for part in (train, held_out)
    )
    seen, targets = labels_of(engine, trained, loss, BASELINE_ROWS), labels_of(engine, held, loss)
    counts = np.bincount(seen, minlength=len(session.tokenizer)) + 1.0
    words = sum(len(path.read_text(encoding="utf-8").split()) for path in held_out.iterdir())
    return {
        "loss": float(engine.evaluate(str(held_out))[f"loss/{loss}"]),
        "unigram": float(-np.log(counts / counts.sum())[targets].mean()),
        "targets": len(targets), "tokens": len(held.file.ids), "words": words,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="zip of novels")
    parser.add_argument("--output", required=True, help="folder of the run")
    parser.add_argument("--family", default="gpt2", choices=sorted(NO_DROPOUT))
    parser.add_argument("--size", default="mini")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--held-out", type=int, default=2, help="novels held out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--prompt", default="The old house", help="what a decoder goes on from")
    args = parser.parse_args()

    output = Path(args.output)
    train, held_out = split(args.text, output / "novels", args.held_out)
    common = {"max_length": args.max_length, "threads": args.threads, "cache_dir": str(output / "cache")}
    model = {"family": args.family, "size": args.size, "overrides": NO_DROPOUT[args.family]}
    config = with_options(Engine().config, {"model": model, "vocab_size": args.vocab_size, **common})
    engine = Engine(config)
    result = engine.pretrain(
        str(train), eval=str(held_out), steps=args.steps, batch_size=args.batch_size,
        learning_rate=args.learning_rate, output_dir=output / "run", evaluation={"every": max(args.steps // 8, 1)},
        progress=sys.stderr.isatty(), **common,
    )  # fmt: skip
    if result.interrupted:
        print("interrupted; the same command goes on")
        return
    figures = held_out_figures(engine, train, held_out)
    row = {"benchmark": "pretrain_novels", **vars(args), **machine(), **figures, "seconds": round(result.seconds)}
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))
    if engine.session.family.causal:
        row["perplexity_per_word"] = math.exp(figures["loss"] * figures["targets"] / figures["words"])
        torch.manual_seed(0)
        row["sample"] = engine.generate(args.prompt, do_sample=True, top_p=0.9, max_new_tokens=60)[0]
        print(f"perplexity per word {row['perplexity_per_word']:.0f}\n{args.prompt}{row['sample']}")
    row = {name: value for name, value in row.items() if name not in ("text", "output")}
    with open(RESULTS, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
