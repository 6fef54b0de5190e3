#!/usr/bin/env bash
# The stages of ../common/parts/run.sh, with the facts of local/corpus.sh.
set -euo pipefail
# shellcheck source=../common/parts/run.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common/parts/run.sh"
