#!/usr/bin/env bash
# tools/check.sh and what takes longer: the slow tests (kill and rerun, copied recipes) and the whole mini recipes.
set -euo pipefail

# shellcheck source=environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
# shellcheck source=checks.sh
source "$repository/tools/checks.sh"

if (($# > 0)); then fail "unexpected argument '$1': tools/check_full.sh takes none"; fi

ensure_environment
cd "$repository"
run_check "ruff check" ruff check .
run_check "ruff format" ruff format --check .
run_check "shellcheck" check_shell_scripts
run_check "quick tests" quick_tests
run_check "slow tests" slow_tests
run_check "tiny recipe" tiny_recipe
run_check "mini recipe" mini_recipe
run_check "mini recipe of sounds" mini_audioset
run_check "mini recipe of both" mini_mixed
finish_checks
