"""The command `python -m audio.metrics`: see `audio.cli.metrics`."""

import sys

from audio.cli import metrics

if __name__ == '__main__':
    sys.exit(metrics(sys.argv[1:]))
