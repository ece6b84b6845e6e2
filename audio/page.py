"""`python -m s4nd.audio.page`: see `s4nd.audio.cli.page`."""

import sys

from .cli import page

if __name__ == '__main__':
    sys.exit(page(sys.argv[1:]))
