# shellcheck shell=bash
# Command-line options of the recipe scripts. Source it, declare every option, then parse:
#
#   option stop_stage 7 "Last stage to run" int
#   parse_options "$@"
#
# An option becomes a shell variable of the same name; on the command line its underscores are dashes:
# --stop-stage 3 or --stop-stage=3. Kinds: text (default), int, bool (true|false), path (a relative one is
# relative to where the command was typed; hub:OWNER/NAME and package:NAME, where models come from, stay as they
# are), or choices as "mini|base|large".
# Nothing overrides silently: the environment does not count, an option given twice is an error, and so are
# positional arguments and unknown options.

_option_names=()
declare -A _option_defaults=() _option_help=() _option_kinds=() _option_given=()

usage_error() {
  printf 'error: %s\n' "$1" >&2
  exit 2
}

# option NAME DEFAULT HELP [KIND]
option() {
  local name=$1
  _option_names+=("$name")
  _option_defaults[$name]=$2
  _option_help[$name]=$3
  _option_kinds[$name]=${4:-text}
  printf -v "$name" '%s' "$2"
}

# option_given NAME: true when NAME was on the command line.
option_given() {
  [[ -n ${_option_given[$1]+given} ]]
}

# Number of edits (insert, delete, replace) between two words.
_edit_distance() {
  local first=$1 second=$2 i j cost best
  local -a previous current
  for ((j = 0; j <= ${#second}; j++)); do previous[j]=$j; done
  for ((i = 1; i <= ${#first}; i++)); do
    current=("$i")
    for ((j = 1; j <= ${#second}; j++)); do
      cost=1
      if [[ ${first:i-1:1} == "${second:j-1:1}" ]]; then cost=0; fi
      best=$((previous[j - 1] + cost))
      if ((previous[j] + 1 < best)); then best=$((previous[j] + 1)); fi
      if ((current[j - 1] + 1 < best)); then best=$((current[j - 1] + 1)); fi
      current[j]=$best
    done
    previous=("${current[@]}")
  done
  printf '%s' "${previous[${#second}]}"
}

_nearest_option() {
  local wanted=$1 name distance best_distance=1000 best=""
  for name in "${_option_names[@]}"; do
    distance=$(_edit_distance "$wanted" "$name")
    if ((distance < best_distance)); then
      best_distance=$distance
      best=$name
    fi
  done
  printf '%s' "${best//_/-}"
}

print_help() {
  local name default kind
  # The comment block at the top of help_file (the calling script, if not set) is the description; the script has gone
  # to its own folder.
  sed -n '2,/^$/{s/^# \{0,1\}//p;}' "${help_file:-$PWD/$(basename "$0")}"
  printf '\nOptions (name, default, meaning):\n'
  for name in "${_option_names[@]}"; do
    default=${_option_defaults[$name]}
    kind=${_option_kinds[$name]}
    [[ $kind == *"|"* ]] || kind=""
    printf '  --%-18s %-10s %s%s\n' "${name//_/-}" "${default:-\"\"}" "${_option_help[$name]}" "${kind:+ ($kind)}"
  done
  printf '  --%-18s %-10s %s\n' help "" "Show this and exit"
}

_check_value() {
  local name=$1 value=$2 flag="--${1//_/-}" kind=${_option_kinds[$1]}
  case $kind in
    int) [[ $value =~ ^-?[0-9]+$ ]] || usage_error "$flag takes a whole number, got '$value'" ;;
    bool) [[ $value == true || $value == false ]] || usage_error "$flag takes true or false, got '$value'" ;;
    *"|"*) [[ -n $value && "|$kind|" == *"|$value|"* ]] || usage_error "$flag takes one of ${kind//|/, }, got '$value'" ;;
  esac
}

parse_options() {
  local argument name value
  while (($# > 0)); do
    argument=$1
    shift
    case $argument in
      --help | -h)
        print_help
        exit 0
        ;;
      --*=*)
        name=${argument%%=*}
        value=${argument#*=}
        ;;
      --?*)
        name=$argument
        value=""
        ;;
      *) usage_error "positional argument '$argument': every argument is an option, see $0 --help" ;;
    esac
    name=${name#--}
    name=${name//-/_}
    if [[ ! $name =~ ^[A-Za-z0-9_]+$ || -z ${_option_defaults[$name]+known} ]]; then
      usage_error "unknown option --${name//_/-}; did you mean --$(_nearest_option "$name")? See $0 --help"
    fi
    if [[ $argument != *=* ]]; then
      if (($# == 0)) || [[ $1 == --* ]]; then
        usage_error "--${name//_/-} needs a value: --${name//_/-} VALUE"
      fi
      value=$1
      shift
    fi
    if option_given "$name"; then
      usage_error "--${name//_/-} is given twice (${!name}, then $value)"
    fi
    _check_value "$name" "$value"
    if [[ ${_option_kinds[$name]} == path && -n $value && $value != /* && $value != hub:* && $value != package:* ]]; then
      if [[ ${caller_dir:-$PWD} != "$PWD" ]]; then value=$caller_dir/$value; fi
    fi
    _option_given[$name]=1
    printf -v "$name" '%s' "$value"
  done
}
