"""`python -m s4nd.audio.export`: see `s4nd.audio.cli.export`."""

import sys

from .cli import export

if __name__ == '__main__':
    sys.exit(export(sys.argv[1:]))
