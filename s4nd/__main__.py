"""`python -m s4nd`: the command `s4nd`."""

import sys

from s4nd.cli import main

if __name__ == '__main__':
    sys.exit(main())
