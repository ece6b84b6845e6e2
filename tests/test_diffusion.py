"""The diffusion process, its objective and its samplers, against closed forms."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from s4nd.diffusion import Denoiser, Diffusion
from tests.oracles import denoising_posterior

SHORT = Diffusion(steps=12, beta_min=0.01, beta_max=0.3)


def betas(diffusion: Diffusion) -> Tensor:
    steps = torch.arange(diffusion.steps, dtype=torch.float64) / max(1, diffusion.steps - 1)
    return diffusion.beta_min + (diffusion.beta_max - diffusion.beta_min) * steps


def knows(diffusion: Diffusion, signal: Tensor) -> Denoiser:
    """The denoiser that knows the one signal there is, and so reads the noise off exactly."""

    def denoise(x: Tensor, i: Tensor) -> Tensor:
        alpha_bar = diffusion.alpha_bar[i + 1].reshape(-1, *[1] * (x.dim() - 1))
        return (x - alpha_bar.sqrt() * signal) / (1 - alpha_bar).sqrt()

    return denoise


def test_the_default_is_the_published_schedule() -> None:
    alpha_bar = Diffusion().alpha_bar
    assert alpha_bar.shape == (201,) and alpha_bar.dtype == torch.float64
    expected = math.prod(1 - (1e-4 + (0.02 - 1e-4) * i / 199) for i in range(200))
    assert alpha_bar[0] == 1 and alpha_bar[1] == 1 - 1e-4
    assert float(alpha_bar[200]) == pytest.approx(expected, rel=1e-12)


def test_noising_at_once_equals_noising_step_by_step() -> None:
    # Mean and variance of x_t under q(x_t | x_{t-1}), carried along as numbers.
    gain, variance = 1.0, 0.0
    one = torch.ones(1, dtype=torch.float64)
    for t, beta in enumerate(betas(SHORT).tolist(), 1):
        gain, variance = gain * math.sqrt(1 - beta), variance * (1 - beta) + beta
        level = torch.tensor([t])
        assert float(SHORT.noised(one, level, 0 * one)) == pytest.approx(gain, abs=1e-12)
        assert float(SHORT.noised(0 * one, level, one)) == pytest.approx(math.sqrt(variance), abs=1e-12)


def test_each_row_has_its_own_level() -> None:
    x, noise = torch.randn(3, 2, 5), torch.randn(3, 2, 5)
    together = SHORT.noised(x, torch.tensor([0, 4, 12]), noise)
    assert torch.equal(together[0], x[0])
    for row, t in enumerate((0, 4, 12)):
        alone = SHORT.noised(x[row : row + 1], torch.tensor([t]), noise[row : row + 1])
        assert torch.equal(together[row], alone[0])


@pytest.mark.parametrize(('t', 's'), [(12, 11), (2, 1), (7, 6), (12, 4), (9, 1)])
def test_a_random_step_is_a_draw_from_the_posterior(t: int, s: int) -> None:
    torch.manual_seed(0)
    signal, x, fresh = torch.randn(3, 4, 6, dtype=torch.float64)
    predicted = knows(SHORT, signal)(x, torch.full((4,), t - 1))
    mean, variance = denoising_posterior(signal, x, betas(SHORT), t, s)
    got = SHORT.denoised(x, predicted, t, s, fresh)
    torch.testing.assert_close(got, mean + math.sqrt(variance) * fresh, atol=1e-12, rtol=0)


def test_a_deterministic_step_moves_along_the_same_noise() -> None:
    torch.manual_seed(0)
    signal, noise = torch.randn(2, 4, 6, dtype=torch.float64)
    x = SHORT.noised(signal, torch.full((4,), 9), noise)
    expected = SHORT.noised(signal, torch.full((4,), 3), noise)
    torch.testing.assert_close(SHORT.denoised(x, noise, 9, 3), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize('steps', [None, 1, 5, 12])
def test_who_knows_the_noise_recovers_the_signal(steps: int | None) -> None:
    torch.manual_seed(0)
    signal, noise = torch.randn(2, 3, 7, dtype=torch.float64)
    out = SHORT.sample(knows(SHORT, signal), noise, steps=steps, random=torch.Generator().manual_seed(0))
    torch.testing.assert_close(out, signal, atol=1e-11, rtol=0)


@pytest.mark.parametrize('steps', [None, 5])
def test_predicting_the_signal_is_predicting_the_noise(steps: int | None) -> None:
    # The same half-right prediction, told in both ways.
    torch.manual_seed(0)
    signal, noise = torch.randn(2, 3, 7, dtype=torch.float64)
    by_signal = dataclasses.replace(SHORT, predicts='signal')

    def guess(x: Tensor, t: Tensor) -> Tensor:
        return 0.5 * signal + 0.1 * x * t[:, None]

    def noise_of(x: Tensor, i: Tensor) -> Tensor:
        alpha_bar = SHORT.alpha_bar[i + 1][:, None]
        return (x - alpha_bar.sqrt() * guess(x, i)) / (1 - alpha_bar).sqrt()

    draws = [
        diffusion.sample(denoise, noise, steps=steps, random=torch.Generator().manual_seed(0))
        for diffusion, denoise in ((by_signal, guess), (SHORT, noise_of))
    ]
    torch.testing.assert_close(*draws, atol=1e-10, rtol=1e-10)
    x, random = torch.randn(4, 50), torch.Generator().manual_seed(0)
    assert by_signal.loss(lambda _x, t: x + 0.5, x, random).item() == pytest.approx(0.25, rel=1e-5)


def test_a_loss_where_it_is_asked_for() -> None:
    x, where = torch.randn(4, 50), torch.arange(50).expand(4, 50) % 3 == 0
    whole, part = (
        SHORT.loss(lambda x, t: torch.where(where, 0, 7) + 0 * x, x, torch.Generator().manual_seed(0), chosen)
        for chosen in (None, where)
    )
    assert part.item() == pytest.approx(1, abs=0.4) and whole.item() > 20
    part = SHORT.loss(lambda x, t: torch.where(where, x, 7), x, torch.Generator().manual_seed(0), where)
    random = torch.Generator().manual_seed(0)
    t = torch.randint(1, 13, (4,), generator=random)
    noise = torch.randn(4, 50, generator=random)
    assert part.item() == pytest.approx((SHORT.noised(x, t, noise) - noise)[where].square().mean().item(), rel=1e-5)


def test_a_row_with_a_generator_of_its_own_draws_the_same_in_any_batch() -> None:
    def draw(rows: int) -> Tensor:
        generators = [torch.Generator().manual_seed(row) for row in range(rows)]
        return SHORT.sample(lambda x, t: 0.1 * x, torch.ones(rows, 4), random=generators)

    assert torch.equal(draw(2), draw(3)[:2]) and not torch.equal(*draw(2))


def test_the_full_sampler_reproduces_a_distribution() -> None:
    # For x_0 ~ N(.5, .2²) the best denoiser is known: ε̂ = √(1 - ᾱ) (x - √ᾱ μ) / (ᾱ σ² + 1 - ᾱ).
    mean, deviation = 0.5, 0.2
    diffusion = Diffusion(200, 1e-4, 0.1)  # ends in pure noise, so that the start is right as well

    def denoise(x: Tensor, i: Tensor) -> Tensor:
        a = diffusion.alpha_bar[i + 1][:, None]
        return (1 - a).sqrt() * (x - a.sqrt() * mean) / (a * deviation**2 + 1 - a)

    random = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 20000, generator=random, dtype=torch.float64)
    for steps, tolerance in ((None, 0.02), (10, 0.06)):
        out = diffusion.sample(denoise, noise, steps=steps, random=random)
        assert float(out.mean()) == pytest.approx(mean, abs=tolerance)
        assert float(out.std()) == pytest.approx(deviation, abs=tolerance)


def test_levels() -> None:
    assert SHORT.levels() == list(range(12, 0, -1))
    assert SHORT.levels(1) == [12]
    assert SHORT.levels(3) == [12, 6, 2]
    assert Diffusion().levels(6) == [200, 139, 89, 50, 23, 6]
    for steps in range(1, 13):
        levels = SHORT.levels(steps)
        assert len(levels) == steps and levels[0] == 12 and levels == sorted(set(levels), reverse=True)
    for steps in (0, 13):
        with pytest.raises(ValueError, match=f'from 1 to 12, got {steps}'):
            SHORT.levels(steps)


def test_the_sampler_visits_its_levels_and_reports_each() -> None:
    seen, done = [], []

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t.tolist())
        return 0 * x

    SHORT.sample(denoise, torch.zeros(2, 3), steps=4, progress=done.append)
    assert seen == [[11, 11], [6, 6], [2, 2], [0, 0]]  # indices: level - 1
    assert done == [1, 2, 3, 4]


def test_the_loss_is_the_error_of_the_noise() -> None:
    x = torch.randn(64, 500)

    def zero(x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == (64,) and t.min() >= 0 and t.max() <= 11 and len(t.unique()) > 8
        return torch.zeros_like(x)

    random = torch.Generator().manual_seed(0)
    assert SHORT.loss(zero, x, random).item() == pytest.approx(1, abs=0.03)  # the variance of the noise
    assert SHORT.loss(knows(SHORT, x), x, random).item() < 1e-6
    first, again = (SHORT.loss(zero, x, torch.Generator().manual_seed(3)).item() for _ in range(2))
    assert first == again


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'steps': 0}, 'steps must be at least 1, got 0'),
        ({'beta_min': 0.0}, 'got 0.0 and 0.02'),
        ({'beta_min': 0.5}, 'got 0.5 and 0.02'),
        ({'beta_max': 1.0}, 'got 0.0001 and 1.0'),
        ({'predicts': 'velocity'}, "predicts must be one of noise, signal, got 'velocity'"),
    ],
)
def test_bad_schedules(options: dict[str, float | str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Diffusion(**options)
