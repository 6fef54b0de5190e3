# shellcheck shell=bash
# The facts about the mixture: all that prepare.sh and run.sh know of it. A third corpus is one more line in parts.
# shellcheck disable=SC2034 # the variables are for the scripts that source this file

# Name in the file names: data/manifests/<corpus>_cuts_<part>-<set>.jsonl.gz
corpus=mixed
report_title="SPEAR on speech and sounds"
# The parts, each a data folder of another recipe: name, domain (speech or audio) and recipe. The quantiser of a
# domain is trained on the part that has the domain's name.
parts=(
  "speech speech librispeech"
  "audio audio audioset"
)
# Sets of every part with tokens; pre-training validates on the second.
token_sets="train dev"
# Whose embeddings are quantised unless --speech-teacher and --audio-teacher say otherwise: different ones in any
# case, here by the frame rate and context that conf/quantizer gives them.
default_speech_teacher=spectral
default_audio_teacher=spectral

# conf_of_parts CONF: the size of everything that the parts' own recipes do (stages 0 to 2, 7, 12 and 13).
conf_of_parts() {
  case $1 in
    xlarge) printf large ;; # the fine-tuned heads of the paper's Large and XLarge are the same
    *) printf '%s' "$1" ;;
  esac
}
