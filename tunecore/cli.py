"""The command line: the same runs as the Python API, from run files.

Exit codes: 0 done; 1 ``doctor`` or ``plugins check`` found a problem; 2 a mistake in options, files or data, told in
one line of stderr; 130 after Ctrl-C and 143 after SIGTERM (a run in training saves first; the same command resumes it),
also of a rank whose peer was stopped.

Torch and the engine are loaded by the command that needs them, so ``--help`` and ``plugins list`` answer at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from rich.markup import escape
from typer.core import TyperGroup

import tunecore
from tunecore.cli_plugins import plugins_app
from tunecore.cli_templates import TEMPLATES, Kind
from tunecore.config import RunConfig
from tunecore.config_io import load_config
from tunecore.config_schema import commented_yaml, json_schema
from tunecore.errors import ConfigError, DataError, Interrupted, TunecoreError
from tunecore.plugins import load_plugins
from tunecore.terminal import AsJson, err, out, part, print_json

DEBUG_VARIABLE = "TUNECORE_DEBUG"
MISTAKE = 2
_RUNS = ("pretrain", "finetune", "search", "run")


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does: what is half made is taken away. A run in training saves first."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


class _Commands(TyperGroup):
    """Tells a user's mistake in one line instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with _ended_by_sigterm():
                return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            resumes = "; the same command goes on from what is saved" if ctx.invoked_subcommand in _RUNS else ""
            reason = f": {escape(str(stop))}" if str(stop) else ""
            err.print(f"interrupted{reason}{resumes}")
            raise typer.Exit(128 + getattr(stop, "number", signal.SIGINT)) from None
        except (TunecoreError, OSError) as error:
            if _debugging() or isinstance(error, BrokenPipeError):
                raise
            err.print(f"[bold red]error:[/] {escape(str(error))}")
            raise typer.Exit(MISTAKE) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Pretrain and fine-tune BERT-, GPT- and T5-family text models.\n\n"
    "Start with [bold]tunecore demo[/], or [bold]tunecore init[/] and [bold]tunecore pretrain run.yaml[/]. "
    "Add [bold]--debug[/] to any command for a traceback.",
)
app.add_typer(plugins_app, name="plugins")

RunFile = Annotated[Path, typer.Argument(metavar="RUN.YAML", help="The run file; [bold]tunecore init[/] writes one.")]
Prompts = Annotated[list[str] | None, typer.Argument(metavar="[PROMPT...]", help="Prompts; none reads stdin.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A run's folder, or a model folder of transformers.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change an option: [cyan]training.steps=500[/]. Repeatable."),
]


def _debugging() -> bool:
    return os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0")


def _first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _version(asked: bool) -> None:
    if asked:
        out.print(f"tunecore {tunecore.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Options of every command."""


@app.command()
def pretrain(run_file: RunFile, changes: Set = None) -> None:
    """Train on text with the objectives of a run file; the same command again resumes an unfinished run."""
    config = load_config(run_file, changes or ())
    if not config.objectives or config.search.space:
        other = _other_command(config)
        raise ConfigError(f"{run_file} names no objectives.{other}", hint="Add objectives: {masked_lm: 1.0}.")
    _run(config)


@app.command()
def finetune(run_file: RunFile, changes: Set = None) -> None:
    """Train the head of a run file on labelled rows; the same command again resumes an unfinished run."""
    config = load_config(run_file, changes or ())
    if config.head is None or config.search.space:
        other = _other_command(config)
        raise ConfigError(f"{run_file} names no head.{other}", hint="Add head: sequence_classification.")
    _run(config)


@app.command()
def search(run_file: RunFile, changes: Set = None) -> None:
    """Search for the best options of a run file; the same command again resumes, or shares the trials meanwhile."""
    config = load_config(run_file, changes or ())
    if not config.search.space:
        hint = "Add search: {space: {training.learning_rate: {low: 1e-5, high: 1e-4, log: true}}}."
        raise ConfigError(f"{run_file} names no search.space.{_other_command(config)}", hint=hint)
    _run(config)


@app.command()
def run(run_file: RunFile, changes: Set = None) -> None:
    """Run whatever a run file describes: its stages, a search, pretraining or fine-tuning; again to resume."""
    _run(load_config(run_file, changes or ()))


def _other_command(config: RunConfig) -> str:
    """The command a run file is for."""
    if config.stages:
        command = "run"
    elif config.search.space:
        command = "search"
    else:
        command = "finetune" if config.head is not None else "pretrain" if config.objectives else ""
    return f" It is a file for `tunecore {command}`." if command else ""


def _run(config: RunConfig) -> None:
    result = tunecore.Engine.from_config(config).run()
    if _first_rank():
        for line in _outcome(result, config.output_dir):
            out.print(escape(line))
    if result.exit_code:
        raise typer.Exit(result.exit_code)


def _outcome(result: Any, folder: str) -> Iterator[str]:
    """What became of a run, and where it lies."""
    how = "stopped" if result.interrupted else "finished"
    for stage in getattr(result, "stages", ()):
        ended = "was done" if stage.skipped else "stopped" if stage.result.interrupted else "done"
        score = "" if stage.result.best_metric is None else f" ({stage.result.best_metric:.4f})"
        yield f"stage {stage.name}: {ended}{score}"
    if getattr(result, "best", None) is not None:
        tried = ", ".join(f"{name}={value}" for name, value in result.best.params.items())
        yield f"best of {len(result.trials)} trials: {result.best.number} ({tried})"
    yield f"{how} at step {result.steps} after {timedelta(seconds=round(result.seconds))}; the run is in {folder}"
    if result.best_path is not None and result.best_metric is not None:
        yield f"best checkpoint: {result.best_path} ({result.best_metric:.4f})"
    for name, value in result.metrics.items():
        if name.startswith("test/") and isinstance(value, int | float):
            yield f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}"
    if result.interrupted:
        yield "the same command resumes it"


@app.command()
def evaluate(
    model: Model,
    data: Annotated[list[str], typer.Argument(metavar="DATA...", help="Labelled files (text files without a head).")],
    changes: Set = None,
    as_json: AsJson = False,
) -> None:
    """Print loss and metrics of a model on files."""
    metrics = _engine(model, changes).evaluate(data)
    if as_json:
        print_json(metrics)
        return
    scalars = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
    width = max(map(len, scalars), default=0)
    for key, value in scalars.items():
        out.print(f"{key:<{width}}  {value:.4f}" if isinstance(value, float) else f"{key:<{width}}  {value}")


@app.command()
def predict(
    model: Model,
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT...]", help="Texts; none reads stdin.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Rows of a csv, tsv, jsonl or txt file.")] = None,
    changes: Set = None,
    as_json: AsJson = False,
) -> None:
    """Print a label and its probability for every text, in order: one line each, tab-separated, or JSON lines."""
    if file is not None and texts:
        raise ConfigError("texts and --file are both given; keep one of them")
    engine = _engine(model, changes)
    rows = _rows_of(engine, file) if file is not None else texts or _stdin_lines()
    for row, prediction in zip(rows, engine.predict(rows), strict=True):
        if as_json:
            said = {"label": prediction.label, "score": prediction.score, "scores": dict(prediction.scores or {})}
            print_json({**said, **(prediction.details or {}), "input": row}, None)
        else:
            text = row if isinstance(row, str) else " | ".join(str(value) for value in row.values())
            score = "" if prediction.score is None else f"{prediction.score:.4f}"
            label = " ".join(map(str, prediction.label)) if isinstance(prediction.label, list) else prediction.label
            print(label, score, " ".join(text.split()), sep="\t")


@app.command()
def generate(
    model: Model,
    prompts: Prompts = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest continuation, in tokens.")] = 50,
    num_beams: Annotated[int, typer.Option(min=1, help="Beam search with so many beams.")] = 1,
    length_penalty: Annotated[float, typer.Option(help="With beams: above 1 favours long texts.")] = 1.0,
    repetition_penalty: Annotated[float, typer.Option(min=0.01, help="Above 1: repeat less.")] = 1.0,
    sample: Annotated[bool, typer.Option("--sample", help="Draw tokens instead of taking the likeliest.")] = False,
    temperature: Annotated[float, typer.Option(min=0.0, help="Draw; below 1 is sharper, 0 does not draw.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from so many of the likeliest tokens; 0 is all.")] = 0,
    top_p: Annotated[float, typer.Option(min=0.01, max=1.0, help="Draw from this much probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Fixes the draws.")] = 0,
    changes: Set = None,
    as_json: AsJson = False,
) -> None:
    """Continue prompts with a causal model (GPT-2), or answer them with an encoder-decoder (T5).

    On a terminal the text appears as it is written.
    """
    engine = _engine(model, changes)
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens, "num_beams": num_beams, "length_penalty": length_penalty,
        "repetition_penalty": repetition_penalty, "do_sample": True if sample else None, "temperature": temperature,
        "top_k": top_k, "top_p": top_p, "seed": seed,
    }  # fmt: skip
    given = prompts or _stdin_lines()
    answers = bool(engine.model.config.is_encoder_decoder)  # a prompt that is answered is not repeated
    if sys.stdout.isatty() and not as_json and num_beams == 1:
        _stream(engine, given, answers, options)
        return
    for prompt, text in zip(given, engine.generate(given, **options), strict=True):
        if as_json:
            print_json({"prompt": prompt, "text": text}, None)
        else:
            print(text if answers else prompt + text)


def _stream(engine: Any, prompts: Sequence[str], answers: bool, options: dict[str, Any]) -> None:
    """Print each text as it is written."""
    begun: set[int] = set()

    def show(place: int, text: str) -> None:
        if place not in begun:
            begun.add(place)
            print(("\n" if place else "") + ("" if answers else prompts[place]), end="")
        print(text, end="", flush=True)

    engine.generate(prompts, on_text=show, **options)
    print()


def _engine(model: str, changes: Sequence[str] | None) -> Any:
    return tunecore.Engine.from_config(load_config({"model": {"checkpoint": model}}, changes or ()))


def _rows_of(engine: Any, file: Path) -> list[Any]:
    """Rows of a file for prediction: plain texts of a text file, else dicts of columns."""
    sources = part("data.sources")
    readers = part("inputs").sources_of(engine.plugins.registry, engine.config)
    records = sources.read_records(sources.expand_paths([str(file)], tuple(readers)), readers, on_bad_row="raise")
    rows = [dict(record.fields) for record in records]
    if not rows:
        raise DataError(f"{file} holds no row")
    return rows


def _stdin_lines() -> list[str]:
    """Non-empty lines of standard input.

    Raises:
        DataError: it is a terminal, or holds nothing.
    """
    lines = [] if sys.stdin.isatty() else [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not lines:
        raise DataError("no text is given", hint="Write it after the model, or pipe in one text a line.")
    return lines


@app.command()
def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")]) -> None:
    """Draw report.html of a run anew, from its metrics."""
    out.print(escape(str(part("reports").draw(run))))


@app.command()
def init(
    path: Annotated[Path, typer.Argument(metavar="[RUN.YAML]", help="The file to write.")] = Path("run.yaml"),
    kind: Annotated[Kind, typer.Option(help="The command it is for; run has several stages.")] = Kind.pretrain,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Write a run file in which every option is explained."""
    if path.exists() and not force:
        raise ConfigError(f"{path} is already there", hint="Name another file, or add --force.")
    header = (
        f"A run of tunecore. Start or resume it with: tunecore {kind.value} {path}\n"
        "null takes what the comment says. Keys that keep their default may be deleted."
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(commented_yaml(TEMPLATES[kind], header=header), encoding="utf-8")
    out.print(f"wrote {escape(str(path))}; start it with [bold]tunecore {kind.value} {escape(str(path))}[/]")


@app.command()
def schema(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to a file instead of stdout.")] = None,
) -> None:
    """Print the JSON Schema of run files, options of installed plugins included, for editors."""
    text = json.dumps(json_schema(load_plugins(strict=False).registry), indent=2, ensure_ascii=False)
    if output is None:
        print(text)
    else:
        output.write_text(text + "\n", encoding="utf-8")
        line = f"# yaml-language-server: $schema={output}"
        out.print(f"wrote {escape(str(output))}; editors check run files that begin with this line:\n{escape(line)}")


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for what it makes.")] = Path("runs/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Every part, in seconds; the figures mean nothing.")] = False,
) -> None:
    """Pretrain, fine-tune, evaluate and predict on text that ships with Python: about five minutes on two cores."""
    part("demo").run_demo(output, quick=quick)


@app.command()
def doctor() -> None:
    """Print versions, native build, threads, GPU and plugins, and what to do about each problem."""
    code = part("doctor").run()
    if code:
        raise typer.Exit(code)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """A warning in one line, without the place in our source that gave it."""
    if not issubclass(category, DeprecationWarning | PendingDeprecationWarning):
        err.print(f"[bold yellow]warning:[/] {escape(str(message))}")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code; ``--debug`` anywhere before ``--`` asks for tracebacks."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    end = words.index("--") if "--" in words else len(words)
    if "--debug" in words[:end]:
        os.environ[DEBUG_VARIABLE] = "1"
        words = [word for word in words[:end] if word != "--debug"] + words[end:]
    if not _debugging():
        warnings.showwarning = _show_warning
    app(words, prog_name="tunecore")
    raise SystemExit(0)
