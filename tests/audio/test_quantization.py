"""Quantizers: exact properties, at every bit depth."""

import math

import pytest
import torch

from audio.quantization import CONVENTIONS, LAWS, Quantizer

DEPTHS = range(1, 17)


@pytest.mark.parametrize('convention', ['standard', 'torchaudio'])
@pytest.mark.parametrize('bits', DEPTHS)
@pytest.mark.parametrize('law', LAWS)
def test_every_code_survives_a_round_trip(law: str, bits: int, convention: str) -> None:
    q = Quantizer(law, bits, convention)
    codes = torch.arange(q.n_codes)
    assert torch.equal(q.encode(q.decode(codes)), codes)
    assert q.decode(codes).diff().min() > 0


@pytest.mark.parametrize('convention', CONVENTIONS)
@pytest.mark.parametrize('bits', DEPTHS)
@pytest.mark.parametrize('law', LAWS)
def test_silence_is_the_zero_code(law: str, bits: int, convention: str) -> None:
    q = Quantizer(law, bits, convention)
    assert q.encode(torch.zeros(3)).tolist() == [2 ** (bits - 1)] * 3
    heard = q.decode(torch.tensor([q.zero_code])).item()
    if convention == 'torchaudio':
        assert 0 < heard <= (1 + 1e-6) / (2**bits - 1)
    else:
        assert heard == 0.0


@pytest.mark.parametrize('convention', CONVENTIONS)
@pytest.mark.parametrize('law', LAWS)
def test_codes_stay_in_range_and_clip(law: str, convention: str) -> None:
    q = Quantizer(law, 8, convention)
    assert q.encode(torch.tensor([-3.0, -1.0, 1.0, 3.0])).tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize('convention', ['standard', 'torchaudio'])
@pytest.mark.parametrize('bits', [2, 4, 8, 12])
@pytest.mark.parametrize('law', LAWS)
def test_error_is_at_most_half_a_level(law: str, bits: int, convention: str) -> None:
    q = Quantizer(law, bits, convention)
    x = torch.linspace(-1, 1, 20001)
    compressed = q._compress(x.double())
    error = (q._compress(q.decode(q.encode(x)).double()) - compressed).abs().max().item()
    assert error <= 1 / (2**bits - 1) * (1 + 1e-3)


def test_mu_law_round_trip_error_of_8_bits() -> None:
    x = torch.linspace(-1, 1, 200_001)
    error = Quantizer('mu-law').decode(Quantizer('mu-law').encode(x)) - x
    assert error.abs().max() < 0.0217
    assert abs(error.mean()) < 1e-4


def test_mu_law_curve() -> None:
    q = Quantizer('mu-law')
    code = q.encode(torch.tensor(0.1))
    compressed = math.log1p(255 * 0.1) / math.log1p(255)
    assert code.item() == 128 + round(127.5 * compressed - 1e-9)


@pytest.mark.parametrize('law', LAWS)
def test_reference_convention(law: str) -> None:
    q, x = Quantizer(law, 8, 'reference'), torch.linspace(-1, 1, 10_001, dtype=torch.float64)
    c = x if law == 'linear' else x.sign() * torch.log1p(255 * x.abs()) / math.log(256)
    assert torch.equal(q.encode(x), ((c + 1) / 2 * 255.99 + 0.005).floor().long())
    codes = torch.arange(256)
    centers = codes / 128 - 1
    expected = centers if law == 'linear' else centers.sign() * ((256 ** centers.abs()) - 1) / 255
    torch.testing.assert_close(q.decode(codes), expected.float())
    # The published faults are part of it: about half of the codes move in a round trip.
    kept = (q.encode(q.decode(codes)) == codes).sum().item()
    assert 120 <= kept <= 135


@pytest.mark.parametrize('law', LAWS)
def test_one_sample_does_not_change_another(law: str) -> None:
    q = Quantizer(law)
    quiet = torch.linspace(-0.1, 0.2, 50)
    loud = torch.cat([quiet, torch.tensor([0.99, -0.99])])
    assert torch.equal(q.encode(loud)[:50], q.encode(quiet))


@pytest.mark.parametrize('bits', [4, 8, 12])
def test_torchaudio_convention(bits: int) -> None:
    functional = pytest.importorskip('torchaudio.functional')
    q, x = Quantizer('mu-law', bits, 'torchaudio'), torch.linspace(-1, 1, 10_001)
    codes = functional.mu_law_encoding(x, q.n_codes)
    moved = q.encode(x) != codes
    assert moved.float().mean() < 1e-3 and (q.encode(x) - codes).abs().max() <= 1  # samples half-way, up to rounding
    torch.testing.assert_close(q.decode(codes), functional.mu_law_decoding(codes, q.n_codes), atol=2e-6, rtol=0)


def test_json_round_trip() -> None:
    q = Quantizer('linear', 10, 'reference')
    assert Quantizer.from_json(q.to_json()) == q


@pytest.mark.parametrize('text', ['nonsense', '{"name": "linear", "depth": 8}', '[1]'])
def test_bad_json(text: str) -> None:
    with pytest.raises(ValueError, match='not a quantizer description'):
        Quantizer.from_json(text)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('alaw', 8), "'alaw'.*mu-law, linear"),
        (('linear', 0), 'from 1 to 16, got 0'),
        (('linear', 17), 'from 1 to 16, got 17'),
        (('linear', 8.0), 'from 1 to 16, got 8.0'),
        (('linear', 8, 'torch'), "'torch'.*standard, torchaudio, reference"),
    ],
)
def test_bad_arguments(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Quantizer(*arguments)


def test_codes_must_be_integers() -> None:
    with pytest.raises(ValueError, match='float32'):
        Quantizer().decode(torch.zeros(3))
