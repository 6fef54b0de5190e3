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
# What local/stages.sh measures (stage 13); a change is noticed when the stage is run again.
evaluation_tasks="esc10 an4-speakers timit-speakers timit-phones ami-overlap"
stage_facts=([13]="evaluation_tasks")

# repeats_of PART CONF: how often an epoch takes the part. There are 49 minutes of speech and 32 of sounds.
repeats_of() { printf 1; }

# conf_of_parts CONF: the size of what the parts' own recipes do; these have none.
conf_of_parts() { printf '%s' "$1"; }
