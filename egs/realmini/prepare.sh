#!/usr/bin/env bash
# The stages of ../common/parts/prepare.sh, with the facts of local/corpus.sh.
set -euo pipefail
# shellcheck source=../common/parts/prepare.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common/parts/prepare.sh"
