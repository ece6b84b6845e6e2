"""The command `python -m audio.page`: see `audio.cli.page`."""

import sys

from audio.cli import page

if __name__ == '__main__':
    sys.exit(page(sys.argv[1:]))
