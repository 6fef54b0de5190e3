"""evaluate_abx and evaluate_units on a made-up corpus: encoders, layers, token stores, resuming, errors."""

import json
import logging

import pytest
from phone_corpus import write_corpus, write_encoder

from spear_lib.bin import evaluate_abx, evaluate_units


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = write_corpus(tmp_path_factory.mktemp("corpus"))
    write_encoder(folder / "encoder")
    return folder


def options(corpus, output, **more):
    given = {
        "alignments": f"[{corpus / 'phones.tsv'}]",
        "audio": f"[{corpus / 'audio'}]",
        "output_dir": str(output),
        "device": "cpu",
        "num_seeds": 2,
        **more,
    }
    return [f"--{name}={value}" for name, value in given.items()]


def results(output):
    return json.loads((output / "results.json").read_text())


def test_abx_of_encoders_and_baselines(corpus, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    given = options(
        corpus, tmp_path, encoders=f"[ours={corpus / 'encoder'}]", layers="all", context="[any,within]"
    )
    evaluate_abx.main(given)
    content = results(tmp_path)
    assert content["kind"] == "abx" and set(content["results"]) == {"ours", "random weights", "log-mel"}
    for name, tasks in content["results"].items():
        assert set(tasks) == {
            f"{s} speaker, {c} context" for s in ("within", "across") for c in ("same", "any")
        }
        for task in tasks.values():
            # Four layers and the output; of log-mels there is one.
            assert len(task["errors"]) == (1 if name == "log-mel" else 5)
            assert task["mean"] == min(task["errors"]) == task["errors"][task["best_state"]]
            assert task["items"] and task["cells"] and task["too_short"] == 0
    assert content["results"]["log-mel"]["across speaker, any context"]["mean"] < 10
    caplog.clear()
    evaluate_abx.main(given)
    assert caplog.text.count("measured before") == 12 and results(tmp_path)["results"] == content["results"]


def test_abx_of_tokens(corpus, tmp_path):
    given = options(
        corpus, tmp_path, stores=f"[toy={corpus / 'tokens'}]", audio=f"[{corpus / 'cuts.jsonl.gz'}]"
    )
    evaluate_abx.main([*given, "--context=[any]", f"--speakers={corpus / 'speakers.tsv'}"])
    found = results(tmp_path)["results"]
    assert set(found) == {"toy", *(f"toy, codebook {n}" for n in range(4))}
    errors = {name: tasks["within speaker, any context"]["mean"] for name, tasks in found.items()}
    assert errors["toy, codebook 0"] == 0.0 < errors["toy"] < 30.0
    assert all(20 < errors[f"toy, codebook {n}"] < 80 for n in (1, 2, 3))


def test_units_of_tokens_and_encoders(corpus, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    given = options(
        corpus,
        tmp_path,
        stores=f"[toy={corpus / 'tokens'}]",
        audio=f"[{corpus / 'cuts.jsonl.gz'}]",
        encoders=f"[ours={corpus / 'encoder'}]",
        num_clusters=8,
    )
    evaluate_units.main(given)
    found = {name: tasks["unit quality"] for name, tasks in results(tmp_path)["results"].items()}
    assert set(found) == {"toy", "ours", "random weights", "log-mel"}
    values = found["toy"]["values"]
    assert len(values) == 4 and values[0] > 0.7 > 0.2 > max(values[1:])
    assert found["toy"]["mean"] == pytest.approx(sum(values) / 4)
    assert found["log-mel"]["mean"] > 0.5 and len(found["log-mel"]["quality"]) == 2
    for task in found.values():
        for quality in task["quality"]:
            assert quality["seconds"] == pytest.approx(6.0) and quality["frames"] == 3 * 190
    caplog.clear()
    evaluate_units.main(given)
    assert caplog.text.count("measured before") == 4
    evaluate_units.main([*given, "--num_clusters=6"])
    assert caplog.text.count("measured again, as num_clusters changed") == 3


def test_what_is_wrong_is_said(corpus, tmp_path):
    with pytest.raises(ValueError, match=r"3 files of the alignments have no audio, for example 'ann-one'"):
        one = corpus / "audio" / "ann" / "one.wav"
        evaluate_abx.main(options(corpus, tmp_path, encoders="[log-mel]", audio=f"[{one}]"))
    for command in (evaluate_abx, evaluate_units):
        with pytest.raises(SystemExit):
            command.main(options(corpus, tmp_path))  # nothing to measure
        with pytest.raises(SystemExit):
            command.main(options(corpus, tmp_path, encoders="[log-mel]", layers="concat"))
    with pytest.raises(ValueError, match="lower num_clusters"):
        evaluate_units.main(options(corpus, tmp_path, encoders="[log-mel]", num_clusters=1000))
    evaluate_units.main(options(corpus, tmp_path, encoders="[log-mel]", num_clusters=4))
    with pytest.raises(ValueError, match=r"holds results of 'units', not of 'abx'"):
        evaluate_abx.main(options(corpus, tmp_path, encoders="[log-mel]"))


def test_numbers_of_layers(corpus, tmp_path, caplog):
    """The best of those that were asked for, by the number that it has in the encoder."""
    caplog.set_level(logging.INFO)
    given = options(corpus, tmp_path, encoders=f"[ours={corpus / 'encoder'}]", baselines="false")
    evaluate_abx.main([*given, "--layers", "all", "--output_dir", str(tmp_path / "all")])
    evaluate_abx.main([*given, "--layers", "1,3", "--output_dir", str(tmp_path / "some")])
    every = json.loads((tmp_path / "all" / "results.json").read_text())["results"]["ours"]
    some = json.loads((tmp_path / "some" / "results.json").read_text())["results"]["ours"]
    for task, result in some.items():
        assert result["errors"] == [every[task]["errors"][state] for state in (1, 3)]
        assert f"{result['mean']:.2f} (state {(1, 3)[result['best_state']]})" in caplog.text
    with pytest.raises(ValueError, match=r"layers is '1,x': .* or numbers of layers \(3 or 3,6,9\)"):
        evaluate_abx.main([*given, "--layers", "1,x", "--output_dir", str(tmp_path / "wrong")])
