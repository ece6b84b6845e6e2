"""The command `s4nd train`, for a checkout: python train.py CONFIG [key=value …]."""

import sys

from s4nd.cli import main

if __name__ == '__main__':
    sys.exit(main(['train', *sys.argv[1:]]))
