"""The classic sentence classifier: a BERT encoder, dropout, a linear layer, 3 epochs of AdamW.

Progress and the validation loss of each epoch are printed as it trains.
Start from a trained model with ``Engine.from_pretrained("folder", head="sequence_classification")`` for real work.
"""

from tunecore import Engine

GOOD = ["fine", "lovely", "brilliant", "moving", "clever", "funny"]
BAD = ["dull", "awful", "clumsy", "tedious", "empty", "noisy"]
THINGS = ["film", "story", "plot", "cast", "ending", "script", "play", "book"]

rows = [{"text": f"a {w} {thing}", "label": "pos" if w in GOOD else "neg"} for thing in THINGS for w in GOOD + BAD]
engine = Engine.from_scratch("bert", size="tiny", text=[row["text"] for row in rows], vocab_size=300, max_length=16)
engine.finetune(
    rows[:72],
    eval=rows[72:],
    head="sequence_classification",
    epochs=3,
    batch_size=4,
    learning_rate=1e-3,
    output_dir="runs/sentences",
)
for prediction in engine.predict(["a lovely book", "a dull play"]):
    print(prediction.label, round(prediction.score, 2))
