"""Frames out of video files and folders: the right ones, by time."""

import os
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from s4nd.data import ClipError, ClipGrid, read_clip
from s4nd.data.clips.files import has_decoder


def frame(number: int, size: tuple[int, int] = (32, 48)) -> np.ndarray:
    """Gray as the number says, told apart from its neighbors after any coding."""
    return np.full((*size, 3), 8 * number + 4, np.uint8)


def numbers(clip: torch.Tensor) -> list[int]:
    return [round((float(picture.float().mean()) - 4) / 8) for picture in clip]


def write_video(path: Path, count: int, rate: int = 10, codec: str = 'mpeg4', size: tuple[int, int] = (32, 48)) -> Path:
    av = pytest.importorskip('av')
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt, stream.gop_size = 'yuv420p', 6
        for number in range(count):
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame(number, size), format='rgb24')):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def write_frames(folder: Path, count: int, size: tuple[int, int] = (32, 48)) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(frame(number, size)).save(folder / f'frame_{number + 1}.png')
    return folder


def grid(frame_rate: float, seconds: float) -> ClipGrid:
    return ClipGrid((8, 8), frame_rate, seconds)


@pytest.fixture(scope='module')
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same thirty frames, ten a second, however they are stored."""
    root = tmp_path_factory.mktemp('clips')
    stored = {'frames': write_frames(root / 'frames', 30)}
    if has_decoder():
        for name, codec in (
            ('mpeg4.avi', 'mpeg4'),
            ('mpeg4.mp4', 'mpeg4'),
            ('h264.mp4', 'libx264'),
            ('h264.mkv', 'libx264'),
        ):
            stored[name] = write_video(root / name, 30, codec=codec)
    return stored


@pytest.mark.parametrize('kind', ['frames', 'mpeg4.avi', 'mpeg4.mp4', 'h264.mp4', 'h264.mkv'])
@pytest.mark.parametrize(
    ('frame_rate', 'seconds', 'place', 'expected'),
    [
        (10, 0.5, 0.0, [0, 1, 2, 3, 4]),
        (10, 0.5, 1.0, [25, 26, 27, 28, 29]),
        (10, 1.0, 0.5, [10, 11, 12, 13, 14, 15, 16, 17, 18, 19]),
        (20, 0.5, 0.0, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]),  # a frame is shown until the next begins
        (2, 3.0, 0.5, [2, 7, 12, 17, 22, 27]),  # middles of half seconds
        (3, 3.0, 0.5, [1, 5, 8, 11, 15, 18, 21, 25, 28]),
        (10, 4.0, 0.5, [*range(30), *[29] * 10]),  # a second short: the last frame is held
    ],
)
def test_frames_are_taken_by_time(
    clips: dict[str, Path], kind: str, frame_rate: float, seconds: float, place: float, expected: list[int]
) -> None:
    if kind not in clips:
        pytest.skip('PyAV is not installed')
    shown, duration = read_clip(clips[kind], grid(frame_rate, seconds), place, stored_rate=10)
    assert shown.shape == (len(expected), 3, 32, 48) and shown.dtype == torch.uint8
    assert numbers(shown) == expected and duration == pytest.approx(3.0, abs=0.02)


def test_a_late_clip_is_read_from_the_key_frame_before_it(
    clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    av = pytest.importorskip('av')
    from s4nd.data.clips import files

    decoded = []

    class Counting:
        def __init__(self, container: object) -> None:
            self.seek, self.format, self.container = container.seek, container.format, container

        def decode(self, stream: object):
            for picture in self.container.decode(stream):
                decoded.append(picture.pts)
                yield picture

    shown = files._shown
    monkeypatch.setattr(files, '_shown', lambda container, *rest: shown(Counting(container), *rest))
    for kind in ('mpeg4.avi', 'h264.mp4'):
        decoded.clear()
        assert numbers(read_clip(clips[kind], grid(10, 0.3), 1.0)[0]) == [27, 28, 29]
        assert 3 <= len(decoded) <= 9, av.__version__  # key frames are six apart


def test_a_video_that_does_not_begin_at_zero(tmp_path: Path) -> None:
    """Times count from the first frame: the same video with all its stamps 5 s later."""
    av = pytest.importorskip('av')
    plain, later = write_video(tmp_path / 'plain.mkv', 20), tmp_path / 'later.mkv'
    with av.open(str(plain)) as source, av.open(str(later), 'w') as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                late = int(5 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts + late, packet.dts + late, stream
                target.mux(packet)
    assert numbers(read_clip(later, grid(10, 0.4), 0.0)[0]) == [0, 1, 2, 3]


def test_frames_of_a_folder_follow_their_numbers_not_their_letters(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / 'clip', 12)  # frame_1 … frame_12
    (folder / 'notes.txt').write_text('not a frame')
    assert numbers(read_clip(folder, grid(4, 3.0), stored_rate=4)[0]) == list(range(12))


def test_one_frame_is_a_clip(tmp_path: Path) -> None:
    shown, duration = read_clip(write_frames(tmp_path / 'one', 1), grid(4, 1.0), stored_rate=10)
    assert numbers(shown) == [0] * 4 and duration == pytest.approx(0.1)
    if has_decoder():
        assert numbers(read_clip(write_video(tmp_path / 'one.avi', 1), grid(4, 1.0))[0]) == [0] * 4


def test_clips_that_cannot_be_used(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / 'mixed', 4)
    Image.fromarray(frame(2, (16, 48))).save(folder / 'frame_3.png')
    with pytest.raises(ClipError, match=r'expected frames of one size, found 16×48, 32×48'):
        read_clip(folder, grid(4, 1.0), stored_rate=4)
    (folder / 'frame_3.png').write_bytes(b'no image')
    with pytest.raises(ClipError, match=r'frame_3\.png cannot be read'):
        read_clip(folder, grid(4, 1.0), stored_rate=4)
    assert (
        len(read_clip(folder, grid(4, 0.5), 0.0, stored_rate=4)[0]) == 2
    )  # a frame that is not asked for does no harm
    with pytest.raises(ClipError, match='a folder of frames needs their rate'):
        read_clip(folder, grid(4, 1.0))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ClipError, match='a folder without image files'):
        read_clip(tmp_path / 'empty', grid(4, 1.0), stored_rate=4)


def test_video_files_that_cannot_be_used(tmp_path: Path) -> None:
    whole = write_video(tmp_path / 'whole.mp4', 30).read_bytes()
    for name, content in (('empty.mp4', b''), ('text.avi', b'no video' * 100), ('cut.mp4', whole[: len(whole) // 2])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ClipError, match='cannot be decoded'):
            read_clip(tmp_path / name, grid(4, 1.0))
    with pytest.raises(ClipError, match='no such file'):
        read_clip(tmp_path / 'nowhere.mp4', grid(4, 1.0))
    os.mkfifo(tmp_path / 'pipe.mp4')
    with pytest.raises(ClipError, match='neither a file nor a folder'):
        read_clip(tmp_path / 'pipe.mp4', grid(4, 1.0))


def test_of_a_file_cut_short_what_is_there_is_shown(tmp_path: Path) -> None:
    # A Matroska file says how long it was.
    content = write_video(tmp_path / 'whole.mkv', 30).read_bytes()
    (tmp_path / 'cut.mkv').write_bytes(content[: len(content) // 2])
    clip, duration = read_clip(tmp_path / 'cut.mkv', grid(10, 0.3), 1.0)
    last = round(10 * duration) - 1
    assert last < 20 and numbers(clip) == [last - 2, last - 1, last]


@pytest.mark.parametrize('suffix', ['.ts', '.mpg'])
@pytest.mark.parametrize('begin', [0, 50])
def test_containers_without_an_index(tmp_path: Path, suffix: str, begin: int) -> None:
    path = coded(tmp_path / f'a{suffix}', begin=begin, format='mpegts')
    assert numbers(read_clip(path, grid(10, 0.3), 1.0)[0]) == [27, 28, 29]


@pytest.mark.parametrize(
    'text',
    [
        "ffconcat version 1.0\nfile 'secret.mp4'\n",
        '#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nsecret.mp4\n#EXT-X-ENDLIST\n',
        '#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n',
        'v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n',
    ],
)
def test_no_list_of_other_files_or_addresses_is_played(tmp_path: Path, text: str) -> None:
    coded(tmp_path / 'secret.mp4')
    (tmp_path / 'a.mp4').write_text(text)
    with pytest.raises(ClipError, match='cannot be decoded'):
        read_clip(tmp_path / 'a.mp4', grid(4, 1.0))


@pytest.mark.parametrize('name', ['pipe:0.mp4', 'concat:a|b.mp4', 'http:a.mp4', 'a%03d.mp4'])
def test_no_name_is_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    coded(tmp_path / 'plain.mp4').rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert numbers(read_clip(Path(name), grid(10, 3))[0]) == list(range(30))


def test_clips_of_too_many_pixels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('s4nd.data.clips.files.MAX_CLIP_PIXELS', 4 * 32 * 48)
    for path in (coded(tmp_path / 'a.mp4'), write_frames(tmp_path / 'frames', 30)):
        assert len(read_clip(path, grid(4, 1.0), stored_rate=10)[0]) == 4
        with pytest.raises(ClipError, match='5 frames of 32×48 pixels, expected at most 6144 pixels in all'):
            read_clip(path, grid(5, 1.0), stored_rate=10)


def test_frames_that_are_hidden_or_lead_nowhere(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / 'frames', 6)
    (folder / '._frame_1.png').write_bytes(b'what macOS writes beside a file')
    os.mkfifo(folder / 'frame_7.png')
    assert numbers(read_clip(folder, grid(10, 0.6), stored_rate=10)[0]) == [0, 1, 2, 3, 4, 5]
    (folder / 'frame_8.png').symlink_to('nowhere')
    with pytest.raises(ClipError, match=r'frame_8\.png cannot be read'):
        read_clip(folder, grid(10, 0.7), stored_rate=10)


def test_sound_is_not_a_clip(tmp_path: Path) -> None:
    av = pytest.importorskip('av')
    with av.open(str(tmp_path / 'sound.mkv'), 'w') as container:
        stream = container.add_stream('pcm_s16le', rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout='mono')
        sound.sample_rate = 8000
        for packet in [*stream.encode(sound), *stream.encode()]:
            container.mux(packet)
    with pytest.raises(ClipError, match='no video in it'):
        read_clip(tmp_path / 'sound.mkv', grid(4, 1.0))


def coded(path: Path, **options: object) -> Path:
    """Thirty frames, ten per second, from second `begin` on, in sizes that may change; an optional title and turn."""
    av = pytest.importorskip('av')
    with av.open(str(path), 'w', format=options.get('format')) as container:
        container.metadata['title'] = str(options.get('title', ''))
        stream = container.add_stream('mpeg4' if path.suffix == '.avi' else 'libx264', rate=10)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = 32, 48, 'yuv420p', 6
        for number in range(30):
            picture = av.VideoFrame.from_ndarray(frame(number), format='rgb24')
            picture.pts, picture.time_base = number + 10 * int(options.get('begin', 0)), Fraction(1, 10)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize('suffix', ['.mkv', '.mp4'])
def test_a_video_that_begins_late_shows_all_its_frames(tmp_path: Path, suffix: str) -> None:
    clip, duration = read_clip(coded(tmp_path / f'a{suffix}', begin=5), grid(10, 3))
    assert numbers(clip) == list(range(30)) and duration == pytest.approx(3, abs=0.05)


def test_a_title_in_another_encoding(tmp_path: Path) -> None:
    path = coded(tmp_path / 'a.mkv', title='Xaxaxaxa')
    path.write_bytes(path.read_bytes().replace(b'Xaxaxaxa', b'Stra\xdfe\xfc\xe4'))
    assert numbers(read_clip(path, grid(10, 3))[0]) == list(range(30))


def test_an_unknown_codec_is_told(tmp_path: Path) -> None:
    path = coded(tmp_path / 'a.mkv')
    path.write_bytes(path.read_bytes().replace(b'V_MPEG4/ISO/AVC', b'V_NOBODY/ISO/XX'))
    with pytest.raises(ClipError, match=r'decoder|decoded|no frame'):
        read_clip(path, grid(10, 3))


def test_the_turn_of_a_video_is_followed(tmp_path: Path) -> None:
    path = coded(tmp_path / 'a.mp4')
    content = path.read_bytes()
    at = content.index(b'tkhd') + 4 + 40  # the matrix of the track's header, version 0
    one = 1 << 16
    turned = struct.pack('>9i', 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    assert content[at : at + 4] == struct.pack('>i', one)
    path.write_bytes(content[:at] + turned + content[at + 36 :])
    clip, _ = read_clip(path, grid(10, 3))
    assert clip.shape[2:] == (48, 32)
