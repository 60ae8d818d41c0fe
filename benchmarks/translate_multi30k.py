"""Translation from scratch: a small T5 learns English-German from the 29,000 captions of Multi30k (Elliott et al. 2016,
arXiv:1605.00459), and BLEU on test_2016_flickr says how well.

    python benchmarks/translate_multi30k.py --data FOLDER --minutes 25

FOLDER holds train, val and test_2016_flickr, each .en.gz and .de.gz. BLEU is sacrebleu's on plain text, cased and, as
most papers on this set have it, lowercased; greedy and with beams. A copy of the source gives the floor.
"""

from __future__ import annotations

import gzip
from pathlib import Path

from text_to_text import arguments, report, t5, train

from tunecore.heads.text_metrics import bleu, chrf

MAX_LENGTH = 64


def main() -> None:
    # A token costs about a third of what it costs at twice the width, and so there are three times the epochs in a run.
    recipe = {"size": "tiny", "vocab": 8000, "batch": 128, "learning_rate": 3e-3, "dropout": 0.1, "beams": 5}
    args = arguments(__doc__, minutes=25.0, **recipe).parse_args()
    folder = Path(args.data)
    training, validation = (str(folder / f"{name}.{{en,de}}.gz") for name in ("train", "val"))
    head = {
        "seq2seq": {
            "source": "en", "target": "de", "label_smoothing": 0.1, "max_new_tokens": 60, "generate_rows": 200,
        }
    }  # fmt: skip
    engine = t5(args, MAX_LENGTH, text=[training])
    seconds = train(args, engine, [training], [validation], head=head)
    sources, references = (_lines(folder / f"test_2016_flickr.{side}.gz") for side in ("en", "de"))
    figures: dict[str, float | int] = {"training minutes": seconds / 60, "parameters": engine.model.num_parameters()}
    wanted = [[line] for line in references]
    figures["copied source, BLEU"] = bleu(sources, wanted, "13a", False)
    for beams in dict.fromkeys((1, args.beams)):
        texts = [prediction.label for prediction in engine.predict(sources, num_beams=beams)]
        name = "greedy" if beams == 1 else f"{beams} beams"
        figures[f"{name}, BLEU"] = bleu(texts, wanted, "13a", False)
        figures[f"{name}, BLEU lowercased"] = bleu(texts, wanted, "13a", True)
        figures[f"{name}, chrF"] = chrf(texts, wanted)
    report(args, "Multi30k English-German, T5 from scratch, test_2016_flickr", figures)
    for source, text, reference in list(zip(sources, texts, references, strict=True))[:5]:
        print(f"\n  {source}\n  -> {text}\n     ({reference})")


def _lines(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [line.strip() for line in file]


if __name__ == "__main__":
    main()
