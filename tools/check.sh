#!/usr/bin/env bash
# Everything that must hold before a change is merged: ruff, shellcheck, the quick tests, drawn inputs for 30 s, and one
# tiny recipe from an empty folder to a word error rate through the real scripts. All checks run; the last line counts them.
set -euo pipefail

# shellcheck source=environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
# shellcheck source=checks.sh
source "$repository/tools/checks.sh"

if (($# > 0)); then fail "unexpected argument '$1': tools/check.sh takes none"; fi

ensure_environment
cd "$repository"
run_check "ruff check" ruff check .
run_check "ruff format" ruff format --check .
run_check "shellcheck" check_shell_scripts
run_check "quick tests" quick_tests
run_check "fuzz" fuzz 30 0
run_check "tiny recipe" tiny_recipe
finish_checks
