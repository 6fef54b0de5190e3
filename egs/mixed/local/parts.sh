# shellcheck shell=bash
# What prepare.sh and run.sh do with the parts of the mixture (source it after stages.sh and corpus.sh).
# shellcheck disable=SC2154,SC2153 # parts comes from corpus.sh, the options from parse_options.sh
# shellcheck disable=SC2034 # domains, domain and set are for the scripts and the actions

# There is one teacher for each domain, so the domains name the teachers, their quantisers and their tokens.
domains="speech audio"

# for_parts ACTION ARGS...: the action for every part, which sees its facts as $part, $domain and $recipe.
for_parts() {
  local line part domain recipe
  for line in "${parts[@]}"; do
    read -r part domain recipe <<<"$line"
    "$@"
  done
}

# for_sets ACTION ARGS...: the action for every set of every part, which sees $set beside them.
for_sets() {
  for_parts _for_sets_of_part "$@"
}
_for_sets_of_part() {
  local set
  for set in $token_sets; do "$@"; done
}

# option_of NAME OPTION: the value of the option --NAME-OPTION.
option_of() {
  local option=$1_$2
  printf '%s' "${!option}"
}

# fact_of RECIPE NAME: a fact of the part's own recipe.
fact_of() (
  # shellcheck source=/dev/null
  source "../$1/local/corpus.sh"
  printf '%s' "${!2}"
)

# own_manifest SET: the manifest that the recipe of this part made.
own_manifest() {
  local data_dir=$data_dir/$part corpus
  corpus=$(fact_of "$recipe" corpus)
  set_manifest "$1"
}

# quantizer_of TEACHER
quantizer_of() {
  printf '%s/quantizers/%s' "$data_dir" "$1"
}

# store_of TEACHER PART SET: its tokens of a set.
store_of() {
  printf '%s/tokens/%s/%s-%s' "$data_dir" "$1" "$2" "$3"
}
