#!/usr/bin/env bash
# Render and train on four nodes of a SLURM cluster, by Ray's own `ray symmetric-run`:
#
#     sbatch examples/ray-slurm.sh
#     sbatch --nodes=16 examples/ray-slurm.sh --samples 48000 --gpus 0.25
#
# Type it in the root of this repository, which all nodes must share, in an environment that `pip install ".[bpy,ray]"`
# made. The arguments go to examples/ray_train.py; more options of sbatch, such as an account, stand before the script.
#
# Here srun starts `ray symmetric-run` once on each node. That starts Ray there, runs the program on the first node, and
# stops Ray at the end: all of it that you run on a node, so the job has its nodes for itself. The other nodes notice a
# minute later that the first one has ended, and report it as an error, which it is not. The job's exit status is the
# program's.
#
#SBATCH --job-name=asyncblend
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --exclusive
#SBATCH --time=01:00:00

set -euo pipefail

# A password that only this job knows. Else whoever reaches the first node may run code on all of them.
RAY_AUTH_TOKEN=$(python -c "import secrets; print(secrets.token_hex())")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN

# Seconds that the nodes wait for each other. Ray's own 30 are few where Python is on a shared file system.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

# SLURM runs this script on the first node, and SLURMD_NODENAME is its name. srun does not ask for CPUs by itself.
srun --ntasks="$SLURM_JOB_NUM_NODES" --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    ray symmetric-run --address "$SLURMD_NODENAME:6379" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus="$SLURM_CPUS_PER_TASK" \
    -- python -u examples/ray_train.py --address auto "$@"
