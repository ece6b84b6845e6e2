"""What the timing scripts share: options, interleaved medians, peak memory, tables."""

import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from s4nd import pictures
from s4nd.files import write_atomically

Candidates = Mapping[str, Callable[[], object]]


def options(defaults: Mapping[str, str]) -> dict[str, str]:
    """The command line's key=value words over `defaults`; exits with a message on an unknown one."""
    given = dict(word.split('=', 1) if '=' in word else (word, '') for word in sys.argv[1:])
    unknown = sorted(set(given) - set(defaults))
    if unknown:
        sys.exit(f'unknown option {", ".join(unknown)}: expected some of {", ".join(f"{key}=…" for key in defaults)}')
    return {**defaults, **given}


def setup(threads: str, device: str) -> str:
    """Set the number of threads; returns what the figures were measured on."""
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    where = torch.cuda.get_device_name() if device == 'cuda' else f'CPU, {threads} threads'
    return f'{where}, torch {torch.__version__}, {time.strftime("%Y-%m-%d")}, seed 0'


def medians(candidates: Candidates, rounds: int, device: str = 'cpu') -> dict[str, float]:
    """Median seconds of each candidate over `rounds` interleaved runs; the first round warms up and does not count."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds + 1):
        for name, run in candidates.items():
            times[name].append(_on_gpu(run) if device == 'cuda' else _on_cpu(run))
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def _on_cpu(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _on_gpu(run: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def peak_memory(make: Callable[..., Callable[[], object]], *arguments: object) -> float:
    """Peak GB that the second call of make(*arguments)() adds, in a process of its own; nan where it is killed.

    `make` must be a module's function. Main memory only, as the system counts it.
    """
    context = multiprocessing.get_context('spawn')
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sender, torch.get_num_threads(), make, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return float('nan')
    finally:
        process.join()


def _measure(sender: Any, threads: int, make: Callable[..., Callable[[], object]], arguments: tuple) -> None:
    torch.set_num_threads(threads)
    before = _memory('VmRSS')
    run = make(*arguments)
    run()
    run()
    sender.send((_memory('VmHWM') - before) / 1e6)


def _memory(entry: str) -> int:
    """Kilobytes in use now (VmRSS) or at the most so far (VmHWM); getrusage would count the parent's as well."""
    lines = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text(encoding='utf-8').splitlines())
    return int(lines[entry].split()[0])


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal keys as aligned text; floats with three significant digits."""
    cells = [list(rows[0])] + [[f'{v:.3g}' if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return '\n'.join('  '.join(f'{cell:>{width}}' for cell, width in zip(row, widths, strict=True)) for row in cells)


def save(
    out: str, name: str, measured: str, rows: Sequence[Mapping[str, Any]], draw: Callable[[], Figure] | None = None
) -> None:
    """Write <name>.json and the picture <name>.png, light and dark, into the folder `out`, and say so."""
    folder = Path(out)
    text = json.dumps({'measured': measured, 'rows': list(rows)}, indent=1)
    write_atomically(folder / f'{name}.json', lambda path: path.write_text(text, encoding='utf-8'))
    if draw is not None:
        pictures.write(folder / f'{name}.png', draw, dark=True)
    print(f'\n{measured}\nwritten to {folder}')
