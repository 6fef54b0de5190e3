# shellcheck shell=bash
# The facts about the digit strings: all that prepare.sh and run.sh know of them.
# shellcheck disable=SC2034 # the variables are for the scripts that source this file

# The speaker who is heard in testing only, never in pre-training, quantiser training or fine-tuning: jackson, nicolas,
# theo or yweweler. Give each a --data-dir and an --exp-dir of its own (tools/studies/digits_all_speakers.sh does).
held_out_speaker=${DIGITS_HELD_OUT_SPEAKER:-theo}

# Name in the file names: data/manifests/<corpus>_cuts_<set>.jsonl.gz
corpus=digits
report_title="SPEAR on spoken digits, $held_out_speaker held out"
# Sets with tokens; pre-training validates on the second.
token_sets="train dev"
# Sets to decode beside dev.
test_sets="test-$held_out_speaker"
# The probes need dev and test sets with several speakers who are not in train: there are four speakers in all.
probe=false
# Whose embeddings are quantised unless --teacher says otherwise.
default_teacher=spectral

# Facts that depend on the size: corpus_facts CONF (mini, tiny).
corpus_facts() {
  # Text units: BPE pieces of ten words.
  num_units=30
  # Options of local/prepare_corpus.py, which makes the strings.
  corpus_options=(--held-out-speaker "$held_out_speaker")
  if [[ $1 == tiny ]]; then corpus_options+=(--size tiny); fi
}
