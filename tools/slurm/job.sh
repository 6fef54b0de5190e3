# shellcheck shell=bash
# What the templates share: run a command until it is done, whatever the batch system does to the job. Source it.
#
# Training that gets SIGUSR1 saves its state and ends with status 75; so does the recipe script around it. The shells
# in between must not notice the signal: they are started with it ignored, which they inherit; training and
# egs/common/torchrun.py set handlers of their own.

# Status of a command that saved its state and wants to be started again (EX_TEMPFAIL of sysexits.h).
interrupted=75
# A job that was requeued this often is looked at by a human first.
max_restarts=${SPEAR_MAX_RESTARTS:-100}

# Seconds after the signal within which the command should have ended; below the number in #SBATCH --signal.
grace=${SPEAR_GRACE_SECONDS:-100}

say() {
  printf '%s job %s: %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "${SLURM_JOB_ID:-?}" "$*" >&2
}

# Puts the job back into the queue; its log goes on in the same file (--open-mode=append).
requeue() {
  local restarts=${SLURM_RESTART_COUNT:-0}
  if ((restarts >= max_restarts)); then
    say "stopped and saved, but not requeued: it was restarted $restarts times (SPEAR_MAX_RESTARTS). Submit it again to go on"
    return
  fi
  say "requeued; it goes on from what it saved"
  scontrol requeue "$SLURM_JOB_ID" || say "scontrol requeue failed: submit it again to go on"
}

# _on_signal NAME: tells the command that runs to stop.
_on_signal() {
  say "got SIG$1, telling the job to $_manner"
  if [[ $_manner == save ]]; then
    kill -USR1 -- "-$_group" 2>/dev/null || true
    # The other nodes: signals the steps of the job, not this script.
    if ((${SLURM_JOB_NUM_NODES:-1} > 1)); then scancel --signal=USR1 "$SLURM_JOB_ID" || true; fi
  else
    kill -TERM -- "-$_group" 2>/dev/null || true
  fi
  if [[ $_told == false ]]; then
    # What neither saves nor ends (decoding, probes) is started again from the beginning of its stage.
    (
      sleep "$grace"
      say "still running after $grace s"
      requeue
    ) &
    _timer=$!
  fi
  _told=true
}

# run_job MANNER COMMAND...: runs the command in a process group of its own and ends the script with its status. On
# SIGUSR1 (what `#SBATCH --signal=B:USR1@120` sends before the time is over) or SIGTERM (pre-emption) it is told to
#   save   save its state and end with status 75: training;
#   end    just end: commands that lose little and go on by themselves, as stage 5.
# Told, or ended with status 75, the job is requeued.
run_job() {
  _manner=$1 _told=false _timer=""
  shift
  set -m # a process group for the command
  if [[ $_manner == save ]]; then
    (
      trap '' USR1 TERM
      exec "$@"
    ) &
  else
    "$@" &
  fi
  _group=$!
  set +m
  trap '_on_signal USR1' USR1
  trap '_on_signal TERM' TERM
  local status
  while true; do
    # A trapped signal ends `wait` early.
    status=0
    wait "$_group" || status=$?
    if ! kill -0 "$_group" 2>/dev/null; then break; fi
  done
  trap - USR1 TERM
  if [[ -n $_timer ]]; then kill "$_timer" 2>/dev/null || true; fi
  if ((status == interrupted)) || [[ $_manner == end && $_told == true && $status != 0 ]]; then
    requeue
    status=$interrupted
  elif ((status != 0)); then
    say "failed with status $status; the lines above say why. Not requeued: it would fail again"
  fi
  exit "$status"
}
