"""One thread: the tensors of the tests are small, and more threads than free cores make every operation wait."""

import torch

torch.set_num_threads(1)
