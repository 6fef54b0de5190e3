# shellcheck shell=bash
# What the templates share: run a command until it is done, whatever the batch system does to the job. Source it.
# README.md beside this file explains the protocol.

# Status of a command that saved its state and wants to be started again (EX_TEMPFAIL of sysexits.h).
interrupted=75
# A job that was requeued this often is looked at by a human first.
max_restarts=${SPEAR_MAX_RESTARTS:-100}
# A command that a signal killed (out of memory, a bus error, a library that aborts) is begun again this often.
max_retries=${SPEAR_MAX_RETRIES:-2}
# Seconds after the signal within which the command should have ended; below the number in #SBATCH --signal.
grace=${SPEAR_GRACE_SECONDS:-100}

# The job, or the task of an array: the array's own number (SLURM_JOB_ID of its last task) would mean all of its tasks.
job_id=${SLURM_JOB_ID:-?}
if [[ -n ${SLURM_ARRAY_JOB_ID:-} ]]; then job_id=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID; fi

say() {
  printf '%s job %s: %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "$job_id" "$*" >&2
}

# The state of the job in Slurm: RUNNING, or COMPLETING, CANCELLED, PENDING, ... where Slurm itself has ended it.
job_state() {
  local facts
  if facts=$(scontrol --oneliner show job "$job_id" 2>/dev/null) && [[ $facts =~ JobState=([A-Z_]+) ]]; then
    printf '%s' "${BASH_REMATCH[1]}"
  fi
}

# Puts the job back into the queue; its log goes on in the same file (--open-mode=append). Not where Slurm has ended it:
# after scancel it stays cancelled, and what was pre-empted or lost a node Slurm has requeued already.
requeue() {
  local restarts=${SLURM_RESTART_COUNT:-0} state
  state=$(job_state)
  if [[ -n $state && $state != RUNNING ]]; then
    say "Slurm has ended this job (now $state), so it is not requeued here; what was saved stays"
  elif ((restarts >= max_restarts)); then
    say "stopped and saved, but not requeued: it was restarted $restarts times (SPEAR_MAX_RESTARTS). Submit it again to go on"
  else
    say "requeued; it goes on from what it saved"
    scontrol requeue "$job_id" || say "scontrol requeue failed: look with 'squeue', and submit it again if it is not there"
  fi
}

# Tells the command that runs to stop, and again until it has: what does not listen yet (it starts) ignores SIGUSR1.
# srun passes it on to the tasks of all nodes.
_tell() {
  local signal=TERM
  if [[ $_manner == save ]]; then signal=USR1; fi
  while kill "-$signal" -- "-$_group" 2>/dev/null; do sleep 3; done
}

# _on_signal NAME: what Slurm sent to this script.
_on_signal() {
  if [[ $_told == true ]]; then return; fi
  _told=true
  say "got SIG$1, telling the job to $_manner"
  # A stop has to end with one status, whatever this shell is sent meanwhile.
  (
    trap '' USR1 TERM
    _tell
  ) &
  # What neither saves nor ends (decoding, probes) is started again from the beginning of its stage.
  (
    trap '' USR1 TERM
    sleep "$grace"
    say "still running after $grace s"
    requeue
  ) &
  _timer=$!
}

# Starts the command in a process group of its own and waits for it; its status is left in _status.
_run_once() {
  set -m # a process group for the command
  if [[ $_manner == save ]]; then
    # The shells between must not notice the signal; they hand "ignored" down, and training sets a handler.
    (
      trap '' USR1 TERM
      exec "$@"
    ) &
  else
    "$@" &
  fi
  _group=$!
  set +m
  while true; do
    # A trapped signal ends `wait` early.
    _status=0
    wait "$_group" || _status=$?
    if ! kill -0 "$_group" 2>/dev/null; then break; fi
  done
}

# Whether every node of the job still starts a process.
_nodes_answer() {
  local nodes=${SLURM_JOB_NUM_NODES:-1}
  if ((nodes == 1)); then return 0; fi
  timeout 60 srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --cpus-per-task=1 --kill-on-bad-exit=1 true
}

# The processes notice a lost node before Slurm does, which then ends this script and requeues the job. Where it has not
# after a while (SlurmdTimeout of most clusters is 300 s), the job is requeued here.
_wait_for_slurm() {
  local seconds=${SPEAR_LOST_NODE_SECONDS:-600}
  say "a node does not answer: waiting up to $seconds s for Slurm to give it up"
  while ((seconds > 0)) && [[ $_told == false && $(job_state) == RUNNING ]]; do
    sleep 5 &
    wait $! || true
    seconds=$((seconds - 5))
  done
}

# run_job MANNER COMMAND...: runs the command and ends the script with its status. On SIGUSR1 (what
# `#SBATCH --signal=B:USR1@120` sends before the time is over) or SIGTERM (pre-emption, scancel) it is told to
#   save   save its state and end with status 75: training;
#   end    just end: commands that lose little and go on by themselves, as stage 5.
# Told, or ended with status 75, the job is requeued.
run_job() {
  _manner=$1 _told=false _timer="" _status=0
  shift
  local retries=0
  trap '_on_signal USR1' USR1
  trap '_on_signal TERM' TERM
  while true; do
    _run_once "$@"
    if ((_status < 128 || retries >= max_retries)) || [[ $_told == true ]]; then break; fi
    if ! _nodes_answer; then
      _wait_for_slurm
      _status=$interrupted
      break
    fi
    retries=$((retries + 1))
    say "ended with status $_status, as what a signal kills; begun again, $retries of $max_retries times (SPEAR_MAX_RETRIES)"
  done
  trap '' USR1 TERM
  if [[ -n $_timer ]]; then
    kill -KILL "$_timer" 2>/dev/null || true
    wait "$_timer" 2>/dev/null || true # else bash reports it
  fi
  # Told to stop while it started, it may have died of the signal: nothing is lost.
  if ((_status == interrupted)) || [[ $_told == true && $_status != 0 ]]; then
    requeue
    _status=$interrupted
  elif ((_status != 0)); then
    say "failed with status $_status; the lines above say why. Not requeued: it would fail again"
  fi
  exit "$_status"
}

# run_training RECIPE [OPTIONS]: its run.sh, with a process for every GPU of the job's nodes.
run_training() {
  local recipe=$1 given=" ${*:2} "
  shift
  local -a processes=(--num-nodes "${SLURM_JOB_NUM_NODES:-1}")
  # --nproc on the command line wins; twice would be an error.
  if [[ $given != *" --nproc"* ]]; then processes+=(--nproc "${SLURM_GPUS_ON_NODE:-1}"); fi
  # With sbatch --export=NONE srun would start its tasks without the environment.
  unset SLURM_EXPORT_ENV
  export SPEAR_SRUN=1
  run_job save "$recipe/run.sh" "${processes[@]}" "$@"
}
