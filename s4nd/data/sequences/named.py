"""The sets of sequences by name: drawn, read from files, or images read pixel by pixel.

Shape legend: N = examples, L = samples, D = features.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch

from s4nd.data.folders import existing
from s4nd.data.images.files import read_idx
from s4nd.data.images.named import load_images
from s4nd.data.images.options import ImageData
from s4nd.data.images.sets import PixelSet
from s4nd.data.labeled import DataError
from s4nd.data.sequences.files import class_folders, listops_files, retrieval_files, text_tokens
from s4nd.data.sequences.options import DRAWN, IMAGES, SequenceData
from s4nd.data.sequences.sets import SequenceSet
from s4nd.data.synthetic.listops import listops
from s4nd.data.synthetic.memory import adding, copying, delay, induction, selective_copying
from s4nd.data.synthetic.pathfinder import pathfinder
from s4nd.seeds import derived_seed, generator

__all__ = ['Parts', 'load_sequences']

Parts = dict[str, SequenceSet]
ORDER = 1998  # seed of the one order of permuted pixels


def load_sequences(data: SequenceData, seed: int = 0) -> Parts:
    """The set that `data` describes, as 'train', 'val' and 'test'.

    Raises:
        ValueError: there are no such files, they cannot be read, or such sequences cannot be drawn.
    """
    if data.kind in DRAWN:
        return _drawn(data, seed)
    if data.kind in IMAGES:
        return _held_out(_images(data), data, seed)
    root = existing(data.root, {'text': 'a file', 'folder': 'class folders'}.get(data.kind, 'the folder of its files'))
    if data.kind == 'text':
        return _windows(root, data)
    readers = {'folder': class_folders, 'listops_files': listops_files, 'retrieval': retrieval_files}
    parts = readers[data.kind](root, data.length)
    if '' in parts:
        rest, test = parts[''].hold_out(data.val_fraction, generator(seed, 1))
        parts = {'train': rest, 'test': rest if test is None else test}
    return _held_out(parts, data, seed)


def _drawn(data: SequenceData, seed: int) -> Parts:
    memory: dict[str, Any] = {'memory': data.memory, 'symbols': data.symbols}
    makers: dict[str, Any] = {
        'listops': partial(listops, shortest=data.shortest),
        'copying': partial(copying, **memory),
        'selective_copying': partial(selective_copying, **memory),
        'induction': partial(induction, symbols=data.symbols),
        'delay': partial(delay, lag=data.lag),
        'adding': adding,
        'pathfinder': pathfinder,
    }
    size = data.length
    if data.kind == 'pathfinder':
        size = math.isqrt(data.length)
        if size**2 != data.length or size < 16:
            raise DataError(f'data.length: pathfinder expects the square of 16 or more pixels, got {data.length}')
    counts = {'train': data.train_count, 'val': data.test_count, 'test': data.test_count}
    return {
        part: makers[data.kind](count, size, derived_seed(seed, number))
        for number, (part, count) in enumerate(counts.items())
    }


def _held_out(parts: Parts, data: SequenceData, seed: int) -> Parts:
    if 'val' in parts:
        return parts
    rest, held = parts['train'].hold_out(data.val_fraction, generator(seed))
    if held is None or not len(rest):
        count = len(parts['train'])
        raise DataError(f'data.val_fraction={data.val_fraction} of {count} sequences leaves a part empty')
    return {'train': rest, 'val': held, 'test': parts['test']}


def _images(data: SequenceData) -> Parts:
    """Images as bytes (N, H · W, D), row by row or in one random order."""
    if data.kind == 'mnist':
        train, test = _mnist(data.root, 'train'), _mnist(data.root, 't10k')
    else:
        splits: Any = load_images(ImageData(kind=data.kind, root=data.root))
        train, test = splits.train, splits.test
    return {'train': _sequence(train, data), 'test': _sequence(test, data)}


def _sequence(images: PixelSet, data: SequenceData) -> SequenceSet:
    pixels = images.at(data.size or images.native_size)
    if data.gray:
        pixels = pixels.float().mean(1, keepdim=True).round().byte()
    inputs = pixels.flatten(2).transpose(1, 2)  # (N, L, D)
    if data.permuted:
        inputs = inputs[:, torch.randperm(inputs.shape[1], generator=torch.Generator().manual_seed(ORDER))]
    return SequenceSet(inputs.contiguous(), images.labels, classes=len(images.classes))


def _mnist(root: str | None, part: str) -> PixelSet:
    """The idx files of MNIST, as torchvision leaves them or as they are published."""
    folder, found = existing(root, 'the folder of MNIST'), []
    for content in ('images-idx3', 'labels-idx1'):
        names = [f'{part}-{content}-ubyte{end}' for end in ('', '.gz')]
        places = (folder / below / name for below in ('', 'MNIST/raw') for name in names)
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise DataError(f'{folder}: no {names[0]}[.gz] there or in MNIST/raw')
        found.append(read_idx(path))
    return PixelSet(found[0][:, None], found[1].long(), tuple('0123456789'))


def _windows(path: Path, data: SequenceData) -> Parts:
    """Windows of a text in its order, 90 % to train on, then 5 and 5 %: each token is asked from those before it."""
    tokens, count = text_tokens(path, data.unit)
    ends = int(0.9 * len(tokens)), int(0.95 * len(tokens))
    parts: Parts = {}
    for part, piece in zip(('train', 'val', 'test'), tokens.tensor_split(ends), strict=True):
        windows = (len(piece) - 1) // data.length
        if windows < 1:
            raise DataError(f'{path}: {len(tokens)} tokens are too few for windows of data.length={data.length}')
        inputs = piece[: windows * data.length].unflatten(0, (windows, data.length))
        targets = piece[1 : windows * data.length + 1].unflatten(0, (windows, data.length))
        parts[part] = SequenceSet(inputs, targets, count, count)
    return parts
