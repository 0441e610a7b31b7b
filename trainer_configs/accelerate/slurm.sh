#!/bin/bash
# Eight machines of eight accelerators each: sbatch trainer_configs/accelerate/slurm.sh CONFIG.yaml [--field value ...]
#SBATCH --job-name=turnppo
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300

set -euo pipefail
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=8

srun --kill-on-bad-exit=1 bash -c '
  exec accelerate launch --config_file trainer_configs/accelerate/multi_node.yaml \
    --num_machines "$SLURM_NNODES" --num_processes "$((8 * SLURM_NNODES))" \
    --machine_rank "$SLURM_NODEID" --main_process_ip "$0" --main_process_port 29500 \
    -m turnppo_hf.train "$@"' "$first" "$@"
