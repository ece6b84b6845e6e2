"""`python -m s4nd.audio.metrics`: see `s4nd.audio.cli.metrics`."""

import sys

from .cli import metrics

if __name__ == '__main__':
    sys.exit(metrics(sys.argv[1:]))
