"""Where a clip is sampled: so many pixels and frames of the same seconds."""

from __future__ import annotations

from dataclasses import dataclass

from s4nd.resolution import Size

__all__ = ['ClipGrid', 'rate_name', 'rate_of']


@dataclass(frozen=True)
class ClipGrid:
    """Clips of `seconds`, as frames of `size` (height, width) at `frame_rate` a second."""

    size: Size
    frame_rate: float
    seconds: float

    @property
    def frames(self) -> int:
        return round(self.frame_rate * self.seconds)

    @property
    def pixels(self) -> int:
        """Of all frames of a clip."""
        return self.frames * self.size[0] * self.size[1]

    def times(self, duration: float | None = None, place: float = 0.5) -> list[float]:
        """Seconds at which the frames look at the scene: the middles of their times.

        The clip begins at 0, or where a video has a `duration`, at the share `place` of the room that is left in it.
        """
        start = 0.0 if duration is None else place * max(0.0, duration - self.seconds)
        return [start + (frame + 0.5) / self.frame_rate for frame in range(self.frames)]


def rate_name(frame_rate: float) -> str:
    """'8fps', '7.5fps': how a frame rate stands in the names of metrics."""
    return f'{frame_rate:g}fps'


def rate_of(name: str) -> float:
    """The frame rate that `rate_name` wrote."""
    return float(name.removesuffix('fps'))
