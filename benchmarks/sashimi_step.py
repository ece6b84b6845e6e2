"""What does one training step of the published-size SaShiMi cost, by kernel, beside kernels made the published way?

    python benchmarks/sashimi_step.py [length=16000 kernels=s4d,s4 threads=2 rounds=3 published=true
                                       out=out/sashimi_step]

Batch 1, cross-entropy, forward and backward, float32: seconds (median of interleaved runs) and peak memory (what a
step adds, in a process of its own). `published` is the same model with its taps computed as public S4 code computes
them without its CUDA extension: S4D by the whole Vandermonde matrix (H, N/2, L), S4 by Cauchy sums (H, N/2, L/2 + 1)
over the roots of unity; and the convolution is one padded FFT. Its S4 taps are those of C (I - Āᴸ), which costs the
same.
"""

import math
from unittest import mock

import torch
from common import medians, options, peak_memory, save, setup, table
from torch import Tensor

import s4nd.ops.longconv
from audio.models.sashimi import SaShiMi
from s4nd.kernels import S4DKernel, S4Kernel
from s4nd.ops import expand_ssm


def vandermonde_taps(kernel: S4DKernel, length: int, step: float = 1.0) -> Tensor:
    """2 Re Σ C B̄ exp(dt A l), every power of every mode at once, complex64."""
    dt = kernel.log_dt.exp() * step
    A = expand_ssm(torch.complex(-kernel.log_A_real.exp(), -kernel.A_imag), kernel.d_model)
    B = expand_ssm(torch.view_as_complex(kernel.B), kernel.d_model)
    z = dt * A
    weights = torch.view_as_complex(kernel.C) * B * (z.exp() - 1) / A
    return 2 * torch.einsum('chn,hnl->chl', weights, (z[..., None] * torch.arange(length)).exp()).real


def cauchy_taps(kernel: S4Kernel, length: int, step: float = 1.0) -> Tensor:
    """The generating function of the bilinear system at the roots of unity by Cauchy sums, complex64, and its iFFT."""
    dt = kernel.log_dt.exp() * step  # (H, 1)
    A = expand_ssm(torch.complex(-kernel.log_A_real.exp(), -kernel.A_imag), kernel.d_model)  # (H, n)
    B, P = (expand_ssm(torch.view_as_complex(t), kernel.d_model) for t in (kernel.B, kernel.P[0]))
    C = torch.view_as_complex(kernel.C)[0]
    omega = torch.exp(-2j * math.pi * torch.arange(length // 2 + 1) / length)
    omega[length // 2] += 1e-6  # the pole at -1
    z = 2 * (1 - omega) / (1 + omega)
    cauchy = 1 / (z - (dt * A)[..., None])  # (H, n, L/2 + 1)
    mirror = 1 / (z - (dt * A).conj()[..., None])

    def sums(left: Tensor, right: Tensor) -> Tensor:
        v = dt * left * right
        return (v[..., None] * cauchy).sum(1) + (v.conj()[..., None] * mirror).sum(1)

    k00, k01, k10, k11 = sums(C, B), sums(C, P), sums(P.conj(), B), sums(P.conj(), P)
    spectrum = 2 / (1 + omega) * (k00 - k01 * k10 / (1 + k11))
    return torch.fft.irfft(spectrum, n=length)[None]


def plain_fft(x: Tensor, taps: Tensor, center: int) -> Tensor:
    length = x.shape[-1]
    product = torch.fft.rfft(x, n=2 * length) * torch.fft.rfft(taps, n=2 * length)
    return torch.fft.irfft(product, n=2 * length)[..., :length]


class Step:
    """One training step of a published-size model."""

    def __init__(self, kernel: str, length: int, published: bool) -> None:
        self.model, self.published = SaShiMi(kernel=kernel), published
        self.codes = torch.randint(0, 256, (1, length))

    def __call__(self) -> None:
        if not self.published:
            return self._run()
        with (
            mock.patch.object(S4DKernel, 'taps', vandermonde_taps),
            mock.patch.object(S4Kernel, 'taps', cauchy_taps),
            mock.patch.object(s4nd.ops.longconv, 'fft_conv', plain_fft),
        ):
            return self._run()

    def _run(self) -> None:
        self.model.zero_grad()
        logits = self.model(self.codes)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), self.codes.flatten()).backward()


def measure(kernel: str, length: int, rounds: int, published: bool) -> dict[str, object]:
    names = {'ours': False, 'published': True} if published else {'ours': False}
    seconds = medians({name: Step(kernel, length, old) for name, old in names.items()}, rounds)
    memory = {name: peak_memory(Step, kernel, length, old) for name, old in names.items()}
    row: dict[str, object] = {'kernel': kernel, 'ours s': seconds['ours'], 'ours GB': memory['ours']}
    if published:
        row |= {'published s': seconds['published'], 'published GB': memory['published']}
        row |= {
            'time ratio': seconds['published'] / seconds['ours'],
            'memory ratio': memory['published'] / memory['ours'],
        }
    return row


if __name__ == '__main__':
    defaults = {'length': '16000', 'kernels': 's4d,s4', 'threads': '2', 'rounds': '3', 'published': 'true'}
    chosen = options(defaults | {'out': 'out/sashimi_step'})
    measured = setup(chosen['threads'], 'cpu') + f', length {chosen["length"]}, batch 1'
    found = []
    for kernel in chosen['kernels'].split(','):
        found.append(measure(kernel, int(chosen['length']), int(chosen['rounds']), chosen['published'] == 'true'))
        print(table(found), flush=True)
    save(chosen['out'], 'sashimi_step', measured, found)
