"""`accelerate launch -m turnppo_hf.train CONFIG.yaml` is `turnppo train CONFIG.yaml` on every process."""

import os
import signal
import sys

from turnppo_hf.cli.main import main

if __name__ == "__main__":
    try:
        status = main(["train", *sys.argv[1:]])
    except SystemExit as leaving:  # SIGTERM
        status = leaving.code if isinstance(leaving.code, int) else 1
    ended = (0, 128 + signal.SIGINT, 128 + signal.SIGTERM)  # by all ranks together; what hangs, a signal's watch ends
    if status in ended and "LOCAL_RANK" in os.environ:  # after an error the others may never come
        from turnppo_hf.trainer.distributed import leave_together

        leave_together()
    sys.exit(status)
