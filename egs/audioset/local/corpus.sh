# shellcheck shell=bash
# The facts about AudioSet: all that prepare.sh and run.sh know of it.
# shellcheck disable=SC2034 # the variables are for the scripts that source this file

# Name in the file names: data/manifests/<corpus>_cuts_<set>.jsonl.gz
corpus=audioset
report_title="SPEAR on AudioSet"
# More options of local/prepare_manifests.py: what may be missing, and whether every sample is decoded.
manifest_options=(--max-missing-fraction 0.3 --max-bad-fraction 0.01 --decode true)
# Sets with tokens; pre-training validates on the second.
token_sets="train dev"
# What fine-tuning may read the labels of: balanced_train (AS-20k); --labelled-set train is AS-2M.
labelled_set=balanced
# The quantiser hears every class about as often (reference: it is trained on the balanced part).
quantizer_set=balanced
# Sets to evaluate on beside dev.
test_sets="eval"
# Stages 12 to 14 learn to tag sounds with these classes.
finetune=tagging
# Probe the frozen features: which event classes does a clip hold.
probe=true
# Whose embeddings are quantised unless --teacher says otherwise.
default_teacher=spectral

# Facts that depend on the size: corpus_facts CONF (mini, base, large, tiny).
corpus_facts() {
  # Options of local/prepare_corpus.py, which synthesises the corpus of --mini true.
  corpus_options=()
  if [[ $1 == tiny ]]; then corpus_options=(--size tiny); fi
}
