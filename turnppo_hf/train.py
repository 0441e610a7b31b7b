"""`accelerate launch -m turnppo_hf.train CONFIG.yaml` is `turnppo train CONFIG.yaml` on every process."""

import os
import sys

from turnppo_hf.cli.main import main

if __name__ == "__main__":
    status = main(["train", *sys.argv[1:]])
    if status == 0 and "LOCAL_RANK" in os.environ:  # after an error the others may never come
        from turnppo_hf.trainer.distributed import leave_together

        leave_together()
    sys.exit(status)
