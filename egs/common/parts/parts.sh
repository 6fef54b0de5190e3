# shellcheck shell=bash
# What prepare.sh and run.sh do with the parts of the mixture (source it after ../stages.sh and the recipe's corpus.sh).
# shellcheck disable=SC2154,SC2153 # parts comes from corpus.sh, the options from parse_options.sh
# shellcheck disable=SC2034 # domains, domain and set are for the scripts and the actions

# There is one teacher for each domain, so the domains name the teachers, their quantisers and their tokens.
domains="speech audio"

# for_parts ACTION ARGS...: the action for every part of --group (of every group before the options are parsed), which
# sees its facts as $part, $domain and $recipe.
for_parts() {
  local line part domain recipe in_groups
  for line in "${parts[@]}"; do
    read -r part domain recipe in_groups <<<"$line"
    if [[ -n ${group:-} && ,${in_groups:-small}, != *",$group,"* ]]; then continue; fi
    "$@"
  done
}

# choose_group: after the options are parsed, domains is what the parts of --group have; of one domain alone each cut is
# trained on that domain's teacher.
choose_group() {
  local found="" each kept=""
  for_parts note_domain
  for each in $domains; do
    if [[ " $found " == *" $each "* ]]; then kept+=${kept:+ }$each; fi
  done
  domains=$kept
  if [[ -z $domains ]]; then usage_error "--group $group: no part of local/corpus.sh is in it; the groups are ${groups//|/, }"; fi
  if [[ $domains != *" "* ]]; then
    if option_given strategy; then usage_error "--strategy is for two teachers, --group $group has $domains alone"; fi
    strategy=single
  fi
}
note_domain() { found+=" $domain"; }

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

# fact_of RECIPE NAME: a fact of the part's own recipe. A corpus without one ends with the encoder.
fact_of() (
  if [[ $1 == - ]]; then
    corpus=$part finetune=none
    printf '%s' "${!2}"
    return
  fi
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
