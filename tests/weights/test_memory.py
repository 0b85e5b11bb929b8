"""The memory that is stated before the work is the memory that the work takes."""

import fnmatch

import allocations
import pytest
import torch

from minids.config import Config
from minids.errors import MinidsError
from minids.model import moe
from minids.recipes import v4_sample
from minids.system.paths import DATA
from minids.weights import layout, memory, one_layer, streamed
from minids.weights.checkpoint import Checkpoint, Price

SAMPLE = DATA / "v4_sample"
FLASH, PRO = Config.flash(), Config.pro()
DTYPES = [torch.bfloat16, torch.float32]
# a layer of each kind, of Flash, of Pro and of the sample: (config, number of the layer)
LAYERS = {"Flash, window": (FLASH, 0), "Flash, CSA": (FLASH, 2), "Flash, HCA": (FLASH, 3),
          "Pro, CSA": (PRO, 2), "Pro, HCA": (PRO, 0),
          "sample, window": (v4_sample.CONFIG, 0), "sample, CSA": (v4_sample.CONFIG, 1)}


@pytest.fixture(autouse=True)
def sorted_tokens(monkeypatch):
    """A GPU computes all of a few experts at once, with more activations; V4 has many."""
    monkeypatch.setattr(moe, "ALL_AT_ONCE", 0, raising=False)


def few_experts(config):
    """With as many experts as a token takes. They work alike, so the activations are the same."""
    return config.replace(n_routed_experts=config.n_activated_experts)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("i", range(4))
def test_weights(i, dtype):
    """The count from the configuration is what the tensors take, here and in transformers; a GPU
    decodes all but the experts."""
    with Checkpoint(SAMPLE) as c:
        block = one_layer.read_layer(c, i, dtype=dtype)
        matrices = [m for m in block.modules() if getattr(m, "codes", None) is not None]
        packed = [t for m in matrices for t in (m.codes, m.scale)]
        size = lambda tensors: sum(t.nbytes for t in tensors)
        assert memory.weights(c, i, dtype) == size((*block.state_dict().values(), *packed))
        stored = size(c.raw(n) for n in c.names() if n.startswith(f"layers.{i}.")
                      and c.raw(n).dtype.itemsize == 1)
        assert size(packed) == stored == memory.stored(c, memory.packed_names(c, i, "cpu"))
        experts = size(c.raw(n) for n in c.names() if f"layers.{i}.ffn.experts." in n)
        assert experts == memory.stored(c, memory.packed_names(c, i, "cuda"))
        theirs, _ = one_layer.reference_layer(block)
        decoded = memory.weights(c, i, dtype, None)
        assert decoded == size(theirs.state_dict().values())


@pytest.mark.parametrize("T", [1, 300, 1024, 4096])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_activations(name, dtype, T):
    """What is stated is what the model's own code allocates, to a quarter."""
    compare(*LAYERS[name], T, dtype)


@pytest.mark.slow
def test_activations_where_queries_have_their_own_picks():
    compare(FLASH, 2, 20000, torch.bfloat16)


def compare(config, i, T, dtype):
    config = few_experts(config)
    counted = allocations.of_layer(config, i, T, dtype)
    counted = counted.peak - counted.weights
    stated = memory.activations(config, config.compress_ratios[i], T, dtype)
    assert abs(stated - counted) < 0.25 * counted + 50_000


@pytest.mark.slow
@pytest.mark.parametrize("config, dtype, goal", [
    (FLASH, torch.bfloat16, 5.0e9), (FLASH, torch.float32, 6.0e9),
    (PRO, torch.bfloat16, 16.2e9), (PRO, torch.float32, 18.5e9)])
def test_full_size_layers_with_4096_tokens(config, dtype, goal):
    """Below the goal, and within a tenth of what is stated."""
    for i in (2, 3):
        counted = allocations.of_layer(few_experts(config), i, 4096, dtype)
        weights = of_layout(config, i, dtype)
        counted = weights + counted.peak - counted.weights
        assert counted < goal
        activations = memory.activations(config, config.compress_ratios[i], 4096, dtype)
        assert 0.9 < (weights + activations) / counted < 1.1


@pytest.mark.slow
def test_a_full_size_layer_with_all_experts():
    """As it is, without the shortcut of `few_experts`."""
    counted = allocations.of_layer(FLASH, 2, 4096, torch.bfloat16)
    assert counted.weights == of_layout(FLASH, 2, torch.bfloat16)
    assert 4.5e9 < counted.peak < 5e9
    activations = memory.activations(FLASH, 4, 4096, torch.bfloat16)
    assert 0.95 < (counted.weights + activations) / counted.peak < 1.05


class Described:
    """A checkpoint in the released format, without files: names, types and shapes."""

    def __init__(self, config):
        self.config, self.inventory = config, layout.inventory(config)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def check(self):
        pass

    def find(self, pattern):
        return fnmatch.filter(self.inventory, pattern)

    def info(self, name):
        return self.inventory[name]

    def price(self, names):
        return Price(0, 0, 0, sum(layout.nbytes(self.inventory[name]) for name in names))


def of_layout(config, i, dtype):
    """The bytes of the weights of a layer in the released format."""
    return memory.weights(Described(config), i, dtype, "cuda")


@pytest.mark.slow(8)
@pytest.mark.parametrize("T, dtype, goal", [
    (2, torch.bfloat16, 10.5e9), (4096, torch.bfloat16, 11e9), (4096, torch.float32, 14.5e9)])
def test_a_pass_of_the_streamed_model(T, dtype, goal, monkeypatch):
    """Of three layers of Flash: two are in memory, so more of them take no more."""
    config = FLASH.replace(n_layers=3, compress_ratios=(4, 128, 4), n_hash_layers=1, n_mtp_layers=0)
    counted = allocations.of_report(config, T, dtype)
    monkeypatch.setattr(streamed, "Checkpoint", lambda path: Described(config))
    stated = streamed.memory_of_a_pass("Flash", T, dtype, "cuda")
    assert counted < goal and 0.95 < stated / counted < 1.05


def test_layers_that_are_not_alike(monkeypatch):
    """The two largest neighbours count, and the activations of any layer."""
    config = FLASH.replace(n_layers=4, compress_ratios=(0, 4, 128, 4), n_hash_layers=0,
                           n_mtp_layers=0)
    sizes = {}
    for ratios in ((0, 4, 128, 4), (0, 128, 0, 128), (0, 0, 0, 0)):
        changed = config.replace(compress_ratios=ratios)
        monkeypatch.setattr(streamed, "Checkpoint", lambda path: Described(changed))
        sizes[ratios] = streamed.memory_of_a_pass("Flash", 1, torch.bfloat16)
    least, middle, most = sorted(sizes.values())
    assert list(sizes.values()) == [most, middle, least]
    assert 0 < middle - least < 2e7 < most - middle < 1e8


def test_memory_is_freed_in_the_count():
    """The tool itself: views share memory, what is freed is free, a small tensor is not a peak."""
    x = torch.empty(1000, device="meta")
    with allocations.Count(x) as count:
        y = x + 1
        z = y.view(10, 100).T
        assert (count.now, count.peak) == (8000, 8000)
        del y
        assert count.now == 8000            # its memory lives in the view
        del z
        w = x[:10] * 2 + torch.ones(10)     # a tensor on the CPU may take part
        assert w.is_meta and (count.now, count.peak) == (4040, 8000)


def test_only_running_out_of_memory_is_explained():
    with pytest.raises(MinidsError, match="a pass: the memory of cpu ran out"):
        with memory.explained("a pass", "cpu"):
            torch.empty(2**60)              # more than any machine has
    for error in (RuntimeError("shapes cannot be multiplied"), ValueError("out of memory")):
        with pytest.raises(type(error), match=str(error)):
            with memory.explained("a pass", "cpu"):
                raise error
