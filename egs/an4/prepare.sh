#!/usr/bin/env bash
# The stages of ../common/prepare.sh, with the facts of local/corpus.sh.
set -euo pipefail
# shellcheck source=../common/prepare.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common/prepare.sh"
