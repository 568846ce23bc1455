#!/bin/bash
# Written by `vit_jax.main launch`. To submit it: sbatch ~{file}
#SBATCH --job-name=~{name}
#SBATCH --nodes=~{nodes}
#SBATCH --ntasks-per-node=1
~{options}
#SBATCH --signal=TERM@~{grace}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=~{name}-%j.log
#SBATCH --chdir=~{folder}

~{exports}
restarts=~{name}-$SLURM_JOB_ID.restarts # Newest saved steps, one line for each end of the job.

~{functions}

# SLURM sends SIGTERM to the processes of the run, which save their last step and end. This script
# may receive it, too; it waits for them.
trap : TERM
srun ~{srun} ~{train} &
while wait $!; code=$?; kill -0 $! 2> /dev/null; do :; done

# After scancel, or if SLURM itself has requeued the job, it is not RUNNING.
if [ "$(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID")" = RUNNING ] && again $code; then
  echo "~{name}: exit code $code; requeued."
  scontrol requeue "$SLURM_JOB_ID" || echo "~{name}: submit it again: sbatch ~{file}" >&2
fi
exit $code
