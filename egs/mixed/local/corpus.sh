# shellcheck shell=bash
# The facts about the mixture: all that prepare.sh and run.sh know of it. A third corpus is one more line in parts.
# shellcheck disable=SC2034,SC2154 # the variables are for the scripts that source this file, domains is theirs

# Name in the file names: data/manifests/<corpus>_cuts_<part>-<set>.jsonl.gz
corpus=mixed
report_title="SPEAR on speech and sounds"
# The parts: name, domain (speech or audio), recipe, and the groups (--group) that hold it; without groups: small. A
# part is the data folder of another recipe; one whose recipe is "-" is a corpus that local/prepare_part.py reads by the
# part's name. The groups beside small are those of the paper's Tables 1 and 2. The quantiser of a domain is trained on
# the part that has the domain's name, or given.
parts=(
  "speech speech librispeech small"
  "audio audio audioset small,audio-13k,sa-97k,sa-197k"
  "libriheavy speech - speech-84k,sa-97k,sa-197k"
  "gigaspeech speech - speech-84k,sa-97k,sa-197k"
  "voxpopuli speech - speech-84k,sa-97k,sa-197k"
  "yodas_granary speech - sa-197k"
  "vggsound audio - audio-13k,sa-97k,sa-197k"
  "freesound audio - audio-13k,sa-97k,sa-197k"
  "music4all audio - audio-13k,sa-97k,sa-197k"
  "mtg_jamendo audio - audio-13k,sa-97k,sa-197k"
)
groups="small|speech-84k|audio-13k|sa-97k|sa-197k"
# Sets of every part with tokens; pre-training validates on the second.
token_sets="train dev"
# Whose embeddings are quantised unless --speech-teacher and --audio-teacher say otherwise: different ones in any
# case, here by the frame rate and context that conf/quantizer gives them.
default_speech_teacher=spectral
default_audio_teacher=spectral

# part_facts CONF: more options of local/prepare_part.py for a size.
part_facts() { part_options=(); }

# repeats_of PART CONF: how often an epoch takes the part. AudioSet three times beside speech (reference); the synthesised
# parts are as long as each other.
repeats_of() {
  case $1:$2:$domains in
    audio:mini:* | audio:tiny:*) printf 1 ;;
    audio:*:*speech*) printf 3 ;;
    *) printf 1 ;;
  esac
}

# conf_of_parts CONF: the size of everything that the parts' own recipes do (stages 0 to 2, 7, 12 and 13).
conf_of_parts() {
  case $1 in
    xlarge) printf large ;; # the fine-tuned heads of the paper's Large and XLarge are the same
    *) printf '%s' "$1" ;;
  esac
}
