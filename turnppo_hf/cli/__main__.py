"""`python -m turnppo_hf.cli COMMAND` is `turnppo COMMAND`."""

import sys

from turnppo_hf.cli.main import main

sys.exit(main())
