# shellcheck shell=bash
# The stage runner of the recipe scripts (source it after parse_options.sh).
#
# A stage that ends well leaves a marker, <data or exp>/.done/stage-N.json, with the options, configuration and
# identities that made it (egs/common/marker.py holds the rules). Run again: with the same options it is skipped,
# with others it stops and names the difference; killed, there is no marker and it runs again.
#
#   run_stage 4 "quantiser" stage_4 --after "3" --options "seed" --config "$file" --leaves "data/quantizers/x"
#
# It uses these options of the calling script: stage, stop_stage, data_dir, exp_dir.
# shellcheck disable=SC2154 # they are set by parse_options.sh

# Facts that local/corpus.sh need not state (source it after this file).
# shellcheck disable=SC2034 # they are for prepare.sh and run.sh
{
  # More options of local/prepare_manifests.py.
  manifest_options=()
  # The set whose embeddings the quantiser is trained on.
  quantizer_set=train
  # The set whose labels or transcripts fine-tuning may read.
  labelled_set=labelled
  # Parts of it, as NAME=HOURS separated by spaces: sets of their own, for run.sh --labelled-set NAME.
  labelled_subsets=""
  # What stages 12 to 14 are for: asr, tagging, or none where a recipe ends with the encoder.
  finetune=asr
  # The classes of finetune=tagging: index, mid, display_name.
  class_list=local/class_labels_indices.csv
  # Facts that a stage of local/stages.sh depends on, by its number: [2]="noise_kinds noise_hours".
  declare -A stage_facts=()
}

common_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$common_dir/../.." && pwd)
script_command="$0${*:+ $*}"

log() {
  printf '%s %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "$*" >&2
}

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# The one place that chooses the Python: $PYTHON, else the repository's .venv, else python3 on PATH.
find_python() {
  if [[ -n ${PYTHON:-} ]]; then
    python=$PYTHON
  elif [[ -x $repository/.venv/bin/python ]]; then
    python=$repository/.venv/bin/python
  else
    python=python3
  fi
  command -v "$python" >/dev/null || die "no Python at '$python': run tools/quickstart.sh, or set PYTHON=/path/to/python"
  "$python" -c 'import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ("torch", "lhotse", "yaml"))))' ||
    die "$python lacks the packages of requirements.txt: run tools/quickstart.sh, or set PYTHON to one that has them"
  export PYTHONPATH=$repository${PYTHONPATH:+:$PYTHONPATH}
  # Sets OMP_NUM_THREADS to what is free now, shared by the processes of this node; prints nothing where it is set.
  eval "$("$python" "$repository/spear_lib/runtime/threads.py" "${nproc:-1}")"
}

# The names of the files that prepare.sh leaves and run.sh reads, in one place.
set_manifest() {
  printf '%s/manifests/%s_cuts_%s.jsonl.gz' "$data_dir" "$corpus" "$1"
}

token_cuts() {
  printf '%s/cuts/%s_cuts_%s.jsonl.gz' "$data_dir" "$corpus" "$1"
}

token_store() {
  printf '%s/tokens/%s/%s' "$data_dir" "$teacher" "$1"
}

noise_manifest() {
  printf '%s/manifests/noise_cuts.jsonl.gz' "$data_dir"
}

# list_of WORDS...: the words as one list for an option of a command, quoted, so that a path may hold spaces, commas,
# brackets, colons or a #.
list_of() {
  local word quoted="" backslash=\\
  for word in "$@"; do
    word=${word//"$backslash"/"$backslash$backslash"}
    quoted+=${quoted:+, }\"${word//\"/"$backslash"\"}\"
  done
  printf '[%s]' "$quoted"
}

# json_value FILE KEY: prints a value of a JSON object.
json_value() {
  "$python" "$common_dir/json_value.py" "$1" "$2"
}

# config_file KIND NAME [RECIPE]: the file conf/KIND/NAME.yaml of this recipe (or of the folder RECIPE), or, where it has
# none, that of egs/common. Where neither has it, run_stage refuses and names what there is. A file says in its first
# lines which others it extends; "python -m spear_lib.runtime.overlays FILE" shows every value with its file.
config_file() {
  local own=${3:+$3/}conf/$1/$2.yaml shared=../common/conf/$1/$2.yaml
  if [[ ! -f $own && -f $shared ]]; then own=$shared; fi
  printf '%s' "$own"
}

# The ways of pre-training (--method), and whether one needs the tokens of a teacher (stages 3 to 6).
methods="spear|spidr|dinosr|spidr-z|spear-spidr"
needs_tokens() {
  [[ $method == spear || $method == spear-spidr ]]
}

# The default of --conf.
choose_conf() {
  if [[ -n $conf ]]; then return 0; fi
  if [[ $mini == true ]]; then conf=mini; else conf=base; fi
}

# Checks --split, and sets part to K/N for it (to nothing for all).
check_split() {
  part=""
  if ((split == 0)); then return 0; fi
  if ((stage != 5 || stop_stage != 5)); then usage_error "--split is for stage 5 alone: add --stage 5 --stop-stage 5"; fi
  if ((split < 0 || split > num_splits)); then usage_error "--split $split: it goes from 1 to --num-splits $num_splits"; fi
  part=$split/$num_splits
}

# check_parts CUTS STORES: stage 5 of --num-splits parts is closed where all of them are made, and nowhere else: what is
# missing would be made here, by one machine that may not even have a GPU.
check_parts() {
  local missing
  if ((num_splits == 1 || split > 0)); then return 0; fi
  missing=$("$python" -m spear_lib.bin.check_tokens --cuts "$1" --store "$2" --missing "$num_splits")
  if [[ -z $missing ]]; then return 0; fi
  die "of the $num_splits parts of stage 5 these are not made: $missing. Run each with --split, or submit them" \
    "(tools/slurm, --array=$missing), or leave out --num-splits to make them here"
}

# check_stage_range FIRST LAST: --stage and --stop-stage must lie inside the script's own stages.
check_stage_range() {
  local first=$1 last=$2 value
  last_stage=$last
  for value in "$stage" "$stop_stage"; do
    if ((value < first || value > last)); then
      usage_error "there is no stage $value here: $0 has stages $first to $last (prepare.sh 0 to 7, run.sh 10 to 15)"
    fi
  done
  if ((stage > stop_stage)); then
    usage_error "--stage $stage is after --stop-stage $stop_stage: nothing would run"
  fi
}

# end_before STAGE WHY: the recipe has no stage STAGE nor any after it. Where they were asked for, the script refuses;
# otherwise it ends with the stage before.
end_before() {
  last_stage=$(($1 - 1))
  if ((stop_stage <= last_stage)); then return 0; fi
  if ((stage > last_stage)) || option_given stop_stage; then die "there is no stage $1 in this recipe: $2"; fi
  stop_stage=$last_stage
  log "the recipe ends with stage $last_stage: $2"
}

# check_machines: --num-nodes, --node-rank and --rendezvous fit together.
check_machines() {
  if ((node_rank < 0 || node_rank >= num_nodes)); then
    usage_error "--node-rank $node_rank: the machines are 0 to $((num_nodes - 1)) (--num-nodes $num_nodes)"
  fi
  if ((num_nodes > 1)) && [[ -z ${SPEAR_SRUN:-} && ! $rendezvous =~ ^.+:[0-9]+$ ]]; then
    usage_error "--num-nodes $num_nodes needs --rendezvous HOST:PORT, machine 0 and a free port there, got '$rendezvous'"
  fi
}

# launch MODULE ARGS...: python -m MODULE, in several processes when --nproc or --num-nodes asks for them: through torchrun,
# or, where SPEAR_SRUN is set (tools/slurm), as one task of srun for each.
launch() {
  if ((nproc <= 1 && num_nodes <= 1)); then
    "$python" -m "$@"
    return
  fi
  if [[ -n ${SPEAR_SRUN:-} ]]; then
    launch_tasks "$@"
    return
  fi
  # On one machine torchrun finds a free port itself: two runs of one machine must not meet.
  local note=$exp_dir/.done/interrupted-$node_rank
  local -a machines=(--standalone)
  if ((num_nodes > 1)); then
    machines=(--nnodes "$num_nodes" --node-rank "$node_rank")
    machines+=(--master-addr "${rendezvous%:*}" --master-port "${rendezvous##*:}")
  fi
  rm -f "$note"
  "$python" "$common_dir/torchrun.py" "$note" \
    "$python" -m torch.distributed.run --nproc-per-node "$nproc" "${machines[@]}" -m "$@"
}

# launch_tasks MODULE ARGS...: one task of srun for each process. Ends with 75 where they saved and stopped.
launch_tasks() {
  local note=$exp_dir/.done/interrupted status=0 cpus=$((${SLURM_CPUS_ON_NODE:-$nproc} / nproc))
  rm -f "$note"
  SPEAR_INTERRUPTED_NOTE=$note MASTER_PORT=$("$python" "$common_dir/free_port.py" "${SLURM_JOB_ID:-0}") \
    srun --export=ALL --nodes="$num_nodes" --ntasks=$((num_nodes * nproc)) --ntasks-per-node="$nproc" \
    --cpus-per-task=$((cpus > 0 ? cpus : 1)) --kill-on-bad-exit=1 --wait="${SPEAR_WAIT_SECONDS:-600}" \
    bash "$common_dir/srun_task.sh" "$python" -m "$@" || status=$?
  if ((status != 0)) && [[ -f $note ]]; then status=75; fi
  return "$status"
}

# run_stage NUMBER DESCRIPTION FUNCTION [--after STAGES] [--options NAMES] [--config FILE] [--leaves PATH]
#           [--identity NAME=FILE.json:KEY] [--part K/N] [--machines all]
# STAGES and NAMES are separated by spaces; --config, --leaves and --identity may be given several times.
# --options are variables (options of the script, or facts of local/corpus.sh) that change what the stage makes, and
# no others. With --part no marker is written: a later run without it closes the stage. With --machines all the stage
# uses launch: of several machines (--num-nodes) each takes part; only machine 0 checks, locks and marks stages.
run_stage() {
  local _number=$1 _description=$2 _function=$3
  shift 3
  if ((_number < stage || _number > stop_stage)); then return 0; fi

  # bash shows these to the stage's function too: the underscores keep them apart from the recipe's variables.
  local _part="" _configs="" _machines=first _name _status _probe
  local -a _arguments=(--number "$_number" --description "$_description" --command "$script_command")
  _arguments+=(--data-dir "$data_dir" --exp-dir "$exp_dir" --repository "$repository")
  set -- "$@" --options "${stage_facts[$_number]:-}"
  while (($# > 0)); do
    case $1 in
      --options)
        for _name in $2; do
          local -n _value=$_name # an array counts with all its items
          _arguments+=(--option "$_name=${_value[*]}")
          if [[ -z ${_option_defaults[$_name]+known} ]]; then _arguments+=(--fact "$_name"); fi
        done
        ;;
      --after) for _name in $2; do _arguments+=(--after "$_name"); done ;;
      --config)
        _arguments+=("$1" "$2")
        _configs+="${_configs:+, }$2"
        ;;
      --leaves | --identity) _arguments+=("$1" "$2") ;;
      --part) _part=$2 ;;
      --machines) _machines=$2 ;;
      *) die "run_stage $_number: unknown argument $1" ;;
    esac
    shift 2
  done

  # bash ignores 'set -e' inside if, && and ||, for everything called from there: a stage that fails half-way
  # would go on. Find out before starting.
  set +e
  (
    set -e
    false
    true
  )
  _probe=$?
  set -e
  if ((_probe == 0)); then die "run_stage $_number is called inside if, && or ||, where a failing command would go unseen"; fi

  local _done_dir=$data_dir/.done
  if ((_number >= 10)); then _done_dir=$exp_dir/.done; fi
  if ((${node_rank:-0} > 0)); then
    if [[ $_machines != all ]]; then return 0; fi
    if [[ -f $_done_dir/stage-$_number.json ]]; then return 0; fi
    log "stage $_number: $_description, with machine 0 (this is $node_rank of $num_nodes)"
    mkdir -p "$_done_dir"
    "$_function"
    return
  fi

  set +e
  "$python" "$common_dir/marker.py" check "${_arguments[@]}" ${_part:+--part "$_part"}
  _status=$?
  set -e
  case $_status in
    0) return 0 ;;
    10) ;;
    *) exit 1 ;;
  esac

  local _metrics=$_done_dir/stage-$_number.metrics${_part:+.${_part//\//-of-}}.jsonl
  # Two runs of one stage would write the same files. The lock dies with its holders, also with kill -9.
  if command -v flock >/dev/null; then
    exec 9>"$_done_dir/stage-$_number.lock${_part:+.${_part//\//-of-}}"
    _status=0
    flock -w 20 -E 75 9 || _status=$?
    if ((_status == 75)); then die "stage $_number is already running on $_done_dir: wait for it, or end that process"; fi
    if ((_status)); then
      die "cannot lock $_done_dir: its file system has no locks, so two runs could write the same files; use a folder on another one"
    fi
  fi
  log "stage $_number: $_description${_part:+ (part $_part)}${_configs:+, $_configs}"
  local _started
  _started=$(date +%s)
  rm -f "$_metrics"
  set +e
  (
    set -euo pipefail
    export SPEAR_STAGE_METRICS=$_metrics
    "$_function"
  )
  _status=$?
  set -e
  if ((_status == 75)); then
    log "stage $_number was told to stop and saved its state; the same command goes on from there"
    exit 75
  elif ((_status != 0)); then
    log "stage $_number ($_description) failed with status $_status; the lines above say why. Run the same command again after the cure."
    exit "$_status"
  fi
  if [[ -n $_part ]]; then
    log "stage $_number: part $_part is done; when all are, the same command without --split checks them and closes the stage"
  else
    "$python" "$common_dir/marker.py" write "${_arguments[@]}" --metrics "$_metrics" --started "$_started"
    rm -f "$_metrics"
  fi
  if command -v flock >/dev/null; then exec 9>&-; fi
}
