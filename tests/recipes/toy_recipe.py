"""A recipe of three stages on text files, run through the real egs/common, to test the stage contract."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

SCRIPT = r"""#!/usr/bin/env bash
# A toy: words to a sentence.
#
#   0 words   1 sentence   2 length

set -euo pipefail
caller_dir=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
source ../common/parse_options.sh
source ../common/stages.sh

option stage 0 "First stage to run" int
option stop_stage 2 "Last stage to run" int
option data_dir data "Where it goes" path
option exp_dir exp "Where run.sh writes" path
option word hello "What to say"
option count 2 "How often" int
option polite true "Say please" bool
option size small "How large" "small|large"
option conf conf/plain.yaml "Configuration"
option trouble "" "What goes wrong, for tests"
option part "" "Only this part of stage 1"
parse_options "$@"
check_stage_range 0 2
letters=(a b)
name=mine probe=mine status=mine number=mine metrics=mine description=mine
if [[ $size == large ]]; then letters=(a b c); fi
find_python

stage_0() {
  mkdir -p "$data_dir"
  if [[ $trouble == fail ]]; then
    false
    printf 'must not be reached\n' >"$data_dir/after-failure"
  fi
  printf '%s\n' "$word" >"$data_dir/words.txt"
  printf '%s ' "$name" "$probe" "$status" "$number" "$metrics" "$description" >"$data_dir/variables.txt"
  printf '{"id": "words-of-%s"}\n' "$word" >"$data_dir/words.json"
  printf '{"peak_memory_mb": 12.5}\n{"peak_memory_mb": 40.0}\n' >>"$SPEAR_STAGE_METRICS"
}
stage_1() {
  printf 'ran\n' >>"$data_dir/runs.txt"
  if [[ -z $part ]]; then cat "$data_dir/words.txt" >"$data_dir/sentence.txt"; fi
  if [[ $trouble == die ]]; then kill -9 $$; fi
  if [[ $trouble == wait ]]; then
    touch "$data_dir/waiting"
    sleep 60
  fi
  if [[ $trouble == preempted ]]; then return 75; fi
  if [[ $trouble == empty ]]; then : >"$data_dir/sentence.txt"; fi
}
stage_2() {
  wc -c <"$data_dir/sentence.txt" >"$data_dir/length.txt"
}

if [[ $trouble == conditional ]]; then
  if run_stage 0 words stage_0; then echo reached; fi
fi
run_stage 0 words stage_0 --options word --leaves "$data_dir/words.txt" \
  --identity "words=$data_dir/words.json:id"
run_stage 1 sentence stage_1 --after 0 --options "count polite" --config "$conf" \
  --leaves "$data_dir/sentence.txt" --part "$part"
run_stage 2 length stage_2 --after 1 --options letters --leaves "$data_dir/length.txt"
echo all-done
"""


class ToyRecipe:
    """egs/toy beside a copy of egs/common."""

    def __init__(self, folder: Path) -> None:
        self.recipe = folder / "egs" / "toy"
        shutil.copytree(REPOSITORY / "egs" / "common", folder / "egs" / "common")
        (self.recipe / "conf").mkdir(parents=True)
        self.write_conf("plain", "grammar:\n  tense: past\nvoice: active\n")
        self.script = self.recipe / "prepare.sh"
        self.script.write_text(SCRIPT, encoding="utf-8")
        self.script.chmod(0o755)
        self.done = self.recipe / "data" / ".done"

    def write_conf(self, name: str, text: str) -> None:
        (self.recipe / "conf" / f"{name}.yaml").write_text(text, encoding="utf-8")

    def environment(self, **changes: str) -> dict[str, str]:
        return {**os.environ, "PYTHON": sys.executable, **changes}

    def run(
        self, *arguments: str, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess:
        return subprocess.run(
            [str(self.script), *arguments],
            cwd=cwd or self.recipe,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            timeout=60,
        )

    def succeed(self, *arguments: str, **keywords) -> str:
        result = self.run(*arguments, **keywords)
        assert result.returncode == 0, result.stderr
        return result.stdout + result.stderr

    def refuse(self, *arguments: str, **keywords) -> str:
        result = self.run(*arguments, **keywords)
        assert result.returncode in (1, 2), result
        assert "all-done" not in result.stdout
        return result.stderr
