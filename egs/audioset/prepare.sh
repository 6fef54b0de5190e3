#!/usr/bin/env bash
# Stages and options: ./prepare.sh --help. They stand in ../common/prepare.sh; what is of this corpus, in local/ and conf/.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common/prepare.sh"
