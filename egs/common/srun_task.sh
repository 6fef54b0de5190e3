#!/usr/bin/env bash
# One process of several, started by srun: says what torchrun would say of it. Called by stages.sh only.
#
# SIGUSR1 means "save and stop" and would kill a process that does not listen yet. It is ignored until training sets
# its handler; tools/slurm/job.sh repeats it.
trap '' USR1
set -euo pipefail
export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
export LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_NNODES))
# The batch script, which started srun, runs on the first machine, where process 0 is.
export MASTER_ADDR=${SPEAR_MASTER_ADDR:-${SLURM_LAUNCH_NODE_IPADDR:-127.0.0.1}}
# gloo announces the address that the machine's own name has; in many an /etc/hosts that is 127.0.1.1, which the
# other machines cannot reach. The network that leads to the first machine is the right one.
if ((SLURM_NNODES > 1)) && [[ -z ${GLOO_SOCKET_IFNAME:-} ]] && command -v ip >/dev/null; then
  # Where it knows no way (a name instead of an address, a container without routes), gloo finds its own.
  interface=$(ip -o route get "$MASTER_ADDR" 2>/dev/null | sed -n 's/.* dev \([^ ]*\).*/\1/p') || true
  # The first machine reaches itself by "lo": there the interface that has the address.
  if [[ $interface == lo ]]; then interface=$(ip -o addr show to "$MASTER_ADDR" | awk 'NR == 1 { print $2 }') || true; fi
  if [[ -n $interface ]]; then export GLOO_SOCKET_IFNAME=$interface; fi
fi
exec "$@"
