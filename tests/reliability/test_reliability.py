"""The programs at the size that a test affords; `python -m tests.reliability.fuzz count=10000` is the long one."""

import json
import math
import subprocess
import sys

import pytest

from tests.reliability import fuzz, kill


@pytest.mark.parametrize('medium', list(fuzz.MEDIA))
def test_damaged_files(medium: str) -> None:
    # In a process of its own, whose peak of memory is that of the readers.
    program = 'import json, sys; from tests.reliability.fuzz import fuzz; print(json.dumps(fuzz(sys.argv[1], 1000)))'
    done = subprocess.run([sys.executable, '-c', program, medium], capture_output=True, text=True, check=True)
    found, failed = json.loads(done.stdout.splitlines()[-1])
    assert not failed, failed[:5]
    assert set(found) <= {'read', 'refused', 'read in part, and said so'}
    assert found['read'] > 10 and found['refused'] > 100  # the damage is neither nothing nor everything


def test_the_program_finds_what_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(folder: object) -> tuple[list[bytes], object]:
        def read(data: bytes) -> str:
            if len(data) < 50:
                raise IndexError('a traceback')
            while len(data) > 110:
                pass
            return 'read'

        return [bytes(100)], read

    monkeypatch.setitem(fuzz.MEDIA, 'faulty', faulty)
    monkeypatch.setattr(fuzz, 'SECONDS', 1)
    monkeypatch.setattr(fuzz, 'KILOBYTES', math.inf)  # of this process, with all its tests
    _, failed = fuzz.fuzz('faulty', 12, seed=1)
    assert any('IndexError' in text for text in failed) and any('longer than 1 s' in text for text in failed)


@pytest.mark.parametrize('medium', list(kill.CONFIGS))
def test_killed_runs(medium: str) -> None:
    # It forks: from a process of its own, without threads of other tests.
    words = [sys.executable, '-m', 'tests.reliability.kill', f'media={medium}', 'runs=1', 'seed=1']
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'equal to the bit': 1" in done.stdout


def test_options_at_random() -> None:
    # It forks, as the one before.
    words = [sys.executable, '-m', 'tests.reliability.mistakes', 'count=60', 'seed=1']
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[2]) > 3  # some values are no mistakes
