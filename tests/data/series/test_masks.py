"""Masks hide what they say, wherever it may lie."""

import pytest
import torch

from s4nd.data.series.masks import blackout, future, parse_mask, random_missing


def test_random_missing_takes_a_share_of_every_channel() -> None:
    random = torch.Generator().manual_seed(0)
    mask = random_missing((50, 3, 20), random, share=0.3)
    assert mask.dtype == torch.bool and (mask.sum(-1) == 14).all()
    assert (mask.float().mean((0, 1)) - 0.7).abs().max() < 0.15  # any place alike
    assert not torch.equal(mask[:, 0], mask[:, 1])
    assert torch.equal(mask, random_missing((50, 3, 20), torch.Generator().manual_seed(0), share=0.3))
    for share, observed in ((0.001, 19), (0.999, 1)):
        assert (random_missing((2, 3, 20), random, share=share).sum(-1) == observed).all()


def test_a_blackout_takes_all_channels_for_a_stretch() -> None:
    mask = blackout((200, 3, 20), torch.Generator().manual_seed(0), length=4)
    assert torch.equal(mask[:, :1].expand_as(mask), mask)
    starts = set()
    for row in mask[:, 0]:
        missing = (~row).nonzero()[:, 0].tolist()
        assert missing == list(range(missing[0], missing[0] + 4))
        starts.add(missing[0])
    assert starts == set(range(17))


def test_a_forecast_takes_the_end() -> None:
    mask = future((2, 3, 20), length=5)
    assert mask[..., :15].all() and not mask[..., 15:].any()


@pytest.mark.parametrize(
    ('text', 'missing'),
    [('random:0.25', [5, 5]), ('random:.5', [10, 10]), ('gap:4', [4, 4]), ('mnr:4', [4, 4]), ('forecast:3', [3, 3])],
)
def test_masks_are_read_from_text(text: str, missing: list[int]) -> None:
    mask = parse_mask(text)((1, 2, 20), torch.Generator().manual_seed(0))
    assert (~mask[0]).sum(-1).tolist() == missing


@pytest.mark.parametrize('text', ['random:1', 'random:0.0', 'gap:0', 'gap:1.5', 'block:3', 'gap', '', 'forecast:-1'])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=rf"'forecast:<samples>', got '{text}'"):
        parse_mask(text)


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: random_missing((1, 1, 5), share=1.0), 'share must lie between 0 and 1, got 1.0'),
        (lambda: random_missing((1, 1, 1)), r'got \(1, 1, 1\) and 1'),
        (lambda: blackout((1, 1, 5), length=5), r'got \(1, 1, 5\) and 5'),
        (lambda: future((1, 5), length=2), r'a shape \(batch, channels, length\)'),
        (lambda: future((1, 1, 5), length=0), r'got \(1, 1, 5\) and 0'),
    ],
)
def test_bad_input(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
