"""`accelerate launch -m turnppo_hf.train CONFIG.yaml` is `turnppo train CONFIG.yaml` on every process."""

import sys

from turnppo_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
