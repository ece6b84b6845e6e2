"""A page to try the models that ship.

    pip install gradio
    python examples/app/app.py          # prints the address to open

Images: drop a picture and see what the model names at each size. Sound: choose a model, a class or a beginning, and
listen.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from s4nd import pictures
from s4nd.audio import Generator, generate, load_generator
from s4nd.audio.io import resample
from s4nd.data.synthetic.drawings import draw
from s4nd.models import class_names, is_ours, load_checkpoint, probabilities
from s4nd.weights import shipped_args, shipped_names

SIZES = (8, 12, 16, 24, 32, 48, 64)


def image_models() -> list[str]:
    """The names of the image classifiers that ship."""
    found = [name.partition('.') for name in shipped_names() if is_ours(name.partition('.')[0])]
    return [''.join(parts) for parts in found if not shipped_args(parts[0], True, parts[2]).get('num_frames')]


def sound_models() -> list[str]:
    """The names of the generators that ship."""
    return [name for name in shipped_names() if name.startswith(('sashimi.', 'diffusion_sashimi.'))]


@cache
def classifier(name: str) -> tuple[torch.nn.Module, list[str]]:
    """A model and its classes."""
    return load_checkpoint(name), class_names(name)


def sweep(name: str, picture: Image.Image) -> tuple[list[Image.Image], Figure]:
    """What the model sees at each size, and the probabilities of the most probable classes against the size."""
    model, classes = classifier(name)
    seen, rows = [], []
    square = min(picture.size)
    left, top = (picture.width - square) // 2, (picture.height - square) // 2
    picture = picture.convert('RGB').crop((left, top, left + square, top + square))
    for size in SIZES:
        small = picture.resize((size, size), Image.Resampling.BOX if size < square else Image.Resampling.BICUBIC)
        rows.append(probabilities(model, small))
        seen.append(small.resize((256, 256), Image.Resampling.NEAREST))
    percent = 100 * torch.stack(rows)
    with pictures.style():
        figure = plot(percent, classes)
    return seen, figure


def plot(percent: torch.Tensor, classes: list[str]) -> Figure:
    """The probabilities (sizes, classes) of the four likeliest classes."""
    figure = pictures.figure(4)
    axes = figure.subplots()
    for label in percent.max(0).values.argsort(descending=True)[:4].tolist():
        axes.plot(SIZES, percent[:, label], marker='o', label=classes[label])
    axes.set_xscale('log', base=2)
    axes.set_xticks(SIZES, [str(size) for size in SIZES])
    axes.minorticks_off()
    axes.set(xlabel='pixels per side', ylabel='probability (%)', ylim=(0, 102))
    axes.grid()
    pictures.legend(figure, [axes])
    return figure


@cache
def generator(name: str) -> Generator:
    return load_generator(name)


def listen(
    name: str, label: str | None, prompt: tuple[int, np.ndarray] | None, seconds: float, temperature: float, seed: float
) -> tuple[int, np.ndarray]:
    """Generate -> (sample rate, waveform): from silence, or going on from `prompt`, a rate and samples."""
    source = generator(name)
    options: dict[str, Any] = {'seconds': seconds, 'seed': int(seed)}
    if source.quantizer is not None:
        options['temperature'] = temperature
        if prompt is not None:
            options['prompt'] = as_wave(*prompt, source.sample_rate)
    if source.classes:
        options['label'] = label or source.classes[0]
    return source.sample_rate, generate(source, **options)[0].numpy()


def as_wave(rate: int, samples: np.ndarray, sample_rate: int) -> torch.Tensor:
    """Samples (T,) or (T, channels), of integers or floats, at `rate` -> a mono waveform (T',) at `sample_rate`."""
    scale = float(np.iinfo(samples.dtype).max) if np.issubdtype(samples.dtype, np.integer) else 1.0
    wave = torch.from_numpy(samples.astype(np.float32) / scale)
    wave = wave.mean(-1) if wave.dim() == 2 else wave
    return wave if rate == sample_rate else resample(wave[None], rate, sample_rate)[0]


def build() -> Any:
    """The page."""
    import gradio as gr

    with gr.Blocks(title='s4nd') as page:
        gr.Markdown('# s4nd\nModels that ship with the package, at any size.')
        with gr.Tab('Images'):
            model = gr.Dropdown(image_models(), value=image_models()[0], label='Model')
            picture = gr.Image(value=draw('automobile'), type='pil', label='Picture: the middle square is used')
            button = gr.Button('Sweep the size', variant='primary')
            seen = gr.Gallery(label=f'At {", ".join(map(str, SIZES))} pixels per side', columns=len(SIZES))
            plot = gr.Plot(label='Probability against size')
            button.click(sweep, [model, picture], [seen, plot])
        with gr.Tab('Sound'):
            sound = gr.Dropdown(sound_models(), value=sound_models()[0], label='Model')
            label = gr.Dropdown(generator(sound_models()[0]).classes, label='Class, where the model has classes')
            sound.change(lambda name: gr.Dropdown(choices=list(generator(name).classes)), sound, label)
            prompt = gr.Audio(label='A beginning to go on from (optional)')
            seconds = gr.Slider(0.2, 10, value=2, label='Seconds')
            temperature = gr.Slider(0.5, 1.2, value=0.9, label='Temperature')
            seed = gr.Number(0, precision=0, label='Seed')
            play = gr.Button('Generate', variant='primary')
            play.click(listen, [sound, label, prompt, seconds, temperature, seed], gr.Audio(label='Generated'))
    return page


if __name__ == '__main__':
    build().launch()
