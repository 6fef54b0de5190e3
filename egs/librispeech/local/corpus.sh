# shellcheck shell=bash
# The facts about LibriSpeech: all that prepare.sh and run.sh know of it. A recipe for another corpus edits this
# file, the Python beside it and conf/; nothing else.
# shellcheck disable=SC2034 # the variables are for the scripts that source this file

# Name in the file names: data/manifests/<corpus>_cuts_<set>.jsonl.gz
corpus=librispeech
report_title="SPEAR on LibriSpeech"
# Sets with tokens; pre-training validates on the second.
token_sets="train dev"
# Sets to decode beside dev.
test_sets="test-clean test-other"
# Probe the frozen features: needs dev and test sets whose speakers are not in train.
probe=true
# Whose embeddings are quantised unless --teacher says otherwise.
default_teacher=spectral

# The end of stage 0: the sets named above must be there, or stage 1 would find out after reading all audio.
# Mini LibriSpeech (openslr.org/31), for one, has no test sets.
check_corpus() {
  # shellcheck disable=SC2154 # the option of prepare.sh
  local folder=$data_dir/corpus/LibriSpeech set missing=""
  for set in $test_sets; do
    if [[ ! -d $folder/$set ]]; then missing+=${missing:+, }$set; fi
  done
  if [[ -z $missing ]]; then return 0; fi
  die "the corpus has no $missing: complete it, or edit local/corpus.sh: test_sets to those that are there" \
    "($(cd "$folder" && printf '%s ' */)are), where there are none probe to false, labelled_subsets to what it has"
}

# Facts that depend on the size: corpus_facts CONF (mini, base, large, tiny).
corpus_facts() {
  # Text units: BPE pieces of the labelled transcripts (500 in the paper's LS-100 and LS-960 recipes).
  num_units=500
  # Options of local/prepare_corpus.py, which synthesises the corpus of --mini true.
  corpus_options=()
  # The paper's LS-10 beside LS-100 (labelled) and LS-960 (train).
  labelled_subsets="labelled-10h=10"
  case $1 in
    mini)
      num_units=60
      labelled_subsets="labelled-6min=0.1"
      ;;
    tiny)
      num_units=50
      labelled_subsets="labelled-short=0.002"
      corpus_options=(--size tiny)
      ;;
  esac
}
