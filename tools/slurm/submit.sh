#!/usr/bin/env bash
# A whole recipe under Slurm: the jobs of its stages, each waiting for the one before. From the root of the repository:
#
#   tools/slurm/submit.sh egs/librispeech --corpus-dir /corpora/LibriSpeech --conf base --dry-run
#   tools/slurm/submit.sh egs/librispeech --corpus-dir /corpora/LibriSpeech --conf base
#   tools/slurm/submit.sh egs/librispeech --corpus-dir /corpora/LibriSpeech --conf base --status
#
# The same command again submits what is left: stages without a marker, parts of the tokens that are not made, jobs that
# are not in the queue. Logs, the numbers of the jobs and the code that they run (a copy: a requeued job runs what was
# submitted) are in EXP_DIR/slurm. Its own options; all others are those of the recipe's prepare.sh and run.sh:
#
#   --dry-run            print the sbatch commands, submit nothing
#   --status             stages, parts and jobs of a chain that was submitted
#   --nodes N            nodes for pre-training and fine-tuning (1)
#   --num-splits N       parts of the tokens, an array of jobs (20)
#   --throttle N         parts at the same time (all)
#   --sbatch-file FILE   options of sbatch, a line for each kind of job: "all: --account=speech", "tokens: --time=8:00:00"
#                        (all data quantizer tokens close pretrain average finetune evaluate report)
#
# sbatch also takes SBATCH_PARTITION, SBATCH_ACCOUNT, ... from the environment.

set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
  sed -n '2,/^$/{s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
  exit 0
fi
recipe=${1:-}
recipe=${recipe#"$repository/"}
recipe=${recipe%/}
if [[ -z $recipe || ! -f $repository/$recipe/run.sh ]]; then
  fail "'$recipe' is no recipe of this repository: tools/slurm/submit.sh egs/librispeech [options of prepare.sh and run.sh]"
fi
shift

# takes SCRIPT NAME: whether the recipe's SCRIPT has the option; is_path: whether its value is a path.
declare -A help=()
for script in prepare run; do help[$script]=$("$repository/$recipe/$script.sh" --help); done
takes() { [[ ${help[$1]} == *$'\n'"  --$2 "* ]]; }
is_path() {
  grep -hEq "^option ${1//-/_} .* path\$" "$repository/$recipe"/*.sh "$repository"/egs/common/*.sh
}

action=submit nodes=1 splits=20 throttle="" sbatch_file="" teacher=""
data_dir=$repository/$recipe/data exp_dir=$repository/$recipe/exp
declare -a prepare_options=() run_options=()
while (($# > 0)); do
  case $1 in
    --dry-run | --status)
      action=${1#--}
      shift
      continue
      ;;
    --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    --?*) ;;
    *) fail "positional argument '$1': every argument is an option, see tools/slurm/submit.sh --help" ;;
  esac
  if (($# < 2)); then fail "$1 needs a value: $1 VALUE"; fi
  name=${1#--} value=$2
  name=${name//_/-}
  shift 2
  if is_path "$name" && [[ -n $value && $value != /* && $value != hub:* ]]; then value=$PWD/$value; fi
  case $name in
    nodes | num-splits | throttle)
      if [[ ! $value =~ ^[1-9][0-9]*$ ]]; then fail "--$name takes a whole number of at least 1, got '$value'"; fi
      ;;&
    nodes) nodes=$value ;;
    num-splits) splits=$value ;;
    throttle) throttle=%$value ;;
    sbatch-file)
      if [[ ! -f $value ]]; then fail "--sbatch-file: there is no file $value"; fi
      sbatch_file=$value
      ;;
    data-dir) data_dir=$value ;;
    exp-dir) exp_dir=$value ;;
    stage | stop-stage | split | nproc | num-nodes | node-rank | rendezvous) fail "--$name: each job has its own; leave it out" ;;
    *)
      if ! takes prepare "$name" && ! takes run "$name"; then
        fail "unknown option --$name: neither $recipe/prepare.sh nor run.sh has it, see their --help"
      fi
      if [[ $name == teacher ]]; then teacher=$value; fi
      if takes prepare "$name"; then prepare_options+=("--$name" "$value"); fi
      if takes run "$name"; then run_options+=("--$name" "$value"); fi
      ;;
  esac
done
prepare_options+=(--data-dir "$data_dir" --exp-dir "$exp_dir")
run_options+=(--data-dir "$data_dir" --exp-dir "$exp_dir")
folder=$exp_dir/slurm
jobs_file=$folder/jobs.txt # lines of "kind number"

python=${PYTHON:-}
if [[ -z $python && -x $repository/.venv/bin/python ]]; then python=$repository/.venv/bin/python; fi
python=$(command -v "${python:-python3}") || fail "no Python at '$python': run tools/quickstart.sh, or set PYTHON"

# done_stages FIRST LAST: whether all stages of the range that the recipe has left their markers.
done_stages() {
  local number folder_of
  for ((number = $1; number <= $2; number++)); do
    folder_of=$data_dir
    if ((number >= 10)); then folder_of=$exp_dir; fi
    if [[ $number == 7 && $finetune != asr ]]; then continue; fi
    if [[ ! -f $folder_of/.done/stage-$number.json ]]; then return 1; fi
  done
}

# fact NAME DEFAULT: a fact of the recipe that shapes the chain.
fact() {
  (
    printf -v "$1" '%s' "$2"
    cd "$repository/$recipe"
    # shellcheck source=/dev/null
    if [[ -f local/corpus.sh ]]; then source local/corpus.sh >/dev/null 2>&1; fi
    printf '%s' "${!1}"
  )
}
finetune=$(fact finetune asr)

# missing_parts: parts of the tokens that are not made, as 1-3,7. Before stage 4 all of them.
missing_parts() {
  local -a stores=()
  local store set
  for set in $(fact token_sets ""); do stores+=("\"$data_dir/tokens/${teacher:-$(fact default_teacher none)}/$set\""); done
  # A recipe of parts has stores of its own: those that were begun.
  if ((${#stores[@]} == 0)); then
    for store in "$data_dir"/tokens/*/*/; do if [[ -f ${store}plan.json ]]; then stores+=("\"${store%/}\""); fi; done
  fi
  if ((${#stores[@]} == 0)); then
    printf '1-%s' "$splits"
    return
  fi
  local list
  list=$(IFS=, && printf '[%s]' "${stores[*]}")
  PYTHONPATH=$repository "$python" -m spear_lib.bin.check_tokens --cuts none --store "$list" --missing "$splits"
}

# live KIND: prints the number of this kind's job where it is still in the queue. Several, of chunks: all.
live() {
  local kind number
  if [[ ! -f $jobs_file ]]; then return 0; fi
  while read -r kind number; do
    if [[ $kind == "$1" ]] && [[ -n $(squeue --noheader --jobs="$number" 2>/dev/null || true) ]]; then printf '%s\n' "$number"; fi
  done <"$jobs_file"
}

# own_options KIND: the words of --sbatch-file for it.
own_options() {
  local line
  if [[ -z $sbatch_file ]]; then return 0; fi
  while IFS= read -r line; do
    case $line in "all:"* | "$1:"*) printf '%s ' "${line#*:}" ;; esac
  done <"$sbatch_file"
}

if [[ $action == status ]]; then
  if [[ ! -f $jobs_file ]]; then fail "no chain was submitted for $exp_dir (there is no $jobs_file)"; fi
  printf 'stages done:'
  for number in 0 1 2 3 4 5 6 7 10 11 12 13 14; do if done_stages "$number" "$number"; then printf ' %s' "$number"; fi; done
  missing=$(missing_parts)
  printf '\nparts of the tokens that are not made: %s (of %s)\n' "${missing:-none}" "$splits"
  while read -r kind number; do
    state=$(squeue --noheader --format='%T %M %R' --jobs="$number" 2>/dev/null | sort | uniq -c | tr -s ' \n' ' ' || true)
    log=$(find "$folder" -name "$kind-$number*.log" -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d' ' -f2-)
    line=""
    if [[ -n $log ]]; then line=$(grep -E 'audio-s/s|part [0-9]+ of|stage [0-9]+' "$log" | tail -n 1 || true); fi
    printf '%-10s %-10s %s%s\n' "$kind" "$number" "${state:- not in the queue}" "${line:+ | $line}"
  done <"$jobs_file"
  exit 0
fi

# The code as it is now, once for each content.
snapshot() {
  local list hash
  list=$(cd "$repository" && find spear_lib egs/common "$recipe" tools -type f -not -path '*/__pycache__/*' \
    -not -path "$recipe/data/*" -not -path "$recipe/exp/*" | LC_ALL=C sort)
  # Another recipe's configurations and stages may be used too (egs/mixed).
  list+=$'\n'$(cd "$repository" && find egs -type f \( -path '*/conf/*' -o -path '*/local/*' -o -path 'egs/*/*.sh' \) \
    -not -path '*/data/*' -not -path '*/exp/*' | LC_ALL=C sort)
  list=$(LC_ALL=C sort -u <<<"$list")
  hash=$(cd "$repository" && printf '%s\n' "$list" | tr '\n' '\0' | xargs -0 sha256sum | sha256sum | cut -c1-12)
  code=$folder/code-$hash
  if [[ -d $code || $action == dry-run ]]; then return; fi
  mkdir -p "$code.tmp"
  (cd "$repository" && printf '%s\n' "$list" | tar -cf - -T -) | tar -xf - -C "$code.tmp"
  mv "$code.tmp" "$code"
}

after=""
# submit KIND TEMPLATE [SBATCH OPTIONS] -- WORDS: a job that waits for the one before; its number goes to new_job.
submit() {
  local kind=$1 template=$2 array=false
  shift 2
  local -a options=() command own
  while [[ $1 != -- ]]; do
    if [[ $1 == --array=* ]]; then array=true; fi
    options+=("$1")
    shift
  done
  shift
  read -ra own <<<"$(own_options "$kind")"
  command=(sbatch --parsable --export=ALL --job-name="spear-$kind" --kill-on-invalid-dep=yes)
  if [[ $array == true ]]; then command+=(--output="$folder/$kind-%A-%a.log"); else command+=(--output="$folder/$kind-%j.log"); fi
  if [[ -n $after ]]; then command+=(--dependency="afterok:$after"); fi
  command+=("${options[@]}" "${own[@]}" "tools/slurm/$template" "$@")
  if [[ $action == dry-run ]]; then
    printf '%q ' "${command[@]}"
    printf '\n'
    new_job=\<$kind\>
    return
  fi
  new_job=$(cd "$code" && PYTHON=$python "${command[@]}")
  new_job=${new_job%%;*}
  printf '%s %s\n' "$kind" "$new_job" >>"$jobs_file"
  printf 'submitted %s: job %s\n' "$kind" "$new_job"
}

# step KIND FIRST LAST TEMPLATE [SBATCH OPTIONS] -- WORDS: nothing where its stages are done, or where its job waits or runs.
step() {
  local kind=$1 first=$2 last=$3 there
  shift 3
  if done_stages "$first" "$last"; then return; fi
  there=$(live "$kind" | tail -n 1)
  if [[ -n $there ]]; then
    printf '%s is in the queue: job %s\n' "$kind" "$there"
    after=$there
    return
  fi
  submit "$kind" "$@"
  after=$new_job
}

# The array of stage 5: missing parts alone, in chunks where they are more than Slurm's arrays may have (MaxArraySize).
tokens() {
  local missing there limit range first last part offset chunk
  if done_stages 5 5; then return; fi
  there=$(live tokens | paste -sd:)
  if [[ -n $there ]]; then
    printf 'tokens are in the queue: job %s\n' "$there"
    after=$there
    return
  fi
  missing=$(missing_parts)
  if [[ -z $missing ]]; then return; fi
  limit=$(scontrol show config 2>/dev/null | sed -n 's/^MaxArraySize *= *//p' || true)
  limit=$((${limit:-1001} - 1)) # indices go to MaxArraySize - 1
  local -A chunks=()
  for range in ${missing//,/ }; do
    first=${range%-*} last=${range#*-}
    for ((part = first; part <= last; part++)); do
      chunk=$(((part - 1) / limit))
      chunks[$chunk]+=${chunks[$chunk]:+,}$((part - chunk * limit))
    done
  done
  local -a made=()
  for chunk in $(printf '%s\n' "${!chunks[@]}" | sort -n); do
    offset=$((chunk * limit))
    submit tokens tokens_array.sh "--array=$(as_ranges "${chunks[$chunk]}")$throttle" \
      "--export=ALL,SPEAR_NUM_SPLITS=$splits,SPEAR_SPLIT_OFFSET=$offset" -- "$recipe" "${prepare_options[@]}"
    made+=("$new_job")
  done
  after=$(IFS=: && printf '%s' "${made[*]}")
}

# as_ranges 1,2,3,7: as 1-3,7.
as_ranges() {
  local number first="" last="" all=""
  for number in ${1//,/ } end; do
    if [[ -n $last && $number == "$((last + 1))" ]]; then
      last=$number
      continue
    fi
    if [[ -n $first ]]; then
      all+=${all:+,}$first
      if ((last > first)); then all+=-$last; fi
    fi
    first=$number last=$number
  done
  printf '%s' "$all"
}

if [[ $action == submit ]]; then
  command -v sbatch >/dev/null || fail "no sbatch here: submit on a machine of a Slurm cluster, or see --dry-run"
  mkdir -p "$folder"
fi
snapshot
step data 0 2 stages.sh -- "$recipe/prepare.sh" "${prepare_options[@]}" --stop-stage 2
step quantizer 3 4 stages.sh --gpus-per-node=1 -- "$recipe/prepare.sh" "${prepare_options[@]}" --stage 3 --stop-stage 4
tokens
step close 5 7 stages.sh -- "$recipe/prepare.sh" "${prepare_options[@]}" --stage 5 --num-splits "$splits"
step pretrain 10 10 multi_node.sh --nodes="$nodes" -- "$recipe" "${run_options[@]}" --stage 10 --stop-stage 10
step average 11 11 stages.sh -- "$recipe/run.sh" "${run_options[@]}" --stage 11 --stop-stage 11
if [[ $finetune != none ]]; then
  step finetune 12 12 multi_node.sh --nodes="$nodes" -- "$recipe" "${run_options[@]}" --stage 12 --stop-stage 12
  step evaluate 13 13 stages.sh --gpus-per-node=1 -- "$recipe/run.sh" "${run_options[@]}" --stage 13 --stop-stage 13
  step report 14 14 stages.sh -- "$recipe/run.sh" "${run_options[@]}" --stage 14 --stop-stage 14
fi
if [[ -z $after ]]; then printf 'all stages are done: %s\n' "$exp_dir"; fi
