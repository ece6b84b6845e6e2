"""The command `python -m audio.generate`: see `audio.cli.generate`."""

import sys

from audio.cli import generate

if __name__ == '__main__':
    sys.exit(generate(sys.argv[1:]))
