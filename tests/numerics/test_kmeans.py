"""k-means: nearest centres, identity and storage, and the quality of its training beside scikit-learn's."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from spear_lib.quantization import KMeans, load_tokeniser
from spear_lib.quantization.embeddings import StoredFrames, statistics
from spear_lib.quantization.kmeans_trainer import KMeansOptions, plus_plus, train_kmeans


def small(num_clusters: int = 5, dim: int = 3) -> KMeans:
    torch.manual_seed(0)
    result = KMeans(dim, num_clusters)
    result.centers.copy_(torch.randn(num_clusters, dim))
    result.mean.copy_(torch.randn(dim))
    result.std.copy_(torch.rand(dim) + 0.5)
    return result


@pytest.mark.parametrize("num_clusters, dtype", [(256, torch.uint8), (257, torch.uint16)])
def test_codes_are_the_nearest_centres(num_clusters, dtype):
    tokeniser, x = small(num_clusters), torch.randn(4, 50, 3)
    codes = tokeniser.encode(x, 5)
    normalised = (x.double() - tokeniser.mean) / tokeniser.std
    expected = torch.cdist(normalised, tokeniser.centers.double().expand(4, -1, -1)).argmin(-1, keepdim=True)
    assert codes.dtype == dtype and codes.shape == (4, 50, 1)
    assert torch.equal(codes.long(), expected)
    decoded = tokeniser.decode(codes)
    wanted = tokeniser.centers[expected.squeeze(-1)] * tokeniser.std + tokeniser.mean
    torch.testing.assert_close(decoded, wanted)
    assert torch.equal(tokeniser.encode(x, memory_budget_mb=0).long(), expected)
    again = tokeniser.encode(tokeniser.normalise(x), normalised=True)
    assert torch.equal(again.long(), expected)


def test_a_file_gives_back_the_same_tokeniser(tmp_path):
    tokeniser = small()
    tokeniser.provenance = {"teacher": {"teacher_id": "t"}}
    file = tokeniser.save(tmp_path)
    again = load_tokeniser(tmp_path)
    assert isinstance(again, KMeans) and again.id == tokeniser.id and again.provenance == tokeniser.provenance
    assert (again.field_suffix, again.num_codebooks) == ("km5", 1)
    assert again.save(tmp_path / "copy").read_bytes() == file.read_bytes()
    state = {**tokeniser.state_dict(), "centers": tokeniser.centers + 1}
    facts = {"format": "spear_lib.quantizer.1", "kind": "kmeans", "dim": 3, "codebook_size": 5}
    facts |= {"id": tokeniser.id, "provenance": {}}
    save_file(state, file, metadata={"quantizer": json.dumps(facts)})
    with pytest.raises(ValueError, match="the tensors hash to .* was changed or damaged"):
        load_tokeniser(tmp_path)
    save_file(state, file, metadata={"quantizer": json.dumps({**facts, "kind": "tree"})})
    with pytest.raises(ValueError, match="of kind 'tree'; this version knows mvq, kmeans"):
        load_tokeniser(tmp_path)


def test_wrong_input_is_explained():
    tokeniser = small()
    with pytest.raises(ValueError, match="embeddings have 4 channels but the k-means was trained for 3"):
        tokeniser.encode(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="NaN or infinity"):
        tokeniser.encode(torch.tensor([[0.0, float("inf"), 0.0]]))
    with pytest.raises(ValueError, match="codes have 2 codebooks but k-means has 1"):
        tokeniser.decode(torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="codebook_size is 70000: it must be in 2..65536"):
        KMeans(3, 70000)
    with pytest.raises(ValueError, match="normalisation is 'max': use none, channel, half or global"):
        KMeansOptions(normalisation="max")


def store(folder, frames: np.ndarray, per_shard: int = 700, per_cut: int = 50) -> StoredFrames:
    """Embeddings on disk as extract_embeddings leaves them."""
    shards = [frames[begin : begin + per_shard] for begin in range(0, len(frames), per_shard)]
    for number, shard in enumerate(shards):
        np.save(folder / f"shard-{number:05d}.npy", shard.astype(np.float16))
        counts = [len(shard[begin : begin + per_cut]) for begin in range(0, len(shard), per_cut)]
        ids = [f"cut-{number}-{row}" for row in range(len(counts))]
        index = {"ids": ids, "num_frames": counts}
        (folder / f"shard-{number:05d}.json").write_text(json.dumps(index))
    summary = {"teacher": {"embedding_dim": frames.shape[1]}, "num_shards": len(shards)}
    (folder / "embeddings.json").write_text(json.dumps(summary))
    return StoredFrames(folder, 0.1, 0)


def mixture(num_frames: int, num_groups: int, dim: int) -> np.ndarray:
    """Frames of a Gaussian mixture with unequal groups."""
    random = np.random.default_rng(0)
    groups = random.choice(num_groups, size=num_frames, p=random.dirichlet(np.ones(num_groups)))
    return (
        3 * random.standard_normal((num_groups, dim))[groups] + random.standard_normal((num_frames, dim))
    ).astype(np.float32)


@pytest.mark.parametrize("normalisation", ["none", "channel"])
def test_frames_are_read_once_in_order_and_normalised(tmp_path, normalisation):
    frames = mixture(2000, 6, 4) * np.float32([1, 2, 3, 4]) + 5
    stored = store(tmp_path, frames)
    assert sorted([*stored.train, *stored.held_out]) == list(range(2000))
    assert 0 < len(stored.held_out) < 500 and set(np.diff(stored.held_out)) != {1}
    read = torch.cat(list(stored.read(stored.train)))
    expected = torch.from_numpy(frames.astype(np.float16)).float()[stored.train]
    assert torch.equal(read, expected)
    options = KMeansOptions(8, normalisation, init_frames=500, passes=2)
    mean, std, _ = statistics(stored.read(stored.train), 4, normalisation)
    tokeniser, _ = train_kmeans(stored, mean, std, options, 0, tmp_path, "run")
    if normalisation == "channel":
        torch.testing.assert_close(tokeniser.mean, expected.mean(0), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(tokeniser.std, expected.std(0), atol=1e-2, rtol=1e-2)
    codes = tokeniser.encode(expected)[:, 0].long()
    shares = torch.bincount(codes, minlength=8) / len(codes)
    torch.testing.assert_close(shares, tokeniser.shares, atol=0.01, rtol=0)
    mean = tokeniser.normalise(expected).mean(0)
    torch.testing.assert_close(tokeniser.data_mean(), mean, atol=0.05, rtol=0.01)


def test_error_is_not_above_that_of_mini_batches(tmp_path):
    """Our passes against scikit-learn's MiniBatchKMeans that sees as many frames."""
    from sklearn.cluster import MiniBatchKMeans

    stored = store(tmp_path, mixture(6000, 40, 8))
    x = torch.cat(list(stored.read(stored.train)))
    options = KMeansOptions(40, init_frames=2000, init_iterations=5, passes=5)
    tokeniser, history = train_kmeans(stored, torch.zeros(8), torch.ones(8), options, 0, tmp_path, "run")
    ours = float((tokeniser.decode(tokeniser.encode(x)) - x).square().sum(1).mean())
    assert ours == pytest.approx(history[-1]["squared_error_per_frame"], rel=1e-4)
    peer = MiniBatchKMeans(40, batch_size=500, max_iter=7, n_init=1, random_state=0).fit(x.numpy())
    theirs = float(np.square(x.numpy() - peer.cluster_centers_[peer.predict(x.numpy())]).sum(1).mean())
    assert ours < 1.01 * theirs


def test_first_centres_are_spread():
    """k-means++ hits well separated groups that random frames would miss."""
    groups = torch.arange(20.0).repeat_interleave(10)[:, None] * 100
    rare = torch.cat([groups, torch.zeros(5000, 1)])
    assert len(set(plus_plus(rare, 20, 0).flatten().tolist())) == 20


def test_an_empty_cluster_restarts(tmp_path):
    """Two groups and two equal first centres: the idle one moves."""
    from spear_lib.quantization.kmeans_trainer import _accumulate, _moved

    x = torch.cat([torch.randn(50, 2), torch.randn(50, 2) + 20])
    centers = torch.tensor([[0.0, 0.0], [20.0, 20.0], [500.0, 500.0]])
    for number in range(3):
        sums, counts, _ = _accumulate([x], centers)
        centers = _moved(centers, sums, counts, 0, number)
    assert int((_accumulate([x], centers)[1] == 0).sum()) == 0


def test_damaged_embeddings_are_explained(tmp_path):
    with pytest.raises(ValueError, match="embeddings.json does not exist; run stage 3"):
        StoredFrames(tmp_path, 0.1, 0)
    frames = mixture(1000, 4, 4)
    frames[3, 1] = np.inf
    stored = store(tmp_path, frames)
    with pytest.raises(ValueError, match="holds values that float16 cannot"):
        list(stored.read(np.arange(1000)))
    (tmp_path / "shard-00001.json").unlink()
    with pytest.raises(ValueError, match="shard-00001.json is gone"):
        StoredFrames(tmp_path, 0.1, 0)
