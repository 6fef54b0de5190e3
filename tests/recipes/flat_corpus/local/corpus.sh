# shellcheck shell=bash
# The facts about a corpus that is one flat folder of wav files with texts.csv (file,speaker,set,text).
# shellcheck disable=SC2034 # the variables are for the scripts that source this file

corpus=flat
report_title="SPEAR on a flat folder"
token_sets="train dev"
test_sets="exam"
probe=false
default_teacher=spectral

corpus_facts() {
  num_units=30
  corpus_options=()
}
