"""The options of a set of sequences."""

from __future__ import annotations

from dataclasses import dataclass

from s4nd.options import option

__all__ = ['KINDS', 'SequenceData']

IMAGES = ('mnist', 'fashion_mnist', 'cifar10')
DRAWN = ('listops', 'pathfinder', 'copying', 'selective_copying', 'induction', 'delay', 'adding')
KINDS = (*DRAWN, *IMAGES, 'listops_files', 'retrieval', 'folder', 'text')


@dataclass
class SequenceData:
    """Sequences, and what is asked of them: drawn from the seed, or read from `root`."""

    kind: str = option('copying', 'the set', choices=KINDS)
    root: str | None = option(
        None,
        'images: their folder; listops_files, retrieval: the folder of the published .tsv files; '
        'folder: class folders of .txt (read as bytes) or .npy (tokens) files; text: one file',
    )
    length: int = option(256, 'samples per sequence; longer ones are cut; pathfinder: a square number', low=2)
    permuted: bool = option(False, 'images: show the pixels in one random order, the same for all')
    gray: bool = option(False, 'images: average the colors')
    size: int | None = option(None, 'images: pixels per side; null: as stored', low=1, high=1024)
    shortest: int | None = option(None, 'listops: fewest tokens; null: a quarter of `length`', low=4)
    memory: int = option(10, 'copying, selective_copying: tokens to remember', low=1)
    symbols: int = option(8, 'copying, selective_copying, induction: different tokens', low=1, high=30000)
    lag: int = option(1000, 'delay: samples', low=1)
    unit: str = option('byte', 'text: what a token is', choices=('byte', 'character'))
    batch_size: int = option(32, 'sequences per process and step', low=1)
    train_count: int = option(4000, 'drawn sets: sequences to train on; text: windows per epoch', low=1)
    test_count: int = option(500, 'drawn sets: sequences to test on, and as many to validate on', low=1)
    val_fraction: float = option(0.1, 'files: share held out of the training part', low=0.001, high=0.5)
