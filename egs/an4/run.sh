#!/usr/bin/env bash
# The stages of ../common/run.sh, with the facts of local/corpus.sh.
set -euo pipefail
# shellcheck source=../common/run.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common/run.sh"
