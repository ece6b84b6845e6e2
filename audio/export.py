"""The command `python -m audio.export`: see `audio.cli.export`."""

import sys

from audio.cli import export

if __name__ == '__main__':
    sys.exit(export(sys.argv[1:]))
