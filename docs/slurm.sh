#!/usr/bin/env bash
# A search on the nodes of a SLURM job, which submits itself again until the search has ended:
#     sbatch docs/slurm.sh study.yaml [OPTIONS OF autopeft search]
# Set the lines below to what your cluster offers; the rest stays as it is.
#SBATCH --job-name=autopeft
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --output=autopeft-%j.log
set -euo pipefail

MARGIN_S=${MARGIN_S:-300}    # the search stops by itself so long before the job's end, loading counted in
export RAY_USAGE_STATS_ENABLED=0

# Head and workers. The search finds them by RAY_ADDRESS, so that no job's address is kept with it.
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
ip=$(srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" hostname --ip-address | awk '{print $1}')
address=$ip:$((20000 + SLURM_JOB_ID % 20000))    # two jobs may share a node
ray_start=(ray start --block --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}")

srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" \
    "${ray_start[@]}" --head --node-ip-address="$ip" --port="${address#*:}" --include-dashboard=false &
export RAY_ADDRESS=$address
until ray health-check --address "$address" 2>/dev/null; do sleep 2; done
if ((${#nodes[@]} > 1)); then
    srun --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) --exclude="${nodes[0]}" \
        "${ray_start[@]}" --address="$address" &
    sleep "${JOIN_S:-30}"    # for the others to join: execution.ray.workers counts who is there
fi

# This script runs on the first node, beside Ray's head, and passes SLURM's signal on.
autopeft search "$@" --executor ray \
    --stop-after "$((SLURM_JOB_END_TIME - $(date +%s) - MARGIN_S))s" &
search=$!
trap 'kill -TERM "$search" 2>/dev/null || true' TERM
code=0
wait "$search" || code=$?
while kill -0 "$search" 2>/dev/null; do    # the trap has ended the wait, not the search
    code=0
    wait "$search" || code=$?
done

if ((code == 75 || code == 143)); then    # stopped before its end: the same command goes on
    script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=\([^ ]*\).*/\1/p')
    sbatch --dependency="afterany:$SLURM_JOB_ID" "$script" "$@"
    code=0
fi
exit "$code"
