# shellcheck shell=bash
# The facts about the mixture of real recordings: all that prepare.sh and run.sh know of it. What each part is made of
# stands in local/recordings.py.
# shellcheck disable=SC2034 # the variables are for the scripts that source this file

# Name in the file names: data/manifests/<corpus>_cuts_<part>-<set>.jsonl.gz
corpus=realmini
report_title="SPEAR on real speech and sounds"
# The parts: name, domain (speech or audio), recipe (-: local/prepare_part.py reads it by its name). The quantiser of a
# domain is trained on the part that has the domain's name.
parts=(
  "speech speech -"
  "audio audio -"
)
groups="small"
# Sets of every part with tokens; pre-training validates on the second.
token_sets="train dev"
# Whose embeddings are quantised unless --speech-teacher and --audio-teacher say otherwise.
default_speech_teacher=spectral
default_audio_teacher=spectral
# What stage 13 asks the frozen encoder: tables of local/evaluation_tables.py; and of which of them one label is looked
# for (average precision) instead of all being told apart (accuracy).
evaluation_tasks="esc10 an4-speakers timit-speakers timit-phones ami-overlap"
declare -A positive_labels=([ami-overlap]=overlap)

# Facts that depend on the size: part_facts CONF (mini, tiny).
part_facts() {
  # More options of local/prepare_part.py, and of local/evaluation_tables.py.
  part_options=() table_options=()
  if [[ $1 == tiny ]]; then
    part_options=(--max-recordings 12)
    table_options=(--max-recordings 1)
    evaluation_tasks="esc10 ami-overlap"
  fi
}
# A change of these is noticed when the stage is run again.
stage_facts=([1]="part_options" [13]="evaluation_tasks table_options")

# repeats_of PART CONF: how often an epoch takes the part. There are 59 minutes of speech and 32 of sounds.
repeats_of() { printf 1; }

# conf_of_parts CONF: the size of what the parts' own recipes do; these have none.
conf_of_parts() { printf '%s' "$1"; }
