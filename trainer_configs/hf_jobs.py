# /// script
# requires-python = ">=3.11"
# dependencies = ["turnppo-hf"]
# ///
"""
`turnppo train` as a job of the Hub; what stands behind the script is the command's own.

hf jobs uv run --flavor a10g-small --secrets HF_TOKEN trainer_configs/hf_jobs.py CONFIG.yaml --push_to_hub true

CONFIG.yaml is an address that the job can read, such as `https://huggingface.co/NAME/REPO/resolve/main/train_config.yaml`.
"""

import sys
import urllib.request
from pathlib import Path

from turnppo_hf.cli.main import main

if __name__ == "__main__":
    config, *flags = sys.argv[1:]
    if config.startswith("https://"):
        with urllib.request.urlopen(config) as answer:
            Path("config.yaml").write_bytes(answer.read())
        config = "config.yaml"
    sys.exit(main(["train", config, *flags]))
