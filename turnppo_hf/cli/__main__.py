"""`python -m turnppo_hf.cli COMMAND` is `turnppo COMMAND`."""

import sys

from turnppo_hf.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
