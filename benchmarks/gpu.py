"""What is S4ND's speed on a GPU? Independent parts, each in a process and a time box of its own, five minutes in all.

    python benchmarks/gpu.py [parts=layer,backbone,tests,sashimi,longconv small=false out=out/gpu]

layer     S4ND and a depthwise 7×7 convolution at the four stages of ConvNeXt, in both memory formats: milliseconds of
          the forward and of forward and backward with given taps, ratios (below 1: S4ND is faster), error, and the
          share of the card's copy bandwidth that reading the signal once and writing it once would need.
backbone  s4nd_convnext_tiny and timm's convnext_tiny: images per second in inference and in a training step, eager and
          compiled, in both memory formats, ratios (above 1: ours is faster) and peak memory.
tests     tests/test_gpu.py.
sashimi   a training step of SaShiMi at 16,000 samples, and samples per second of its plain and its captured loop.
longconv  convolutions along one axis as long as the taps.

Every part prints a table and writes <part>.json after each row, so what was measured before its time was over stays.
Without a GPU the command says so and exits with 0; with small=true it runs on the CPU, as small as it goes.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from common import medians, options, table
from torch import Tensor, nn

import s4nd
from s4nd import S4ND
from s4nd.files import write_atomically
from s4nd.ops import separable_conv

SECONDS = {'layer': 60, 'backbone': 95, 'tests': 60, 'sashimi': 45, 'longconv': 25}
STAGES = [(96, 56), (192, 28), (384, 14), (768, 7)]
BEYOND_CACHE = 2**28  # bytes of all inputs that a graph goes through, several times the cache of the largest cards


class Part:
    """The rows of a part: printed and written as they come, for as long as its time lasts."""

    def __init__(self, name: str, small: bool, out: str) -> None:
        self.name, self.small, self.path = name, small, Path(out) / f'{name}.json'
        self.device = 'cpu' if small else 'cuda'
        self.end = time.monotonic() + SECONDS[name] - 10
        card = 'CPU' if small else torch.cuda.get_device_name()
        self.measured = (
            f'{card}, torch {torch.__version__}, timm {timm.__version__}, s4nd {s4nd.__version__}, '
            f'{time.strftime("%Y-%m-%d")}'
        )
        self.rows: list[dict[str, Any]] = []

    def over(self) -> bool:
        return time.monotonic() > self.end

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        text = json.dumps({'measured': self.measured, 'rows': self.rows}, indent=1)
        write_atomically(self.path, lambda path: path.write_text(text, encoding='utf-8'))
        print(table(self.rows), flush=True)

    def medians(self, candidates: dict[str, Callable[[], object]], rounds: int = 15) -> dict[str, float]:
        return medians(candidates, 2 if self.small else rounds, self.device)


def captured(run: Callable[[], object], device: str) -> Callable[[], object]:
    """The replay of a CUDA graph of run(): without the gaps between launches. On a CPU, run itself."""
    if device == 'cpu':
        return run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def layer(part: Part) -> None:
    batch, dtypes = (2, [torch.bfloat16]) if part.small else (128, [torch.bfloat16, torch.float32])
    bandwidth = copy_bandwidth(part)
    for dtype in dtypes:
        for layout in (torch.contiguous_format, torch.channels_last):
            for channels, length in [(16, 7)] if part.small else STAGES:
                if part.over():
                    return
                shape = (batch, channels, length, length)
                part.add({'shape': '×'.join(map(str, shape)), 'dtype': str(dtype).removeprefix('torch.'),
                          'format': 'NHWC' if layout == torch.channels_last else 'NCHW',
                          **stage(part, shape, dtype, layout, bandwidth)})  # fmt: skip


def stage(
    part: Part, shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, bandwidth: float
) -> dict[str, float]:
    """Milliseconds and ratios of S4ND's convolution and cuDNN's at one stage."""
    channels, length = shape[1], shape[2]
    like = torch.empty(shape, device=part.device, dtype=dtype)
    copies = 1 if part.small else max(1, min(32, BEYOND_CACHE // (like.numel() * like.element_size())))
    signals = [torch.randn_like(like).contiguous(memory_format=layout).requires_grad_() for _ in range(copies)]
    weight = torch.randn_like(like).contiguous(memory_format=layout)
    net = S4ND(channels, (length, length)).to(part.device)
    with torch.no_grad():
        taps, centers = net.operators([length, length], [1.0, 1.0])
    learned = [*(k.requires_grad_() for k in taps), net.D]
    conv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels).to(part.device, dtype, memory_format=layout)

    def ours(x: Tensor, method: str = 'auto') -> Tensor:
        return separable_conv(x, taps, centers, method, net.D.flatten())

    def run(function: Callable[[Tensor], Tensor], inputs: Sequence[Tensor] | None) -> Callable[[], object]:
        """Over all signals: the forward, or with `inputs` the gradients of those and of the signal too."""

        def once() -> None:
            for x in signals:
                with torch.set_grad_enabled(inputs is not None):
                    y = function(x)
                if inputs is not None:
                    torch.autograd.grad(y, [x, *inputs], weight)

        return captured(once, part.device)

    found = part.medians({
        'forward': run(ours, None), 'conv forward': run(conv, None),
        'both': run(ours, learned), 'conv both': run(conv, list(conv.parameters())),
    })  # fmt: skip
    with torch.no_grad():
        true = separable_conv(signals[0].double(), [k.double() for k in taps], centers, 'fft', net.D.double().flatten())
        error = float((ours(signals[0]).double() - true).norm() / true.norm())
    ms = {name: 1000 * seconds / copies for name, seconds in found.items()}
    moved = 2 * like.numel() * like.element_size() / bandwidth * 1000
    return {
        'forward ms': ms['forward'], '/ conv': ms['forward'] / ms['conv forward'],
        'with backward ms': ms['both'], '/ conv ': ms['both'] / ms['conv both'],
        'backward / conv': (ms['both'] - ms['forward']) / (ms['conv both'] - ms['conv forward']),
        'of copy speed': moved / ms['forward'], 'error': error,
    }  # fmt: skip


def copy_bandwidth(part: Part) -> float:
    """Bytes per second, read and written, of a large copy."""
    source = torch.randn(2**20 if part.small else 2**28, device=part.device)
    target = torch.empty_like(source)
    seconds = part.medians({'copy': lambda: target.copy_(source)})['copy']
    print(f'copy: {8 * source.numel() / seconds / 1e9:.0f} GB/s')
    return 8 * source.numel() / seconds


def backbone(part: Part) -> None:
    names = ('s4nd_isotropic_mini', 'conv2d_isotropic_mini') if part.small else ('s4nd_convnext_tiny', 'convnext_tiny')
    for compiled in (False, True):
        for layout in (torch.channels_last, torch.contiguous_format):
            for training in (True, False):
                if part.over() or (part.small and compiled):
                    return
                part.add({'step': 'training' if training else 'inference', 'compiled': compiled,
                          'format': 'NHWC' if layout == torch.channels_last else 'NCHW',
                          **pair(part, names, training, compiled, layout)})  # fmt: skip


def pair(
    part: Part, names: tuple[str, str], training: bool, compiled: bool, layout: torch.memory_format
) -> dict[str, float]:
    """Images per second and peak memory of ours and of timm's, bfloat16 under autocast."""
    batch, size = (2, 32) if part.small else (128, 224)
    x = torch.randn(batch, 3, size, size, device=part.device).contiguous(memory_format=layout)
    target = torch.arange(batch, device=part.device) % 10
    steps, memory = {}, {}
    for name in names:
        model = timm.create_model(name).to(part.device, memory_format=layout).train(training)
        run = torch.compile(model) if compiled else model
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=not part.small)

        def step(run: nn.Module = run, optimizer: torch.optim.Optimizer = optimizer) -> None:
            with torch.set_grad_enabled(training), torch.autocast(part.device, torch.bfloat16):
                y = run(x)
            if training:
                nn.functional.cross_entropy(y.float(), target).backward()
                optimizer.step()
                optimizer.zero_grad()

        steps[name] = step
        step()
        if not part.small:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
            memory[name] = torch.cuda.max_memory_allocated() - before
    found = part.medians(steps, 12)
    row = {'ours img/s': batch / found[names[0]], 'timm img/s': batch / found[names[1]]}
    row['ratio'] = row['ours img/s'] / row['timm img/s']
    row['memory ratio'] = memory[names[0]] / memory[names[1]] if memory else float('nan')
    return row


def tests(part: Part) -> None:
    files = ['tests/test_gpu.py'] if part.small else ['tests/test_gpu.py', 'tests/ops/test_fused.py']
    command = [sys.executable, '-m', 'pytest', '-v', '--no-header', '-p', 'no:cacheprovider', '--tb=short', *files]
    count = dict.fromkeys(('PASSED', 'FAILED', 'ERROR', 'SKIPPED'), 0)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        for line in run.stdout or ():
            outcome = next((word for word in count if f' {word}' in line and '::' in line), None)
            if outcome is None or outcome in ('FAILED', 'ERROR'):
                print(line, end='', flush=True)
            if outcome is not None:
                count[outcome] += 1
            if part.over():
                run.terminate()
    part.add({**count, 'exit': run.returncode})


def sashimi(part: Part) -> None:
    from audio.generation.captured import CapturedLoop
    from audio.generation.sampling import EagerLoop
    from audio.models.sashimi import SaShiMi

    args = {'d_model': 16, 'n_layers': 1, 'd_state': 16} if part.small else {}
    model = SaShiMi(8, **args).to(part.device)
    length = 256 if part.small else 16000
    codes = torch.randint(0, 256, (1, length), device=part.device)

    def train() -> None:
        logits = model(codes)
        nn.functional.cross_entropy(logits.flatten(0, 1).float(), codes.flatten()).backward()
        model.zero_grad()

    part.add(
        {'what': f'training step, {length} samples', 'seconds': part.medians({'t': train}, 5)['t'], 'samples/s': 0}
    )
    model.eval()
    for batch in (1, 2) if part.small else (1, 64, 1024):
        count = 2 * model.backbone.period
        for way, loop in {'plain': EagerLoop, 'captured': CapturedLoop}.items():
            if part.over():
                return
            sampler = loop(model, batch)
            first = torch.full((batch,), 128, device=part.device)
            uniforms = torch.rand(batch, count, dtype=torch.float64)
            sampler.sample(first, uniforms.numpy())
            found = part.medians({'t': lambda: sampler.sample(first, uniforms.numpy())}, 3)['t']  # noqa: B023
            part.add({'what': f'{way} loop, batch {batch}', 'seconds': found, 'samples/s': batch * count / found})


def longconv(part: Part) -> None:
    for length in (256,) if part.small else (4096, 16384, 65536, 262144):
        if part.over():
            return
        x = torch.randn(4, 64, length, device=part.device, requires_grad=True)
        taps = torch.randn(1, 64, length, device=part.device, requires_grad=True)

        def both(x: Tensor = x, taps: Tensor = taps) -> None:
            torch.autograd.grad(separable_conv(x, [taps], [0]).sum(), [x, taps])

        def forward(x: Tensor = x, taps: Tensor = taps) -> None:
            with torch.no_grad():
                separable_conv(x, [taps], [0])

        found = part.medians({'forward': forward, 'both': both})
        part.add({'shape': f'4×64×{length}', **{f'{name} ms': 1000 * seconds for name, seconds in found.items()}})


PARTS = {'layer': layer, 'backbone': backbone, 'tests': tests, 'sashimi': sashimi, 'longconv': longconv}


def main() -> None:
    chosen = options({'parts': ','.join(SECONDS), 'small': 'false', 'out': 'out/gpu', 'inside': ''})
    small, names = chosen['small'] == 'true', chosen['parts'].split(',')
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        sys.exit(f'unknown part {", ".join(unknown)}: expected some of {", ".join(PARTS)}')
    if not small and not torch.cuda.is_available():
        print('There is no GPU here: nothing was measured. small=true runs every part on the CPU, to see that it runs.')
        return
    if chosen['inside']:
        part = Part(chosen['inside'], small, chosen['out'])
        PARTS[part.name](part)
        return
    failed = []
    for name in names:
        print(f'\n{name}, up to {SECONDS[name]} s', flush=True)
        words = [f'inside={name}', f'small={chosen["small"]}', f'out={chosen["out"]}']
        try:
            done = subprocess.run([sys.executable, __file__, *words], timeout=None if small else SECONDS[name])
            outcome = f'exit code {done.returncode}' if done.returncode else ''
        except subprocess.TimeoutExpired:
            outcome = 'its time was over'
        if outcome:
            print(f'{name}: {outcome}', flush=True)
            failed.append(name)
    if small and failed:
        sys.exit(1)


if __name__ == '__main__':
    main()
