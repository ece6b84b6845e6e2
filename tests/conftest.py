"""One thread: the tensors of the tests are small, and more threads than free cores make every operation wait.

Where there is no GPU, kernels written in Triton run in its interpreter, which is chosen before Triton is imported.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault('TRITON_INTERPRET', '1')

torch.set_num_threads(1)
