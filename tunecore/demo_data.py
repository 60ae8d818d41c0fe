"""The demo's data: English that ships with every Python, and a task that can be labelled by itself.

Text: the docstrings of the standard library, found by parsing its source (nothing is imported), and the language
reference in ``pydoc_data.topics``. Task: which package is a docstring from? Files are kept apart: all docstrings of
one file are in training, development or test. The texts of development and test are not pretrained on either.
"""

from __future__ import annotations

import ast
import sysconfig
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

from tunecore.errors import DataError

LEFT_OUT = frozenset(
    {"distutils", "lib2to3", "test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
)
"""Folders left out: what newer Pythons dropped, test suites, and what is not the standard library."""
MIN_DOCSTRINGS, MIN_FILES = 100, 5
"""A package with fewer unique docstrings or files is no class."""
MIN_CHARS = 30
"""Shorter docstrings ("Return the value.") are pretrained on but not asked about."""
SHARES = {"train": 0.55, "test": 0.3, "dev": 0.15}
"""What part of a package's docstrings is for what, as near as whole files allow."""
HELD_OUT_EVERY = 20
"""Every so many documents, one measures pretraining and is not trained on."""

Row = dict[str, str]


class Docstring(NamedTuple):
    """One docstring and the file it stands in, relative to the standard library's folder."""

    text: str
    file: str

    @property
    def package(self) -> str:
        """Top-level package; "" for a module that is in none."""
        return self.file.split("/")[0] if "/" in self.file else ""


class DemoData(NamedTuple):
    """What the demo trains and tests on; rows are {"text": ..., "label": package}."""

    documents: list[str]
    held_out_documents: list[str]
    labels: list[str]
    train: list[Row]
    dev: list[Row]
    test: list[Row]

    @property
    def chance(self) -> float:
        """Accuracy on the test rows of always giving their commonest label."""
        labels = [row["label"] for row in self.test]
        return max(labels.count(label) for label in self.labels) / len(labels)


def find_docstrings(root: Path) -> Iterator[Docstring]:
    """Docstrings of modules, classes and functions below ``root``, by file name and position in the file."""
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if LEFT_OUT.intersection(parts):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # odd escapes in old sources are not our business
            tree = ast.parse(path.read_bytes(), filename=str(path))
        kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
        for node in sorted(nodes, key=lambda node: getattr(node, "lineno", 0)):
            text = ast.get_docstring(node)
            if text and text.strip():
                yield Docstring(text.strip(), "/".join(parts))


def _choose_labels(docstrings: list[Docstring]) -> list[str]:
    texts: dict[str, set[str]] = {}
    files: dict[str, set[str]] = {}
    for doc in docstrings:
        if doc.package:
            texts.setdefault(doc.package, set()).add(doc.text)
            files.setdefault(doc.package, set()).add(doc.file)
    return sorted(p for p in texts if len(texts[p]) >= MIN_DOCSTRINGS and len(files[p]) >= MIN_FILES)


def _split_files(docstrings: list[Docstring]) -> dict[str, str]:
    """File -> part, for the docstrings of one package.

    Largest files first, each to the part that has least of its share: so training, test and development each have
    at least one file, and training has the largest.
    """
    sizes: dict[str, int] = {}
    for doc in docstrings:
        sizes[doc.file] = sizes.get(doc.file, 0) + 1
    filled = dict.fromkeys(SHARES, 0)
    parts: dict[str, str] = {}
    for file in sorted(sizes, key=lambda f: (-sizes[f], f)):
        part = min(SHARES, key=lambda p: filled[p] / SHARES[p])
        parts[file], filled[part] = part, filled[part] + sizes[file]
    return parts


def _label_rows(docstrings: list[Docstring], parts: dict[str, str], seed: int) -> dict[str, list[Row]]:
    """Part -> rows in an order that ``seed`` fixes; no text comes twice, and none that two packages share."""
    packages: dict[str, set[str]] = {}
    for doc in docstrings:
        packages.setdefault(doc.text, set()).add(doc.package)
    rows: dict[str, list[Row]] = {part: [] for part in SHARES}
    used: set[str] = set()
    order = sorted(docstrings, key=lambda d: zlib.crc32(f"{seed}:{d.file}:{d.text}".encode()))
    for part in SHARES:
        for doc in order:
            if parts.get(doc.file) != part or doc.text in used:
                continue
            used.add(doc.text)
            if len(doc.text) >= MIN_CHARS and len(packages[doc.text]) == 1:
                rows[part].append({"text": doc.text, "label": doc.package})
    return rows


def _modules(docstrings: list[Docstring]) -> list[str]:
    """One document a file: its docstrings in order, as paragraphs; a text is in the first file that has it only.

    A document is what belongs together: the second sentence of a pair comes from the same one or from another.
    """
    seen: set[str] = set()
    files: dict[str, list[str]] = {}
    for doc in docstrings:
        if doc.text not in seen:
            seen.add(doc.text)
            files.setdefault(doc.file, []).append(doc.text)
    return ["\n\n".join(texts) for texts in files.values()]


def _spread(rows: list[Row], labels: list[str], limit: int) -> list[Row]:
    """At most ``limit`` rows, as even over the labels as they allow, in the order they came."""
    queues = {label: [i for i, row in enumerate(rows) if row["label"] == label] for label in labels}
    taken: list[int] = []
    while len(taken) < limit and any(queues.values()):
        for queue in queues.values():
            if queue and len(taken) < limit:
                taken.append(queue.pop(0))
    return [rows[i] for i in sorted(taken)]


def collect(
    root: Path | None = None, *, train_rows: int = 300, dev_rows: int = 150, test_rows: int = 600, seed: int = 0
) -> DemoData:
    """Collect pretraining documents and labelled rows.

    Args:
        root: folder of Python sources; None is the running Python's standard library.
        train_rows: most labelled rows in training; likewise ``dev_rows`` and ``test_rows``.
        seed: chooses which of the rows are taken; which files are for what is always the same.

    Raises:
        DataError: the standard library's sources are not there, or hold fewer than two packages large enough.
    """
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    docstrings = list(find_docstrings(root))
    labels = _choose_labels(docstrings)
    if len(labels) < 2:
        raise DataError(
            f"the Python sources in {str(root)!r} hold {len(labels)} packages of {MIN_DOCSTRINGS} docstrings in "
            f"{MIN_FILES} files; the demo needs two",
            hint="Some systems install Python without its library's sources or docstrings; use a full Python.",
        )
    parts: dict[str, str] = {}
    for label in labels:
        parts.update(_split_files([doc for doc in docstrings if doc.package == label]))
    rows = _label_rows(docstrings, parts, seed)
    asked = {row["text"] for part in ("test", "dev") for row in rows[part]}
    modules = _modules([doc for doc in docstrings if parts.get(doc.file, "train") == "train" and doc.text not in asked])
    # Some topics stand under several names; a document must not be both trained on and held out.
    documents = list(dict.fromkeys([*modules, *(text.strip() for text in topics.values())]))
    return DemoData(
        documents=[text for i, text in enumerate(documents) if i % HELD_OUT_EVERY],
        held_out_documents=documents[::HELD_OUT_EVERY],
        labels=labels,
        train=_spread(rows["train"], labels, train_rows),
        dev=_spread(rows["dev"], labels, dev_rows),
        test=_spread(rows["test"], labels, test_rows),
    )
