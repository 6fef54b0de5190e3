#!/usr/bin/env bash
# The stages of ../common/run.sh, with the facts of local/corpus.sh.
# shellcheck source=../common/run.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common/run.sh"
