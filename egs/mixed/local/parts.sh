# shellcheck shell=bash
# What prepare.sh and run.sh do with the parts of the mixture (source it after stages.sh and corpus.sh).
# shellcheck disable=SC2154,SC2153 # parts comes from corpus.sh, the options from parse_options.sh

# every_part ACTION ARGS...: ACTION NAME DOMAIN RECIPE ARGS... for each part.
every_part() {
  local action=$1 part
  local -a words
  shift
  for part in "${parts[@]}"; do
    read -ra words <<<"$part"
    "$action" "${words[@]}" "$@"
  done
}

# part_fact RECIPE NAME: a fact of the part's own recipe.
part_fact() (
  # shellcheck source=/dev/null
  source "../$1/local/corpus.sh"
  printf '%s' "${!2}"
)

# part_manifest NAME RECIPE SET: the manifest that the part's own recipe made.
part_manifest() {
  local data_dir=$data_dir/$1 corpus
  # shellcheck disable=SC2034 # set_manifest reads it
  corpus=$(part_fact "$2" corpus)
  set_manifest "$3"
}

# The quantiser of a domain's teacher.
domain_quantizer() {
  printf '%s/quantizers/%s' "$data_dir" "$1"
}

# field_store DOMAIN PART SET: the tokens that the domain's teacher gave a set.
field_store() {
  printf '%s/tokens/%s/%s-%s' "$data_dir" "$1" "$2" "$3"
}
