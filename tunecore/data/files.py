"""Paths to readable streams: files, globs, folders, ``.gz`` files and members of ``.zip`` archives.

A member is named ``archive.zip::folder/member.txt``; any reader that opens its path with ``open_binary`` reads plain,
gzipped and archived files alike. ``train.{en,de}.gz`` names two files that belong together line by line.
"""

from __future__ import annotations

import difflib
import glob
import gzip
import lzma
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import IO, cast

from tunecore.errors import DataError, unknown_name

MEMBER = "::"
DEFAULT_SUFFIXES = (
    ".txt", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet",
    ".conll", ".bio", ".iob", ".iob2", ".train", ".testa", ".testb",
)  # fmt: skip
LONGEST_LINE = 1 << 30
MOST_WHOLE = 4 << 30
"""Bytes, unpacked: a small archive of an endless line must not fill the memory."""
_PIECE = 1 << 20
"""Bytes of one read of a file that is read whole."""
_GLOB_CHARACTERS = frozenset("*?[")
_BRACES = re.compile(r"\{([^{}]*,[^{}]*)\}")


def suffix_of(path: str) -> str:
    """The lower-case suffix that says how to read ``path``; ``.gz`` is looked through ("a.csv.gz" -> ".csv")."""
    name = path.rsplit(MEMBER, 1)[-1].lower()
    return os.path.splitext(name.removesuffix(".gz"))[1]


def parallel_files(path: str) -> dict[str, str]:
    """Name -> file of parallel text: ``x.{en,de}.gz`` is {"en": "x.en.gz", "de": "x.de.gz"}; {} for any other path.

    Raises:
        DataError: a name is empty or stands there twice, or there is more than one pair of braces.
    """
    found = _BRACES.findall(path)
    if not found or os.path.exists(path):
        return {}
    names = [name.strip() for name in found[0].split(",")]
    if len(found) > 1 or not all(names) or len(set(names)) < len(names):
        raise DataError(f"{path}: braces name parallel files once, each by another name", hint="Write train.{en,de}.")
    return {name: _BRACES.sub(lambda _, name=name: name, path) for name in names}  # type: ignore[misc]


def physical_files(path: str) -> list[str]:
    """The files on disk behind a path of ``expand_paths``: an archive for its member, each of parallel files."""
    return list(parallel_files(path).values()) or [path.partition(MEMBER)[0]]


def expand_paths(paths: Sequence[str | os.PathLike[str]], suffixes: Sequence[str] = DEFAULT_SUFFIXES) -> list[str]:
    """Files, globs, folders (searched below, hidden names left out) and archives -> the files to read, each once.

    Parallel files (``train.{en,de}``) stay one path; their suffix does not matter. The order is that of ``paths``,
    sorted inside a glob, a folder or an archive.

    Raises:
        DataError: a file is missing, a pattern or folder holds nothing readable, or a suffix is unknown.
    """
    found: dict[str, None] = {}
    for given in paths:
        path = os.fspath(given)
        parallel = parallel_files(path)
        for part in parallel.values():
            if not os.path.isfile(part):
                _files(part, suffixes)  # says what is there instead
                raise DataError(f"{part}: parallel text must be plain or gzipped files, one text a line")
        if parallel:
            found[path] = None
            continue
        for file in _files(path, suffixes):
            found.update(dict.fromkeys(_members(file, suffixes)))
    return list(found)


def _files(path: str, suffixes: Sequence[str]) -> list[str]:
    """Existing files meant by one path, glob or folder."""
    if os.path.isdir(path):
        files = [file for file in _walk(path) if _is_known(file, suffixes)]
        if not files:
            raise DataError(f"{path}: the folder holds no file ending in {', '.join(suffixes)} (or .gz, .zip of these)")
        return files
    if os.path.exists(path) or MEMBER in path:
        return [path]
    if _GLOB_CHARACTERS & set(path):
        matches = sorted(glob.glob(path, recursive=True))
        files = [m for m in matches if os.path.isfile(m)] or [f for m in matches for f in _files(m, suffixes)]
        if not files:
            raise DataError(f"{path}: no file matches this pattern (looked from {os.getcwd()})")
        return files
    folder = os.path.dirname(path) or "."
    names = os.listdir(folder) if os.path.isdir(folder) else []
    near = difflib.get_close_matches(os.path.basename(path), names, n=3)
    where = f"{folder!r} is there" if os.path.isdir(folder) else f"the folder {folder!r} does not exist either"
    raise DataError(
        f"{path}: no such file; {where}",
        hint=f"Did you mean {', '.join(os.path.join(os.path.dirname(path), n) for n in near)}?" if near else None,
    )


def _walk(folder: str) -> list[str]:
    files: list[str] = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [os.path.join(root, name) for name in sorted(names) if not name.startswith(".")]
    return files


def _is_known(path: str, suffixes: Sequence[str]) -> bool:
    return suffix_of(path) in (*suffixes, ".zip")


def _members(path: str, suffixes: Sequence[str]) -> list[str]:
    """The file itself, or the readable members of an archive."""
    suffix = suffix_of(path)
    if suffix == ".zip":
        with _reading(path), _archive(path) as archive:
            names = sorted(info.filename for info in archive.infolist() if info.filename and not info.is_dir())
        members = [f"{path}{MEMBER}{n}" for n in names if suffix_of(n) in suffixes and not n.startswith("__MACOSX/")]
        if not members:
            raise DataError(f"{path}: the archive holds no file ending in {', '.join(suffixes)}")
        return members
    if suffix not in suffixes:
        raise DataError(
            f"{path}: {unknown_name('kind of file', suffix or '(no suffix)', suffixes)}",
            hint="Rename the file, or register a source for it (tunecore_register_sources).",
        )
    return [path]


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Turn what a damaged or unreadable file raises into a DataError that names it."""
    try:
        yield
    except (zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, struct.error, EOFError) as error:
        raise DataError(f"{path}: the compressed file is damaged: {error}") from error
    except (NotImplementedError, RuntimeError) as error:  # zipfile: unknown method, encrypted member
        raise DataError(f"{path}: the archive cannot be read: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


@contextmanager
def open_binary(path: str) -> Iterator[IO[bytes]]:
    """Open a plain file, a ``.gz`` file or a member of an archive for reading bytes.

    Raises:
        DataError: the file is missing, unreadable or damaged, then or while it is read.
    """
    archive_path, is_member, member = path.partition(MEMBER)
    with _reading(path):
        if is_member:
            with _archive(archive_path) as archive:
                if member not in archive.namelist():
                    raise DataError(f"{path}: the archive has no such member")
                with archive.open(member) as stream:
                    yield _unzipped(stream, member)
        else:
            with _regular_file(path) as file:
                yield _unzipped(file, path)


def read_whole(path: str, stream: IO[bytes]) -> bytes:
    """All bytes of a stream, which may be packed far smaller than they are.

    Raises:
        DataError: there are more than ``MOST_WHOLE``.
    """
    content = bytearray()
    while piece := stream.read(_PIECE):  # one read of the most would set that much memory aside for any file
        content += piece
        if len(content) > MOST_WHOLE:
            raise DataError(
                f"{path}: longer than {MOST_WHOLE >> 20} MiB, and this kind of file is read whole",
                hint="Write it as jsonl, which is read row by row, or unpack it.",
            )
    return bytes(content)


@contextmanager
def _archive(path: str) -> Iterator[zipfile.ZipFile]:
    with _regular_file(path) as file:
        try:
            archive = zipfile.ZipFile(file)
        except (ValueError, LookupError, OverflowError) as error:  # of a name or number that the module trips over
            raise DataError(f"{path}: the compressed file is damaged: {error}") from error
        with archive:
            yield archive


def _regular_file(path: str) -> IO[bytes]:
    """An open file on disk. A pipe or a device would wait for ever, and data is read more than once.

    Raises:
        DataError: it is something else.
    """
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - closed by the caller
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise DataError(f"{path}: is a pipe or a device, not a file", hint="Write what it gives to a file first.")


def _without_waiting(path: str, flags: int) -> int:
    # Opening a pipe that nobody writes to would wait; a file does not mind the flag.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _unzipped(stream: IO[bytes], name: str) -> IO[bytes]:
    return cast(IO[bytes], gzip.GzipFile(fileobj=stream)) if name.lower().endswith(".gz") else stream


def text_lines(path: str, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """(line number from 1, line with its end) of a file; a byte-order mark of UTF-8 is dropped.

    ``encoding`` is one in which ASCII stands for itself (latin-1, cp1252 ...).

    Raises:
        DataError: a line is not of that encoding (line and byte are named) or endless, or the file cannot be read.
    """
    position = 0
    with open_binary(path) as stream:
        for number, raw in enumerate(iter(partial(stream.readline, LONGEST_LINE), b""), start=1):
            if len(raw) >= LONGEST_LINE:
                raise DataError(
                    f"{path}:{number}: longer than {LONGEST_LINE >> 20} MiB", hint="Is it a file of lines of text?"
                )
            if number == 1:
                raw = _without_mark(path, raw)
            try:
                line = raw.decode(encoding)
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}:{number}: not {encoding.upper()}: byte 0x{raw[error.start]:02x} at byte "
                    f"{position + error.start} of the file ({error.reason})",
                    hint="Convert it first, for example: iconv -f latin1 -t utf-8 FILE > NEW",
                ) from error
            position += len(raw)
            yield number, line


def _without_mark(path: str, raw: bytes) -> bytes:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(
            f"{path}: not UTF-8: it begins with the byte-order mark of UTF-16",
            hint="Convert it first: iconv -f utf-16 -t utf-8 FILE > NEW",
        )
    return raw.removeprefix(b"\xef\xbb\xbf")
