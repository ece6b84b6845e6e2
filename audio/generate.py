"""`python -m s4nd.audio.generate`: see `s4nd.audio.cli.generate`."""

import sys

from .cli import generate

if __name__ == '__main__':
    sys.exit(generate(sys.argv[1:]))
