"""Generating audio from a trained model: options, samplers, and the compiled loop."""

from audio.generation.generator import Generator, generate, load_generator, stream
from audio.generation.sampling import Sampling

__all__ = ['Generator', 'Sampling', 'generate', 'load_generator', 'stream']
