# shellcheck shell=bash
# The facts about CMU AN4: all that prepare.sh and run.sh know of it.
# shellcheck disable=SC2034 # the variables are for the scripts that source this file

# Name in the file names: data/manifests/<corpus>_cuts_<set>.jsonl.gz
corpus=an4
report_title="SPEAR on CMU AN4"
# More unlabelled speech for pre-training, as folders of audio: manifest_options=(--more /corpora/fsdd --more ...).
manifest_options=()
# Sets with tokens; pre-training validates on the second.
token_sets="train dev"
# Sets to decode beside dev.
test_sets="test"
# The probes need dev and test sets with many utterances of several speakers who are not in train.
probe=false
# Whose embeddings are quantised unless --teacher says otherwise.
default_teacher=spectral

# Facts that depend on the size: corpus_facts CONF (mini, tiny).
corpus_facts() {
  # Text units: as many BPE pieces as ESPnet's example.
  num_units=30
  # Options of local/prepare_corpus.py.
  corpus_options=()
  if [[ $1 == tiny ]]; then
    num_units=36
    corpus_options=(--max-speakers 20)
  fi
}
