"""The tokenised corpus on disk: one memory-mapped Arrow file, committed by rename and checked when opened.

One record batch with a row per document: ``ids`` large_list<uint16 or uint32>, and each boundary column as
large_list<bool> over the same tokens. The header is JSON in the schema's metadata. While documents arrive they are
spooled to plain files, so memory stays flat whatever the corpus holds.
Shape letters: T tokens of the corpus, D documents.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tunecore.data.spool_folder import SpoolFolder
from tunecore.durable import sync
from tunecore.errors import DataError
from tunecore.types import IntArray

MAGIC = "tunecore corpus"
VERSION = 1
_KEY = b"tunecore"
_SCAN_TOKENS = 1 << 24
_REBUILD = "Delete the file; it is made again from the text."


class _BitSpool:
    """A file of bits, filled by bool arrays of any length."""

    def __init__(self, path: Path) -> None:
        self.file: IO[bytes] = open(path, "wb")  # noqa: SIM115 - closed by close()
        self.digest = hashlib.blake2b(digest_size=16)
        self._rest = np.empty(0, dtype=bool)

    def append(self, bits: NDArray[np.bool_]) -> None:
        bits = np.concatenate((self._rest, bits))
        whole = len(bits) // 8 * 8
        self._write(bits[:whole])
        self._rest = bits[whole:]

    def _write(self, bits: NDArray[np.bool_]) -> None:
        data = np.packbits(bits, bitorder="little").tobytes()
        self.digest.update(data)
        self.file.write(data)

    def close(self) -> None:
        self._write(self._rest)
        self.file.close()


class CorpusWriter:
    """Takes tokens in order and commits them as one file; a context that leaves nothing behind when it fails.

    Args:
        path: the file to make.
        vocab_size: decides between 2 and 4 bytes a token.
        columns: boundary columns, each a bool a token.
    """

    def __init__(self, path: Path, vocab_size: int, columns: tuple[str, ...]) -> None:
        self.path, self.vocab_size = path, vocab_size
        self.dtype: np.dtype[Any] = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._folder = SpoolFolder(path.parent)
        self._ids: IO[bytes] = open(self._spool("ids"), "wb")  # noqa: SIM115 - closed by commit or __exit__
        self._columns = {name: _BitSpool(self._spool(name)) for name in columns}
        self._lengths: list[int] = []
        self._open_length = 0
        self.num_tokens = 0
        self._digest = hashlib.blake2b(digest_size=16)

    def __enter__(self) -> CorpusWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._ids.close()
        for column in self._columns.values():
            column.file.close()
        self._folder.remove()

    def _spool(self, name: str) -> Path:
        return self._folder.path / name

    @property
    def num_documents(self) -> int:
        return len(self._lengths)

    def append(self, ids: NDArray[Any], columns: Mapping[str, NDArray[np.bool_]]) -> None:
        """Add tokens, and their bits of each column, to the open document."""
        data = ids.astype(self.dtype).tobytes()
        self._digest.update(data)
        self._ids.write(data)
        for name, spool in self._columns.items():
            spool.append(columns[name])
        self._open_length += len(ids)
        self.num_tokens += len(ids)

    def end_document(self) -> bool:
        """Close the open document; False (and no document) where it has no token."""
        if self._open_length == 0:
            return False
        self._lengths.append(self._open_length)
        self._open_length = 0
        return True

    def commit(self, tokenizer: str, summary: Mapping[str, Any]) -> None:
        """Write the Arrow file under a temporary name, flush it to disk, rename it, flush the folder.

        Args:
            tokenizer: hash of the tokenizer that made the ids.
            summary: JSON-serialisable counts kept in the header.
        """
        self._ids.close()
        for spool in self._columns.values():
            spool.close()
        offsets = np.zeros(len(self._lengths) + 1, dtype=np.int64)
        np.cumsum(self._lengths, out=offsets[1:])
        self._digest.update(offsets.tobytes())
        for name, spool in self._columns.items():
            self._digest.update(name.encode() + spool.digest.digest())
        header = {
            "magic": MAGIC, "version": VERSION, "dtype": self.dtype.name, "tokens": int(offsets[-1]),
            "documents": len(self._lengths), "columns": list(self._columns), "vocab_size": self.vocab_size,
            "tokenizer": tokenizer, "digest": self._digest.hexdigest(), "summary": dict(summary),
        }
        batch = self._batch(offsets, {_KEY: json.dumps(header).encode()})
        temporary = self._spool("corpus.arrow")
        with open(temporary, "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
        sync(temporary)
        os.replace(temporary, self.path)
        sync(self.path.parent)

    def _batch(self, offsets: IntArray, metadata: dict[bytes, bytes]) -> pa.RecordBatch:
        """The spooled files, memory-mapped, as Arrow arrays."""
        lists = pa.array(offsets, type=pa.int64())
        count = int(offsets[-1])
        types: dict[str, pa.DataType] = {"ids": pa.from_numpy_dtype(self.dtype)}
        types |= dict.fromkeys(self._columns, pa.bool_())
        arrays, fields = [], []
        for name, kind in types.items():
            data = pa.py_buffer(np.memmap(self._spool(name), mode="r"))
            values = pa.Array.from_buffers(kind, count, [None, data])
            arrays.append(pa.LargeListArray.from_arrays(lists, values))
            fields.append(pa.field(name, pa.large_list(kind), nullable=False))
        return pa.RecordBatch.from_arrays(
            [array.cast(field.type) for array, field in zip(arrays, fields, strict=True)],
            schema=pa.schema(fields, metadata=metadata),
        )


class SideColumns(NamedTuple):
    """Further columns of a corpus in a file beside it: packed bits, uint8 [columns, ceil(T / 8)], as ``.npy``."""

    path: str
    names: tuple[str, ...]
    key: str
    """What decides their content."""


class CorpusFile:
    """A committed corpus, memory-mapped.

    Args:
        path: the file.
        tokenizer: hash of the tokenizer it must have been made with; None does not check.
        side: further columns, in a file beside it.

    Raises:
        DataError: the file is missing, damaged, of another version, or made with another tokenizer.
    """

    ids: NDArray[Any]
    """uint16 or uint32 [T], not writable."""
    offsets: IntArray
    """int64 [D + 1]: document d is ids[offsets[d] : offsets[d + 1]]."""

    def __init__(
        self, path: str | os.PathLike[str], tokenizer: str | None = None, side: SideColumns | None = None
    ) -> None:
        self.path, self.side = os.fspath(path), side
        try:
            batch = self._read()
        except FileNotFoundError as error:
            raise DataError(f"corpus {self.path!r}: no such file") from error
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"corpus {self.path!r}: damaged, or not a corpus: {error}", hint=_REBUILD) from error
        self.header = self._header(batch.schema.metadata or {})
        self.columns: tuple[str, ...] = tuple(self.header["columns"])
        self._take_arrays(batch)
        if tokenizer is not None and self.header["tokenizer"] != tokenizer:
            raise DataError(
                f"corpus {self.path!r}: made with another tokenizer (hash {self.header['tokenizer']}, not {tokenizer})",
                hint="Name the tokenizer it was made with, or " + _REBUILD[0].lower() + _REBUILD[1:],
            )

        if side is not None:
            self._take_side(side)

    def __reduce__(self) -> tuple[type[CorpusFile], tuple[str, None, SideColumns | None]]:
        return CorpusFile, (self.path, None, self.side)

    @property
    def digest(self) -> str:
        """Hash of the tokens and of all columns."""
        own: str = self.header["digest"]
        if self.side is None:
            return own
        both = f"{own} {self.side.key}"
        return hashlib.blake2b(both.encode(), digest_size=16).hexdigest()

    def _take_side(self, side: SideColumns) -> None:
        shape = (len(side.names), (len(self.ids) + 7) // 8)
        try:
            bits = np.load(side.path, mmap_mode="r", allow_pickle=False)
            if bits.shape != shape or bits.dtype != np.uint8:
                raise ValueError(f"{bits.dtype} {list(bits.shape)} where uint8 {list(shape)} is expected")
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"corpus {self.path!r}: {side.path!r} is damaged: {error}", hint=_REBUILD) from error
        self.columns += side.names
        self._bits |= dict(zip(side.names, bits, strict=True))

    def _read(self) -> pa.RecordBatch:
        reader = pa.ipc.open_file(pa.memory_map(self.path))
        if reader.num_record_batches != 1:
            raise ValueError(f"{reader.num_record_batches} record batches where one is expected")
        batch = reader.get_batch(0)
        # Buffers may be shorter than the lengths say: reading past them would end the process. Costs no pass over them.
        batch.validate()
        return batch

    def _header(self, metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
        try:
            header = json.loads(metadata[_KEY])
            magic, version = header["magic"], header["version"]
            needed = ("dtype", "tokens", "documents", "columns", "vocab_size", "tokenizer", "digest", "summary")
            missing = [key for key in needed if key not in header]
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(f"corpus {self.path!r}: its header cannot be read", hint=_REBUILD) from error
        if magic != MAGIC or version != VERSION:
            raise DataError(
                f"corpus {self.path!r}: header says {magic!r} version {version}; this is {MAGIC!r} version {VERSION}",
                hint=_REBUILD,
            )
        if missing:
            raise DataError(f"corpus {self.path!r}: its header lacks {', '.join(missing)}", hint=_REBUILD)
        return dict(header)

    def _take_arrays(self, batch: pa.RecordBatch) -> None:
        header = self.header
        try:
            lists = batch.column("ids")
            self.offsets = lists.offsets.to_numpy()
            self.ids = lists.values.to_numpy(zero_copy_only=True)
            self._bits = {
                name: np.frombuffer(batch.column(name).values.buffers()[1], dtype=np.uint8) for name in self.columns
            }
        except (KeyError, AttributeError, pa.ArrowException) as error:
            raise DataError(f"corpus {self.path!r}: a column is missing: {error}", hint=_REBUILD) from error
        found = (self.ids.dtype.name, len(self.ids), len(self.offsets) - 1)
        said = (header["dtype"], header["tokens"], header["documents"])
        sound = self.offsets[0] == 0 and self.offsets[-1] == len(self.ids) and bool((np.diff(self.offsets) > 0).all())
        short = [name for name, bits in self._bits.items() if len(bits) * 8 < len(self.ids)]
        if found != said or not sound or short:
            raise DataError(
                f"corpus {self.path!r}: its header says {said[1]} tokens ({said[0]}) in {said[2]} documents, "
                f"the file holds {found[1]} ({found[0]}) in {found[2]}",
                hint=_REBUILD,
            )

    def bits(self, column: str, start: int, stop: int) -> NDArray[np.bool_]:
        """A boundary column of tokens start, ..., stop - 1: bool."""
        first = start >> 3
        raw = np.unpackbits(self._bits[column][first : (stop + 7) >> 3], bitorder="little")
        return raw[start - 8 * first : stop - 8 * first].astype(bool)

    def set_positions(self, column: str) -> IntArray:
        """Positions of all tokens whose bit is set: int64, ascending."""
        count = len(self.ids)
        found = [
            np.flatnonzero(self.bits(column, at, min(at + _SCAN_TOKENS, count))) + at
            for at in range(0, count, _SCAN_TOKENS)
        ]
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)

    def verify(self) -> None:
        """Read everything and compare it with the header's digest.

        Raises:
            DataError: a byte has changed since the file was committed.
        """
        digest = hashlib.blake2b(digest_size=16)
        for at in range(0, len(self.ids), _SCAN_TOKENS):
            digest.update(np.ascontiguousarray(self.ids[at : at + _SCAN_TOKENS]).data)
        digest.update(np.ascontiguousarray(self.offsets, dtype=np.int64).data)
        used = (len(self.ids) + 7) // 8
        for name in self.columns:
            digest.update(name.encode() + hashlib.blake2b(self._bits[name][:used].data, digest_size=16).digest())
        if digest.hexdigest() != self.header["digest"]:
            raise DataError(f"corpus {self.path!r}: its content does not match its digest", hint=_REBUILD)
