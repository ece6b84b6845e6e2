"""ListOps: the labels are the values of the lists, which have the sizes that are asked for."""

import statistics

import pytest
import torch

from s4nd.data import DataError
from s4nd.data.synthetic.listops import TOKENS, listops, tokens_of

WORDS = {number: text for text, number in TOKENS.items()}
FUNCTIONS = {'[MIN': min, '[MAX': max, '[MED': lambda v: int(statistics.median(v)), '[SM': lambda v: sum(v) % 10}


def evaluate(words: list[str]) -> tuple[int, int, int, int]:
    """The value of a list, its depth, and the fewest and the most arguments, by a stack."""
    stack: list[list] = [['root']]
    deepest, sizes = 0, []
    for word in words:
        if word == ']':
            name, *values = stack.pop()
            sizes.append(len(values))
            stack[-1].append(FUNCTIONS[name](values))
        elif word in FUNCTIONS:
            stack.append([word])
            deepest = max(deepest, len(stack) - 1)
        else:
            stack[-1].append(int(word))
    (_, value) = stack.pop()
    return value, deepest, min(sizes), max(sizes)


def test_statistics_of_the_lists() -> None:
    drawn = listops(300, 128, 0, shortest=20)
    assert drawn.inputs.dtype == torch.uint8 and drawn.lengths is not None
    found = []
    for inputs, label, length in zip(drawn.inputs, drawn.targets, drawn.lengths, strict=True):
        assert 20 <= length <= 128 and (inputs[:length] > 0).all() and not inputs[length:].any()
        found.append(evaluate([WORDS[token] for token in inputs[:length].tolist()]))
        assert found[-1][0] == label
    assert max(depth for _, depth, _, _ in found) <= 10 and statistics.mean(depth for _, depth, _, _ in found) > 2.5
    assert min(low for *_, low, _ in found) == 2 and max(high for *_, high in found) == 10
    assert torch.bincount(drawn.targets, minlength=10).min() > 300 * 0.03  # no value is rare
    operators = torch.bincount(drawn.inputs.flatten().long(), minlength=16)[11:15].float()
    assert operators.min() > 0.85 * operators.mean()  # all alike
    again, other = listops(20, 128, 0, shortest=20), listops(20, 128, 1, shortest=20)
    assert torch.equal(again.inputs, drawn.inputs[:20]) and not torch.equal(other.inputs, again.inputs)


def test_depth_and_arguments_are_kept_within_limits() -> None:
    drawn = listops(50, 64, 0, shortest=4, depth=2, arguments=3)
    found = [evaluate([WORDS[token] for token in row.tolist() if token]) for row in drawn.inputs]
    assert max(depth for _, depth, _, _ in found) == 2 and max(high for *_, high in found) == 3


def test_a_list_is_read_from_text() -> None:
    text = '( ( ( [MAX 4 ) ( ( ( [MIN 2 ) 3 ) ] ) ) ] )'
    assert [WORDS[token] for token in tokens_of(text)] == ['[MAX', '4', '[MIN', '2', '3', ']', ']']
    with pytest.raises(DataError, match=r"expected words of 0 1 .* got '\[AVG'"):
        tokens_of('[AVG 1 2 ]')


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match='got shortest 3 and length 64'):
        listops(1, 64, 0, shortest=3)
    with pytest.raises(ValueError, match='no list of 50 to 64 tokens within 1 levels of 3 arguments'):
        listops(1, 64, 0, shortest=50, depth=1, arguments=3)
