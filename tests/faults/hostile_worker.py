"""Opens hostile folders and files while every hook of the interpreter watches; prints what each case did, as JSON.

As a program: ``python hostile_worker.py FOLDER``. What is watched: an import of a planted module, a name that a pickle
looks up, a command, a connection, a file opened for writing (or removed, or renamed) outside FOLDER, and a planted file
outside the model's folder opened at all.
"""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import shutil
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tunecore import Engine
from tunecore.config_io import load_config
from tunecore.data.corpus_file import CorpusFile, SideColumns
from tunecore.errors import TunecoreError
from tunecore.tiny import make_corpus, make_model, make_tokenizer, tiny_documents

events: list[str] = []
armed = False
ROOT = Path(sys.argv[1]).resolve() if __name__ == "__main__" else Path()
COMMANDS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "os.fork", "os.startfile")
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
EVIL = """
import pathlib
(pathlib.Path(__file__).parent / "EXECUTED").write_text("x")
class Model: pass
"""


def watch(event: str, given: tuple[Any, ...]) -> None:
    """The audit hook."""
    if not armed:
        return
    if event == "import" and "evil" in str(given[0]):
        events.append(f"import {given[0]}")
    elif event == "pickle.find_class" or event in COMMANDS:
        events.append(f"{event} {given!r:.200}")
    elif event in ("socket.connect", "socket.getaddrinfo"):
        events.append(f"{event} {given!r:.200}")
        raise ConnectionError("the network is off")
    elif event == "open" and isinstance(given[0], str | bytes | os.PathLike):
        path = os.path.abspath(os.fsdecode(given[0]))
        writes = bool(int(given[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
        if "secret" in path or (writes and outside(path)):
            events.append(f"open {path} {given[1]} {given[2]}")
    elif event in CHANGES and any(isinstance(part, str | bytes) and outside(os.fsdecode(part)) for part in given):
        events.append(f"{event} {given!r:.200}")


def outside(path: str) -> bool:
    """Whether a path is in neither FOLDER nor the place of temporary and null files."""
    return not os.path.abspath(path).startswith((str(ROOT), "/dev/"))


class Bomb:
    """Runs a command where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def bomb(name: str) -> Callable[[Path], None]:
    """Plants a pickle."""
    return lambda folder: (folder / name).write_bytes(pickle.dumps(Bomb(folder / "EXECUTED")))


def entries(name: str = "config.json", **changes: Any) -> Callable[[Path], None]:
    """Adds entries to a JSON file, and the module they speak of."""

    def plant(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(content | changes))
        (folder / "evil.py").write_text(EVIL)
        (folder / "custom_generate").mkdir(exist_ok=True)
        (folder / "custom_generate" / "generate.py").write_text(EVIL)

    return plant


def only(plant: Callable[[Path], None]) -> Callable[[Path], None]:
    """Without the model's own weights."""

    def both(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        plant(folder)

    return both


def names_with_paths(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors |= {name: torch.zeros(2) for name in ("../../evil", "/evil", "a/../../evil", "evil\0", "..", "__class__")}
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors")


def shards_outside(folder: Path) -> None:
    secret = folder.parent / f"secret-{folder.name}.safetensors"
    shutil.move(folder / "model.safetensors", secret)
    names = dict.fromkeys(load_file(secret), f"../{secret.name}")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


TEMPLATE = "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for x in range(10**9) %}x{% endfor %}{{ cycler.__init__ }}"
CODE = {"AutoConfig": "evil.Model", "AutoModel": "evil.Model", "AutoModelForMaskedLM": "evil.Model"}
MODELS: dict[str, Callable[[Path], None]] = {
    "pickled weights beside": bomb("pytorch_model.bin"),
    "pickled weights only": only(bomb("pytorch_model.bin")),
    "a pickle called safetensors": only(bomb("model.safetensors")),
    "training_args.bin": bomb("training_args.bin"),
    "optimizer.pt": bomb("optimizer.pt"),
    "scheduler.pt": bomb("scheduler.pt"),
    "rng_state.pth": bomb("rng_state.pth"),
    "adapter_model.bin": bomb("adapter_model.bin"),
    "tokenizer.pkl": bomb("tokenizer.pkl"),
    "a pickled tokenizer.json": bomb("tokenizer.json"),
    "a pickled spiece.model": bomb("spiece.model"),
    "auto_map": entries(auto_map=CODE, architectures=["Model"], trust_remote_code=True),
    "_attn_implementation_internal": entries(_attn_implementation_internal="evil/kernel"),
    "_attn_implementation": entries(_attn_implementation="evil/kernel", attn_implementation="evil/kernel@main:x"),
    "experts and kernels": entries(experts_implementation="evil/kernel", kernel_config={"a": "evil/k"}),
    "custom_pipelines": entries(custom_pipelines={"evil": {"impl": "evil.Model", "pt": ["AutoModel"]}}),
    "nested configs": entries(
        text_config={"auto_map": CODE, "trust_remote_code": True, "_attn_implementation_internal": "evil/kernel"},
        backbone_config={"model_type": "evil", "auto_map": CODE},
    ),
    "configs in the config": entries(sub_configs={"evil": "evil.Model"}),
    "another repository": entries(_name_or_path="evil/repo", name_or_path="evil/repo", _commit_hash="0" * 40),
    "an activation by path": entries(hidden_act="evil.Model"),
    "an architecture by path": entries(architectures=["evil.Model", "os.system", "__import__"]),
    "a method for a field": entries(from_pretrained="evil", to_dict="evil", save_pretrained="../../evil"),
    "a dtype by name": entries(dtype="evil", torch_dtype="os.system"),
    "code in the tokenizer": entries(
        "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Model", "evil.Model"]}, trust_remote_code=True
    ),
    "a tokenizer class of its own": entries("tokenizer_config.json", tokenizer_class="EvilTokenizer"),
    "a tokenizer class by path": entries("tokenizer_config.json", tokenizer_class="evil.Model"),
    "another tokenizer file": entries("tokenizer_config.json", tokenizer_file="../secret.json", vocab="../secret.txt"),
    "another tokenizer repository": entries("tokenizer_config.json", name_or_path="evil/repo", backend="evil"),
    "a template in the tokenizer": entries("tokenizer_config.json", chat_template=TEMPLATE),
    "a template beside the tokenizer": lambda folder: (folder / "chat_template.jinja").write_text(TEMPLATE),
    "code for generation": entries("generation_config.json", custom_generate="evil", trust_remote_code=True),
    "modules of sentence-transformers": lambda folder: (folder / "modules.json").write_text(
        json.dumps([{"idx": 0, "path": "", "type": "evil.Model"}, {"idx": 1, "path": "../../secret", "type": "x.Pool"}])
    ),
    "tensor names with paths": names_with_paths,
    "shards outside": shards_outside,
}  # fmt: skip


def use_model(folder: Path) -> None:
    """Load it, embed with it, train a step from it, save it."""
    engine = Engine.from_pretrained(folder)
    engine.embed(["a fine film"])
    engine.save(folder / "saved")
    rows = [{"text": "a fine film", "label": "pos"}, {"text": "dull", "label": "neg"}]
    options = {"steps": 1, "batch_size": 2, "progress": False, "report": False, "eval_fraction": 0}
    Engine.from_pretrained(folder).finetune(rows, output_dir=folder / "run", **options)


def zip_slip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for name in ("../../evil.txt", "/evil.txt", "a/../../../evil.txt"):
            archive.writestr(name, "\n\n".join(tiny_documents()))
    make_tokenizer().save_pretrained(folder / "tokenizer")
    engine = Engine.from_scratch("bert", size="tiny", tokenizer=str(folder / "tokenizer"), max_length=16)
    options = {"steps": 1, "batch_size": 2, "progress": False, "report": False, "eval_fraction": 0}
    engine.pretrain(str(folder / "a.zip"), output_dir=folder / "run", **options)


def object_array(folder: Path) -> None:
    make_corpus(make_tokenizer(), folder, unit="document")
    held = io.BytesIO()
    np.save(held, np.array([Bomb(folder / "EXECUTED")], dtype=object), allow_pickle=True)
    (folder / "side.npy").write_bytes(held.getvalue())
    CorpusFile(next(folder.glob("*.arrow")), None, SideColumns(str(folder / "side.npy"), ("x",), "key"))


def yaml_tags(folder: Path) -> None:
    for tag in (
        "object/apply:os.system [touch EXECUTED]",
        "name:evil.Model",
        "module:evil",
        "object/new:evil.Model {}",
    ):
        (folder / "run.yaml").write_text(f"head: !!python/{tag}\n")
        (folder / "evil.py").write_text(EVIL)
        try:
            load_config(folder / "run.yaml")
        except TunecoreError:
            continue
        events.append(f"!!python/{tag} was read")


def armed_bomb(folder: Path) -> None:
    """Shows that the watch is awake."""
    pickle.loads(pickle.dumps(Bomb(folder / "EXECUTED")))


FILES = {"zip slip": zip_slip, "an array of objects": object_array, "YAML tags": yaml_tags, "control": armed_bomb}


def main() -> None:
    """Every case in a folder of its own."""
    global armed
    logging.disable()
    warnings.simplefilter("ignore")
    tokenizer = make_tokenizer()
    make_model(["masked_lm"], tokenizer).save_pretrained(ROOT / "good")
    tokenizer.save_pretrained(ROOT / "good")
    use_model(ROOT / "good")  # loads all that is loaded when it is first needed
    shutil.rmtree(ROOT / "good" / "run")
    shutil.rmtree(ROOT / "good" / "saved")
    for name in ("secret.json", "secret.txt"):
        (ROOT / name).write_text("{}")
    sys.addaudithook(watch)
    sys.path.insert(0, ".")
    told = {}
    for number, case in enumerate([*MODELS, *FILES]):
        folder = ROOT / f"case-{number}"
        events.clear()
        if case in MODELS:
            shutil.copytree(ROOT / "good", folder)
            MODELS[case](folder)
        else:
            folder.mkdir()
        os.chdir(folder)
        armed, outcome = True, "done"
        try:
            (use_model if case in MODELS else FILES[case])(folder)
        except TunecoreError as error:
            outcome = f"{type(error).__name__}: {error}"
        except Exception as error:
            outcome = f"untyped {type(error).__name__}: {error}"
        finally:
            armed = False
        executed = [str(path) for path in ROOT.rglob("EXECUTED")]
        told[case] = {"outcome": outcome, "events": [*events, *executed]}
        for path in executed:
            os.remove(path)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
