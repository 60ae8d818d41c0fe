"""One run, from its configuration to its result, as a straight line.

    plugins configure -> claim the folder -> tokenizer -> head and data -> model with its tasks -> strategies ->
    optimizer -> resume -> train -> final model and report

Every rank walks the whole line; rank 0 goes first where files are made (tokenizer, corpus) and the others then read
what it made.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from tunecore.checkpoint import commit
from tunecore.config import RunConfig
from tunecore.config_io import check_components
from tunecore.data.loader import StepLoader, eval_batches
from tunecore.data.order import BatchSizes, steps_per_epoch
from tunecore.data.rows import RowSource, TaskRows
from tunecore.data.streams import derive_key
from tunecore.data.tokenizer import load_tokenizer
from tunecore.durable import cannot_write
from tunecore.errors import CheckpointError, ConfigError, Interrupted, InUseError, TunecoreError
from tunecore.inputs import RunData, evaluation_rows, pretrain_data, task_records, train_tokenizer_on
from tunecore.locks import LOCK, RunLock
from tunecore.models.loading import enable_gradient_checkpointing, known_model_type, seeded
from tunecore.ops._native import tune_allocator
from tunecore.outcome import with_test
from tunecore.plugins import Plugins
from tunecore.registry import name_and_options
from tunecore.run_folder import FINAL, claim, record_best, record_config, record_data, resolve_model, verify_model
from tunecore.saved_tasks import with_known_length
from tunecore.session import Session, make_session, objectives_of
from tunecore.tracking.report import write_report
from tunecore.tracking.tensorboard import installed as tensorboard_installed
from tunecore.training.distributed import Ranks, open_ranks
from tunecore.training.evaluate import evaluate
from tunecore.training.loop import train
from tunecore.training.plans import exported, make_strategies, restored
from tunecore.training.result import TrainResult
from tunecore.training.room import check_room
from tunecore.training.run import Run, make_run, step_name
from tunecore.training.signals import StopSignal
from tunecore.training.state import make_saver, manifest_info, resume
from tunecore.training.weights import load_weights, save_weights
from tunecore.types import Head, Tracker

TOKENIZER = "tokenizer"
"""Folder of the run's tokenizer inside output_dir."""
DEFAULT_EPOCHS = 3.0


def fit(
    config: RunConfig, plugins: Plugins, tokenizer: PreTrainedTokenizerBase | None = None, *, held: bool = False
) -> tuple[TrainResult, Session]:
    """Run, or resume, what ``config`` describes.

    Args:
        config: the run.
        plugins: loaded plugins.
        tokenizer: one already in memory, instead of the one the config names.
        held: the caller keeps other runs out of ``output_dir``.

    Returns:
        How the run ended, and the model as it then is.

    Raises:
        TunecoreError: the configuration, the data, a plugin, a checkpoint or the training itself is at fault.
        Interrupted: a signal came during the last save, and the run is whole; or another rank was stopped.
        InUseError: another run is at work in ``output_dir``.
    """
    config = with_known_length(plugins.hooks.tunecore_configure(config=config))
    check_components(config, plugins.registry)
    make_strategies(config.strategies, plugins.registry)  # what they refuse is said before any file is read
    with open_ranks(config.training.device, config.training.threads) as ranks, ExitStack() as stack:
        tune_allocator()
        with main_first(ranks):
            folder, _ = claim(config)
        if not held:
            stack.enter_context(alone_in(folder, ranks))
        with main_first(ranks):
            claim(config)  # again: another process may have run here since the first look
            if config.model.checkpoint is not None and ranks.is_main:
                verify_model(resolve_model(config.model.checkpoint))
            tokenizer = prepare_tokenizer(config, plugins, folder, tokenizer)
            data, head, facts = prepare_data(config, plugins, tokenizer, folder, ranks)
        session = make_session(config, plugins, tokenizer, head, facts)
        run = prepare_run(config, plugins, session, data, ranks)
        resume(run)
        with main_first(ranks):
            if ranks.is_main:
                check_room(run, folder / TOKENIZER, best=data.eval is not None)
        result = train(
            run,
            make_loader(run, session, data.train),
            evaluate=make_evaluate(run, session, data.eval),
            save=make_saver(run, model_writer(session), saved_facts(plugins, data)),
            trackers=make_trackers(config, plugins) if ranks.is_main else (),
        )
        result = finish(run, session, result, data)
        if not result.interrupted and run.stop.agreed():
            # Too late to cut this run short, but there may be more to come: a search's next trial, a next stage.
            raise Interrupted(run.stop.received or signal.SIGINT)
    return result, session


@contextmanager
def main_first(ranks: Ranks) -> Iterator[None]:
    """Rank 0 runs the block while the others wait, then they run it. Should rank 0 fail, they fail too."""
    if not ranks.is_main:
        if ranks.wait_for_main():
            raise TunecoreError("rank 0 could not prepare the run; its own message says why")
        yield
        return
    try:
        yield
    except KeyboardInterrupt:
        raise  # the others learn of it by the word that a stopped rank leaves
    except BaseException:
        ranks.end_turn(failed=True)
        raise
    ranks.end_turn(failed=False)


@contextmanager
def alone_in(folder: Path, ranks: Ranks, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Keep every other run out of ``folder`` while this lasts. Rank 0 holds the lock; every rank learns of a refusal.

    Args:
        folder: of the run; it is there.
        ranks: all ranks, each of which calls this.
        waiting: called with who is at work there before this waits for its end; None does not wait.

    Raises:
        InUseError: another run is at work there.
        CheckpointError: nothing can be written there.
    """
    lock = RunLock(folder)
    refusal: TunecoreError | None = None
    if ranks.is_main:
        try:
            lock.acquire(waiting)
        except InUseError as error:
            refusal = error
        except OSError as error:
            refusal = cannot_write(folder / LOCK, error)
    told = ranks.gather(None if refusal is None else [refusal.message, refusal.hint])[0]
    if told is not None:
        raise refusal or InUseError(told[0], hint=told[1])
    try:
        yield
    finally:
        lock.release()


def prepare_tokenizer(
    config: RunConfig, plugins: Plugins, folder: Path, tokenizer: PreTrainedTokenizerBase | None
) -> PreTrainedTokenizerBase:
    """The run's tokenizer: the one given, named, of the checkpoint, or trained on the run's text; kept in the run."""
    kept = folder / TOKENIZER
    if tokenizer is None and config.tokenizer.path is not None:
        tokenizer = load_tokenizer(config.tokenizer.path)
    elif tokenizer is None and config.model.checkpoint is not None:
        checkpoint = resolve_model(config.model.checkpoint)
        known_model_type(checkpoint, plugins.registry.names("family"))
        tokenizer = load_tokenizer(checkpoint)
    elif tokenizer is None and (kept / "tokenizer_config.json").exists():
        return load_tokenizer(kept)
    elif tokenizer is None:
        if not config.data.train:
            raise ConfigError("no training data is named", hint="Set data.train to files, globs or folders.")
        tokenizer = train_tokenizer_on(config.data.train, config, plugins.registry)
    if not (kept / "tokenizer_config.json").exists():
        commit(folder, TOKENIZER, tokenizer.save_pretrained, {})
    return tokenizer


def prepare_data(
    config: RunConfig, plugins: Plugins, tokenizer: PreTrainedTokenizerBase, folder: Path, ranks: Ranks
) -> tuple[RunData, Head | None, Mapping[str, Any]]:
    """Rows for training and evaluation; of a fine-tuning run also the head and what it learnt of the labels."""
    objectives = objectives_of(config, plugins)
    if config.head is None:
        data = pretrain_data(config, tokenizer, objectives, plugins.registry)
        head, facts = None, {}
    else:
        name, options = name_and_options(config.head, "head")
        head = plugins.registry.create("head", name, options)
        train_records, eval_records, summary = task_records(config, head, plugins.registry)
        facts = head.prepare(train_records)
        head.load(facts)
        length = config.data.length
        held_out = TaskRows(eval_records, head, tokenizer, length, keep_records=True) if eval_records else None
        train = TaskRows(train_records, head, tokenizer, length, seed=config.training.seed)
        data = RunData(train, held_out, {**summary, **facts})
    if config.data.test:  # read now: a mistake in it must not be found after the training
        test = evaluation_rows(config.data.test, config, plugins.registry, tokenizer, head, objectives)
        data = data._replace(test=test)
    if ranks.is_main:
        # Only a run whose data can be used is recorded: a mistake in a path leaves no run behind.
        record_data(folder, data.summary)
        record_config(folder, config)
    return data, head, facts


def prepare_run(config: RunConfig, plugins: Plugins, session: Session, data: RunData, ranks: Ranks) -> Run:
    """Strategies, then optimizer and counters."""
    strategies = make_strategies(config.strategies, plugins.registry)
    for number, strategy in enumerate(strategies):
        with seeded(derive_key(config.training.seed, len(session.unit.tasks), number)):
            session.model = strategy.prepare(session.model, session.family)
    session.unit.replace_model(session.model)
    if config.model.gradient_checkpointing:
        enable_gradient_checkpointing(session.model)
    plugins.hooks.tunecore_model_built(model=session.model, config=config)
    rows, sizes = len(data.train), batch_sizes(config)
    return make_run(
        config, session.unit, tokenizer=session.tokenizer, registry=plugins.registry, hooks=plugins.hooks,
        total_steps=total_steps(config, rows), steps_per_epoch=steps_per_epoch(rows, sizes.size),
        strategies=strategies, ranks=ranks, epoch_at=partial(sizes.epoch_at, rows),
    )  # fmt: skip


def batch_sizes(config: RunConfig) -> BatchSizes:
    """How many rows each step takes."""
    training = config.training
    return BatchSizes(training.batch_size, training.batch_size_start, training.batch_size_warmup)


def total_steps(config: RunConfig, rows: int) -> int:
    """Steps of the whole run over so many rows."""
    if config.training.steps is not None:
        return config.training.steps
    epochs = DEFAULT_EPOCHS if config.training.epochs is None else config.training.epochs
    return batch_sizes(config).steps_of(rows, epochs)


def make_loader(run: Run, session: Session, rows: RowSource) -> StepLoader:
    """The batches of this rank from the run's step on."""
    config = run.config
    return StepLoader(
        rows, batch_size=batch_sizes(config), seed=config.training.seed, start_step=run.step,
        total_steps=run.total_steps, rank=run.rank, world_size=run.world_size,
        accumulation=config.training.accumulation, num_workers=config.data.num_workers,
        worker_timeout=config.data.worker_timeout,
        view_weights=session.unit.view_weights if run.alternates else None,
        **session.packing(config.training.max_tokens),
    )  # fmt: skip


def make_evaluate(run: Run, session: Session, rows: RowSource | None) -> Callable[[], Mapping[str, Any]] | None:
    """What measures the run on its held-out rows."""
    if rows is None:
        return None
    max_rows = run.config.evaluation.max_rows if session.head is None else None
    return partial(measure, session, rows, run.config, run.ranks, max_rows=max_rows, stop=run.stop)


def measure(
    session: Session,
    rows: RowSource,
    config: RunConfig,
    ranks: Ranks,
    *,
    max_rows: int | None = None,
    all_answers: bool = False,
    stop: StopSignal | None = None,
) -> dict[str, Any]:
    """Losses, and the head's metrics, over rows, each rank taking its share.

    A head that generates answers as many rows as it says, or with ``all_answers`` all of them.
    """
    batches = eval_batches(
        rows, rank=ranks.rank, world_size=ranks.world_size, max_rows=max_rows,
        **session.packing(config.training.max_tokens),
    )  # fmt: skip
    answers = session.answers_to(rows, config, ranks=ranks, all_rows=all_answers)
    return evaluate(session.unit, batches, session.metrics_over(rows), ranks=ranks, stop=stop, answers=answers)


def model_writer(session: Session) -> Callable[[Path, Mapping[str, Any]], None]:
    """What writes the model of a checkpoint, so that each loads in transformers."""
    return session.write


def saved_facts(plugins: Plugins, data: RunData) -> dict[str, Any]:
    """What the manifest of a checkpoint says beside the run's own facts."""
    return {"plugins": plugins.versions(), "data": data.summary["digest"]}


def make_trackers(config: RunConfig, plugins: Plugins) -> list[Tracker]:
    """The trackers asked for, and those every run has."""
    names = ["jsonl", *(["progress"] if config.tracking.progress else []), *config.tracking.trackers]
    if tensorboard_installed():
        names.append("tensorboard")
    return [plugins.registry.create("tracker", name) for name in dict.fromkeys(names)]


def finish(run: Run, session: Session, result: TrainResult, data: RunData) -> TrainResult:
    """Point ``best`` at the best checkpoint and, after the last step, write ``final``, test, and write the report.

    The session ends with the weights of the best checkpoint where there is one, in fp32, what strategies added to the
    model merged into it: what is evaluated, predicted or saved next is what naming the run folder would load. Returns
    the result with the test's metrics.
    """
    best = run.best_path
    if run.ranks.is_main:
        record_best(run.output_dir, best)
        if not result.interrupted:
            write = partial(save_weights, run, write_model=model_writer(session))
            commit(run.output_dir, FINAL, write, manifest_info(run))
    run.ranks.barrier()
    if best is not None and not result.interrupted and best.name != step_name(run.step):
        _take_best(run, best)
    tensors = exported(run.strategies, session.model, run.optimizer.full_state(session.model))
    tasks = run.optimizer.full_state(session.unit.task_modules)
    session.model = restored(run.strategies, session.model)
    session.unit.replace_model(session.model)
    session.unit.float()
    session.model.load_state_dict(tensors)
    session.unit.task_modules.load_state_dict(tasks)
    session.unit.eval()
    if not result.interrupted:
        test = None
        if data.test is not None:
            test = partial(measure, session, data.test, run.config, run.ranks, all_answers=True)
        result = with_test(result, run.config, run.ranks, test)
    if run.ranks.is_main and run.config.tracking.report:
        write_report(run.output_dir)
    return result


def _take_best(run: Run, best: Path) -> None:
    try:
        load_weights(run, best)
    except CheckpointError as error:
        raise CheckpointError(
            error.message,
            hint=f"All steps are made, and {best.name} is the best checkpoint. Restore it, or remove it, and run "
            f"again: without it the run ends with the weights after the last step, which {FINAL} has.",
        ) from error
