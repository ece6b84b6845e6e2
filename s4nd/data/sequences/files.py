"""Readers of token files: class folders, the .tsv files of Long Range Arena, and text.

Shape legend: N = examples, L = samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from s4nd.data.folders import divide, files_named, locate
from s4nd.data.labeled import DataError
from s4nd.data.sequences.sets import SequenceSet
from s4nd.data.synthetic.listops import TOKENS, tokens_of

__all__ = ['class_folders', 'listops_files', 'padded', 'retrieval_files', 'text_tokens']

BYTES = 257  # 0 pads, a byte b is the token b + 1
_LARGEST = 30_000  # of a token; they are kept in 16 bits
_UNLABELED = 'unsup'  # a folder of IMDB beside its classes


def class_folders(root: Path, length: int) -> dict[str, SequenceSet]:
    """Read class folders of .txt files, as bytes, or of .npy files, as tokens 0 … of which 0 pads: 'train' and 'test'.

    A root without such folders gives '' alone. The first `length` tokens of each file are kept.

    Raises:
        DataError: nothing to learn from, or a file that is no text or no tokens, which is named.
    """
    kinds = {'.txt': _bytes_of, '.npy': _array_of}
    paths = [path for path in files_named(root, kinds) if _UNLABELED not in path.parts]
    names, members, labels, train = divide(root, locate(paths), example='file')
    suffixes = {PurePosixPath(member.path).suffix.lower() for member in members}
    if len(suffixes) > 1:
        raise DataError(f'{root}: expected .txt or .npy files, got both')
    read = kinds[suffixes.pop()]
    inputs, lengths = padded([read(root / member.path, length) for member in members], length)
    tokens = BYTES if read is _bytes_of else 1 + int(inputs.max())
    whole = SequenceSet(inputs, labels, tokens, len(names), lengths)
    if train == len(whole):
        return {'': whole}
    return {'train': whole.select(torch.arange(train)), 'test': whole.select(torch.arange(train, len(whole)))}


def listops_files(root: Path, length: int) -> dict[str, SequenceSet]:
    """Read basic_{train,val,test}.tsv of Long Range Arena: a header, then list and value with a tab between them."""

    def example(fields: Sequence[str]) -> tuple[Tensor, int]:
        return torch.tensor(tokens_of(fields[0])[:length], dtype=torch.int16), int(fields[1])

    parts = {}
    for part in ('train', 'val', 'test'):
        rows, labels = zip(*_rows(root / f'basic_{part}.tsv', 2, example, header=True), strict=True)
        inputs, lengths = padded(rows, length)
        parts[part] = SequenceSet(inputs, torch.tensor(labels), len(TOKENS) + 1, 10, lengths)
    return parts


def retrieval_files(root: Path, length: int) -> dict[str, SequenceSet]:
    """Read new_aan_pairs.{train,eval,test}.tsv (AAN): label, two identifiers and two texts, which are read as bytes."""

    def example(fields: Sequence[str]) -> tuple[tuple[Tensor, Tensor], int]:
        first, second = (_encoded(text.strip('"').encode()[:length]) for text in fields[3:5])
        return (first, second), int(float(fields[0]))

    parts = {}
    for part, name in (('train', 'train'), ('val', 'eval'), ('test', 'test')):
        rows, labels = zip(*_rows(root / f'new_aan_pairs.{name}.tsv', 5, example), strict=True)
        inputs, lengths = padded([text for pair in rows for text in pair], length)
        parts[part] = SequenceSet(
            inputs.unflatten(0, (-1, 2)), torch.tensor(labels), BYTES, 2, lengths.unflatten(0, (-1, 2))
        )
    return parts


def text_tokens(path: Path, unit: str) -> tuple[Tensor, int]:
    """Read a file as tokens (L,) and how many different ones there are: bytes, or the characters that it holds.

    Raises:
        DataError: it cannot be read, is empty, or with unit 'character' no UTF-8.
    """
    try:
        content = path.read_bytes()
        if not content:
            raise DataError(f'{path}: expected text, got an empty file')
        if unit == 'byte':
            return torch.frombuffer(bytearray(content), dtype=torch.uint8), 256
        points = torch.from_numpy(np.frombuffer(content.decode('utf-8').encode('utf-32-le'), dtype=np.int32).copy())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f'{path}: cannot be read ({error})') from error
    known, tokens = points.unique(return_inverse=True)
    if len(known) > _LARGEST:
        raise DataError(f'{path}: expected at most {_LARGEST} different characters, got {len(known)}')
    return tokens.to(torch.int16), len(known)


def padded(rows: Sequence[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """Token sequences as (N, longest) of at most `length`, filled up with 0, and their lengths (N,)."""
    lengths = torch.tensor([min(len(row), length) for row in rows])
    inputs = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int16)
    for row, tokens, count in zip(inputs, rows, lengths.tolist(), strict=True):
        row[:count] = tokens[:count]
    return inputs, lengths


def _encoded(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content or b' '), dtype=torch.uint8).to(torch.int16) + 1


def _bytes_of(path: Path, length: int) -> Tensor:
    try:
        with path.open('rb') as file:
            return _encoded(file.read(length))
    except OSError as error:
        raise DataError(f'{path}: cannot be read ({error})') from error


def _array_of(path: Path, length: int) -> Tensor:
    try:
        tokens = np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f'{path}: cannot be read ({error})') from error
    if tokens.ndim != 1 or tokens.dtype.kind not in 'iu' or not tokens.size:
        raise DataError(f'{path}: expected whole numbers (length,), got {tokens.dtype} of shape {tokens.shape}')
    if tokens.min() < 0 or tokens.max() > _LARGEST:
        raise DataError(f'{path}: expected tokens of 0 to {_LARGEST}, got {tokens.min()} to {tokens.max()}')
    return torch.from_numpy(tokens[:length].astype(np.int16))


def _rows(
    path: Path, columns: int, example: Callable[[Sequence[str]], tuple[object, int]], header: bool = False
) -> Iterator[tuple]:
    """What `example` makes of each line of a .tsv file. Raises DataError, naming the line, where it cannot."""
    if not path.is_file():
        raise DataError(f'{path} does not exist')
    with path.open(encoding='utf-8', errors='replace') as file:
        for number, line in enumerate(file, start=1):
            fields = line.rstrip('\n').split('\t')
            if (header and number == 1) or fields == ['']:
                continue
            try:
                if len(fields) < columns:
                    raise ValueError(f'expected {columns} columns, got {len(fields)}')
                yield example(fields)
            except ValueError as error:
                raise DataError(f'{path}, line {number}: {error}') from error
