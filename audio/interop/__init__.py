"""Published checkpoints of audio models in ours; `s4nd.load_published` finds them through entry points."""

from audio.interop.diffwave import load_diffwave
from audio.interop.sashimi import load_sashimi

__all__ = ['load_diffwave', 'load_sashimi']
