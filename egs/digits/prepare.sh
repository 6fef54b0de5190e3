#!/usr/bin/env bash
# The stages of ../common/prepare.sh, with the facts of local/corpus.sh.
# shellcheck source=../common/prepare.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common/prepare.sh"
