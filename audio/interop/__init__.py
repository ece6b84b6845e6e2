"""Published checkpoints of audio models in ours; `s4nd.load_published` finds them through entry points."""

from .diffwave import load_diffwave
from .sashimi import load_sashimi

__all__ = ['load_diffwave', 'load_sashimi']
