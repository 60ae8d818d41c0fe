"""The run files that ``tunecore init`` writes."""

from __future__ import annotations

from enum import StrEnum

from tunecore.config import DataConfig, EvaluationConfig, ModelConfig, RunConfig, TrainingConfig
from tunecore.config_search import SearchConfig


class Kind(StrEnum):
    """The command a new run file is for; ``run`` is one of several stages."""

    pretrain = "pretrain"
    finetune = "finetune"
    search = "search"
    run = "run"


SPACE = {
    "training.learning_rate": {"low": 1e-5, "high": 1e-4, "log": True},
    "training.epochs": [2, 3, 4],
    "strategies": [[], ["layerwise_lr_decay"]],
}
TEMPLATES = {
    Kind.pretrain: RunConfig(
        output_dir="runs/pretrain",
        model=ModelConfig(family="bert", size="mini"),
        data=DataConfig(train=("corpus/*.txt",)),
        objectives={"masked_lm": 1.0, "next_sentence": 1.0},
        training=TrainingConfig(steps=2000),
    ),
    Kind.finetune: RunConfig(
        output_dir="runs/finetune",
        model=ModelConfig(checkpoint="runs/pretrain"),
        data=DataConfig(train=("train.csv",), eval=("dev.csv",)),
        head={"sequence_classification": {"text": "text", "label": "label"}},
        training=TrainingConfig(epochs=3, learning_rate=3e-5),
        evaluation=EvaluationConfig(patience=3),
    ),
    Kind.search: RunConfig(
        output_dir="runs/search",
        model=ModelConfig(checkpoint="runs/pretrain"),
        data=DataConfig(train=("train.csv",), eval=("dev.csv",), test=("test.csv",)),
        head={"sequence_classification": {"text": "text", "label": "label"}},
        search=SearchConfig(space=SPACE, trials=20, pruner="median"),
    ),
    Kind.run: RunConfig(
        output_dir="runs/road",
        model=ModelConfig(checkpoint="runs/pretrain"),
        data=DataConfig(train=("train.csv",), eval=("dev.csv",), test=("test.csv",)),
        stages=(
            {"name": "domain", "objectives": {"masked_lm": 1.0}, "data": {"train": ["corpus/*.txt"]},
             "training": {"steps": 2000}},
            {"name": "task", "objectives": {"masked_lm": 1.0}, "data": {"text": "text"}, "training": {"epochs": 10}},
            {"name": "classify", "head": {"sequence_classification": {"text": "text", "label": "label"}},
             "search": {"space": SPACE, "trials": 20, "pruner": "median"}},
        ),
    ),
}
