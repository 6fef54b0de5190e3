"""Time of the batched beam searches beside simple ones that go utterance by utterance, in one process.

    python tools/benchmarks/search.py
    python tools/benchmarks/search.py --utterances 32 --seconds 10 --beam 4 --units 500 --device cuda

`simple` is the search as one writes it down from its definition: a Python loop over utterances, frames and
hypotheses, prefixes as tuples in a dictionary. `by frame` is the same with one call of the transducer's
decoder and joiner per frame, for the whole beam of the utterance (icefall's unbatched search). All must find
the same transcripts, or there is nothing to compare. The model is a random one of the published size (decoder
and joiner 512 wide), made to write a few units per second. The searches alternate; the ratio of their times
(CPU time; on a GPU wall time) is formed in each round, its median printed.

--record NAME leaves what is printed in docs/results for RESULTS.md.
"""

import argparse
import math
import statistics
import time

import torch
from recording import recorded

from spear_lib.asr.ctc_search import ctc_prefix_beam_search
from spear_lib.asr.lattice_search import lattice_beam_search
from spear_lib.asr.model import AsrModel, TransducerConfig
from spear_lib.asr.search import modified_beam_search

FRAMES_PER_SECOND = 50


def _logadd(first: float, second: float) -> float:
    high, low = max(first, second), min(first, second)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


@torch.no_grad()
def simple_transducer_search(
    model, encoder_out, lengths, beam: int, by_frame: bool = False
) -> list[list[int]]:
    """Modified beam search, one utterance after the other -> unit ids; by_frame: one call per beam."""
    results = []
    for frames, length in zip(encoder_out, lengths.tolist()):
        hypotheses: dict[tuple[int, ...], float] = {(): 0.0}
        for frame in frames[:length]:
            prefixes = list(hypotheses)
            contexts = torch.tensor([([-1, 0, *prefix])[-2:] for prefix in prefixes], device=frames.device)
            parts = [contexts] if by_frame else contexts.split(1)
            logits = torch.cat([_logits(model, frame, part) for part in parts])
            scores = torch.tensor([hypotheses[prefix] for prefix in prefixes], device=frames.device)
            table = logits.float().log_softmax(1) + scores[:, None]
            best = table.flatten().topk(min(beam, table.numel()))
            hypotheses = {}
            for score, index in zip(best.values.tolist(), best.indices.tolist()):
                place, unit = divmod(index, table.shape[1])
                prefix = prefixes[place] if unit == 0 else (*prefixes[place], unit)
                hypotheses[prefix] = _logadd(hypotheses.get(prefix, -math.inf), score)
        results.append(list(max(hypotheses, key=lambda prefix: hypotheses[prefix] / (len(prefix) + 2))))
    return results


@torch.no_grad()
def simple_lattice_search(model, encoder_out, lengths, beam: int, max_units: int) -> list[list[int]]:
    """Beam search in which only blank takes a frame, one utterance after the other -> unit ids."""
    results = []
    for frames, length in zip(encoder_out, lengths.tolist()):
        hypotheses: dict[tuple[int, ...], float] = {(): 0.0}
        for frame in frames[:length]:
            emitting, ended = list(hypotheses.items()), {}
            for _ in range(max_units + 1):
                grown = []
                for prefix, score in emitting:
                    context = torch.tensor([([-1, 0, *prefix])[-2:]], device=frame.device)
                    row = (_logits(model, frame, context)[0].float().log_softmax(0) + score).tolist()
                    ended[prefix] = _logadd(ended.get(prefix, -math.inf), row[0])
                    grown += [((*prefix, unit), row[unit]) for unit in range(1, len(row))]
                ended = dict(sorted(ended.items(), key=lambda item: -item[1])[:beam])
                worst = min(ended.values()) if len(ended) == beam else -math.inf
                grown = sorted(grown, key=lambda item: -item[1])[:beam]
                emitting = [item for item in grown if item[1] > worst]
            hypotheses = ended
        results.append(list(max(hypotheses, key=lambda prefix: hypotheses[prefix])))
    return results


def _logits(model, frame, contexts):
    decoded = model.decoder(contexts, pad=False)[:, 0]
    return model.joiner(frame.expand(len(contexts), -1), decoded)


def simple_ctc_search(log_probs, lengths, beam: int) -> list[list[int]]:
    """Prefix beam search, one utterance after the other -> unit ids."""
    results = []
    for table, length in zip(log_probs.tolist(), lengths.tolist()):
        # Prefix -> log-probabilities of its alignments that end in blank and in its last unit.
        hypotheses = {(): (0.0, -math.inf)}
        for frame in table[:length]:
            grown: dict[tuple[int, ...], tuple[float, float]] = {}

            def add(prefix, blank=-math.inf, unit=-math.inf, grown=grown):
                old = grown.get(prefix, (-math.inf, -math.inf))
                grown[prefix] = (_logadd(old[0], blank), _logadd(old[1], unit))

            for prefix, (blank, unit) in hypotheses.items():
                total = _logadd(blank, unit)
                add(prefix, blank=total + frame[0])
                for index in range(1, len(frame)):
                    if prefix and index == prefix[-1]:
                        add(prefix, unit=unit + frame[index])
                        add((*prefix, index), unit=blank + frame[index])
                    else:
                        add((*prefix, index), unit=total + frame[index])
            best = sorted(grown, key=lambda prefix: -_logadd(*grown[prefix]))[:beam]
            hypotheses = {prefix: grown[prefix] for prefix in best}
        results.append(list(max(hypotheses, key=lambda prefix: _logadd(*hypotheses[prefix]))))
    return results


def make_model(units: int, width: int, seed: int = 0) -> AsrModel:
    """A random model with both heads that writes blank in most frames."""
    torch.manual_seed(seed)
    config = TransducerConfig(decoder_dim=width, joiner_dim=width, ctc_loss_scale=1.0)
    model = AsrModel(None, config, units, width)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # several hypotheses compete
        for bias in (model.joiner.output_linear.bias, model.ctc_output.bias):
            bias[0] += 4.0
    return model.eval()


def make_batch(
    utterances: int, seconds: float, encoder_dim: int, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encoder output (B, T, E) of utterances of half of ``seconds`` to ``seconds``, and lengths (B,)."""
    generator = torch.Generator().manual_seed(1)
    longest = round(seconds * FRAMES_PER_SECOND)
    lengths = torch.linspace(longest / 2, longest, utterances).long().clamp(min=1)
    encoder_out = torch.randn(utterances, int(lengths.max()), encoder_dim, generator=generator)
    return encoder_out.to(device), lengths


def compare(name: str, simple, batched, rounds: int, device: str) -> float:
    """Prints times and the median ratio of ``rounds`` rounds; returns the ratio."""
    # On a CPU the process's own time: other work on the machine does not count.
    clock = time.perf_counter if device.startswith("cuda") else time.process_time
    times: dict[str, list[float]] = {"simple": [], "batched": []}
    ratios = []
    for _ in range(rounds):
        found = {}
        for label, search in (("simple", simple), ("batched", batched)):
            started = clock()
            found[label] = search()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            times[label].append(clock() - started)
        ratios.append(times["simple"][-1] / times["batched"][-1])
    same = sum(first == second for first, second in zip(found["simple"], found["batched"]))
    if same != len(found["simple"]):
        raise RuntimeError(
            f"{name}: {len(found['simple']) - same} of {len(found['simple'])} transcripts differ"
        )
    simple_ms, batched_ms = (1000 * statistics.median(times[label]) for label in ("simple", "batched"))
    ratio = statistics.median(ratios)
    units = sum(map(len, found["simple"]))
    print(
        f"{name:<12} simple {simple_ms:8.0f} ms, batched {batched_ms:8.0f} ms, {ratio:6.1f} times faster "
        f"({min(ratios):.1f} to {max(ratios):.1f}); {same} of {same} transcripts equal, {units} units"
    )
    return ratio


@recorded("random logits")
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--utterances", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=8.0, help="of the longest utterance")
    parser.add_argument("--beam", type=int, default=4, help="of the transducer")
    parser.add_argument("--units-per-frame", type=int, default=3, help="of the transducer's lattice search")
    parser.add_argument("--ctc-beam", type=int, default=20)
    parser.add_argument("--units", type=int, default=500, help="of the transducer; CTC has 29 characters")
    parser.add_argument("--width", type=int, default=512, help="channels of encoder, decoder and joiner")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args(argv)
    encoder_out, lengths = make_batch(
        arguments.utterances, arguments.seconds, arguments.width, arguments.device
    )
    print(
        f"{arguments.utterances} utterances, {float(lengths.sum()) / FRAMES_PER_SECOND:.0f} s of audio at "
        f"{FRAMES_PER_SECOND} frames/s, {arguments.device}, {torch.get_num_threads()} thread(s), "
        f"torch {torch.__version__}, median of {arguments.rounds} rounds"
    )
    model = make_model(arguments.units, arguments.width).to(arguments.device)
    for name, by_frame in ((f"transducer {arguments.beam}", False), ("  by frame", True)):
        compare(
            name,
            lambda by_frame=by_frame: simple_transducer_search(
                model, encoder_out, lengths, arguments.beam, by_frame
            ),
            lambda: [h.ids for h in modified_beam_search(model, encoder_out, lengths, arguments.beam)],
            arguments.rounds,
            arguments.device,
        )
    compare(
        f"lattice {arguments.beam}",
        lambda: simple_lattice_search(model, encoder_out, lengths, arguments.beam, arguments.units_per_frame),
        lambda: [
            h.ids
            for h in lattice_beam_search(
                model, encoder_out, lengths, arguments.beam, arguments.units_per_frame
            )
        ],
        arguments.rounds,
        arguments.device,
    )
    log_probs = make_model(29, arguments.width).to(arguments.device).ctc_log_probs(encoder_out).detach()
    compare(
        f"CTC {arguments.ctc_beam}",
        lambda: simple_ctc_search(log_probs, lengths, arguments.ctc_beam),
        lambda: [
            h.ids for h in ctc_prefix_beam_search(log_probs, lengths, arguments.ctc_beam, beam_threshold=1e6)
        ],
        arguments.rounds,
        arguments.device,
    )


if __name__ == "__main__":
    main()
