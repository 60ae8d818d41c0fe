"""Summarisation from scratch: a small T5 learns one-line summaries of abstracts from the 1,992 papers of SciTLDR
(Cachola et al. 2020, arXiv:2004.15011); ROUGE stands beside that of the abstract's first sentence, by the same code.

    python benchmarks/summarise_scitldr.py --data FOLDER --minutes 25

FOLDER holds train, dev and test.jsonl. With --pretrain-steps the model first reads text with span corruption: 1,992
summaries alone hardly teach a language.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from text_to_text import arguments, report, t5, train

from tunecore.heads.text_metrics import rouge

MAX_LENGTH = 320


def main() -> None:
    recipe = {"size": "tiny", "vocab": 8000, "batch": 32, "learning_rate": 1e-3, "dropout": 0.1, "beams": 4}
    parser = arguments(__doc__, minutes=25.0, **recipe)
    parser.add_argument("--pretrain-steps", type=int, default=0, help="steps of span corruption before; 0 for none")
    parser.add_argument("--text", nargs="*", help="files to read in these steps; None takes the training abstracts")
    args = parser.parse_args()
    folder = Path(args.data)
    rows = {name: _rows(folder / f"{name}.jsonl") for name in ("train", "dev", "test")}
    abstracts = [" ".join(row["source"]) for row in rows["train"]]
    summaries = [text for row in rows["train"] for text in row["target"]]
    head = {
        "seq2seq": {
            "source": "source", "target": "target", "prefix": "summarize: ", "metrics": ["rouge"],
            "label_smoothing": 0.1, "max_target_length": 64, "no_repeat_ngram_size": 3, "generate_rows": 200,
        }
    }  # fmt: skip
    engine = t5(args, MAX_LENGTH, text=[*abstracts, *summaries])
    if args.pretrain_steps:
        engine.pretrain(
            args.text or abstracts, steps=args.pretrain_steps, batch_size=args.batch, max_tokens=8192, seed=args.seed,
            learning_rate=args.learning_rate, threads=args.threads, precision=args.precision,
            output_dir=f"{args.output or tempfile.mkdtemp()}/pretrained",
        )  # fmt: skip
    seconds = train(args, engine, [str(folder / "train.jsonl")], [str(folder / "dev.jsonl")], head=head)
    figures: dict[str, float | int] = {"training minutes": seconds / 60, "parameters": engine.model.num_parameters()}
    references = [row["target"] for row in rows["test"]]
    asked = [{"source": row["source"]} for row in rows["test"]]
    texts = [prediction.label for prediction in engine.predict(asked, num_beams=args.beams)]
    lead = [row["source"][0] for row in rows["test"]]
    for name, found in (("first sentence", lead), (f"{args.beams} beams", texts)):
        for metric, value in rouge(found, references).items():
            figures[f"{name}, {metric}"] = value
    report(args, "SciTLDR abstracts, T5 from scratch, test", figures)
    for row, text in list(zip(rows["test"], texts, strict=True))[:3]:
        print(f"\n  {row['source'][0]}\n  -> {text}\n     ({row['target'][0]})")


def _rows(path: Path) -> list[dict]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


if __name__ == "__main__":
    main()
