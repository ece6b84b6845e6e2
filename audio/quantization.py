"""Quantizers: waveform in [-1, 1] <-> integer codes in [0, 2**bits).

Two laws (`mu-law`, with mu = 2**bits - 1, and `linear`) and three conventions:

* `standard` (default): round to the nearest of evenly spaced levels (in the companded domain) with one level exactly at
  zero. Silence is `zero_code` = 2**(bits - 1) and that code decodes to exactly 0.
* `torchaudio`: what torchaudio's mu_law_encoding computes, `floor((c + 1)/2 * (n - 1) + .5)` back through
  `2 code/(n - 1) - 1`. The levels are symmetric about zero, so that silence decodes to half a level above it.
* `reference`: what the published SaShiMi code computes, `floor((c + 1)/2 * (n - .01) + .005)` back through
  `2 code/n - 1`. It biases samples downwards and moves about half of the codes in a round trip; it is here to read
  checkpoints and figures made with it.

Exact round trip, for `standard` and `torchaudio` at 1 to 16 bits: encode(decode(k)) = k for every code k, and a sample
comes back at most half a level away (in the companded domain) over the whole range.

Neither looks at more than one sample. The published pipeline also rescales each clip by its own extremes: that is the
`min-max` normalization of `audio.data.datasets`, off by default.
"""

import json
import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

LAWS = ('mu-law', 'linear')
CONVENTIONS = ('standard', 'torchaudio', 'reference')


@dataclass(frozen=True)
class Quantizer:
    """A law, a bit depth (1 to 16) and a convention; immutable, and small enough to live in a checkpoint's metadata."""

    name: str = 'mu-law'
    bits: int = 8
    convention: str = 'standard'

    def __post_init__(self) -> None:
        if self.name not in LAWS:
            raise ValueError(f'unknown quantizer {self.name!r}: expected one of {", ".join(LAWS)}')
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 1 <= self.bits <= 16:
            raise ValueError(f'bits must be a whole number from 1 to 16, got {self.bits!r}')
        if self.convention not in CONVENTIONS:
            raise ValueError(f'unknown convention {self.convention!r}: expected one of {", ".join(CONVENTIONS)}')

    @property
    def n_codes(self) -> int:
        return 2**self.bits

    @property
    def zero_code(self) -> int:
        """The code of silence."""
        return 2 ** (self.bits - 1)

    def encode(self, waveform: Tensor) -> Tensor:
        """Codes (int64) of samples of any shape; samples beyond [-1, 1] are clipped."""
        x = waveform.to(torch.promote_types(waveform.dtype, torch.float32)).clamp(-1, 1)
        c = self._compress(x)
        n = self.n_codes
        if self.convention == 'reference':
            return torch.floor((c + 1) / 2 * (n - 0.01) + 0.005).long()
        if self.convention == 'torchaudio':
            return torch.floor((c + 1) / 2 * (n - 1) + 0.5).long()
        # Half-way values go down: +1 then lands on the highest code and -1 on the lowest, without clamping either.
        return torch.ceil(c * ((n - 1) / 2) - 0.5).long() + self.zero_code

    def decode(self, codes: Tensor) -> Tensor:
        """Samples (float32) of codes of any shape. Raises ValueError for a floating-point tensor."""
        if codes.is_floating_point():
            raise ValueError(f'codes must be integers, got {codes.dtype}')
        center = (self.n_codes - 1) / 2 if self.convention == 'torchaudio' else self.zero_code
        levels = self.n_codes if self.convention == 'reference' else self.n_codes - 1
        return self._expand(((codes.to(torch.float32) - center) / (levels / 2)).clamp(-1, 1))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> 'Quantizer':
        """Inverse of `to_json`. Raises ValueError where the text is not one of ours."""
        try:
            return cls(**json.loads(text))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f'not a quantizer description: {text!r} ({error})') from error

    def _compress(self, x: Tensor) -> Tensor:
        if self.name == 'linear':
            return x
        mu = self.n_codes - 1
        return x.sign() * torch.log1p(mu * x.abs()) / math.log1p(mu)

    def _expand(self, c: Tensor) -> Tensor:
        if self.name == 'linear':
            return c
        mu = self.n_codes - 1
        return c.sign() * torch.expm1(c.abs() * math.log1p(mu)) / mu
