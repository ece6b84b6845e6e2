"""Models under several threads at once."""

import threading
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def check_threads(
    model: nn.Module, inputs: Sequence[Tensor], true: Sequence[Tensor], *, calls: int, atol: float, rtol: float = 1e-5
) -> None:
    """Assert that four threads, `calls` calls each, get true[i] for inputs[i] in whatever order they come."""
    wrong: list[str] = []

    def run(offset: int) -> None:
        with torch.no_grad():
            for i in range(calls):
                j = (i + offset) % len(inputs)
                try:
                    if not torch.allclose(model(inputs[j]), true[j], atol=atol, rtol=rtol):
                        wrong.append(f'call {i}')
                except Exception as error:
                    wrong.append(repr(error))

    threads = [threading.Thread(target=run, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
