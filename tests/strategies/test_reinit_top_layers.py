from __future__ import annotations

import pytest
import torch
from torch import nn

from tunecore.errors import ConfigError
from tunecore.models.loading import seeded
from tunecore.strategies.reinit_top_layers import ReinitTopLayers, ReinitTopLayersOptions
from tunecore.types import Progress


def reinitialised(small, seed, **options):
    """Names of the parameters that changed, after all were set to 7, and the parameters."""
    with torch.no_grad():
        for parameter in small.model.parameters():
            parameter.fill_(7.0)
    strategy = ReinitTopLayers(ReinitTopLayersOptions(**options))
    with seeded(seed):
        assert strategy.prepare(small.model, small.family) is small.model
    assert strategy.plan(small.plans, Progress(0, 1, 0.0, 1.0)) == {}
    weights = {name: parameter.detach().clone() for name, parameter in small.model.named_parameters()}
    changed = {name for name, weight in weights.items() if not bool((weight == 7.0).all())}
    assert all(not bool((weights[name] == 7.0).any()) for name in changed)
    return changed, weights


def below(small, *depths, pooler):
    return {
        name for name, depth in small.depths.items()
        if not name.startswith("tasks.") and (depth in depths or (pooler and ".pooler." in name))
    }  # fmt: skip


def test_the_top_blocks_and_the_pooler_start_anew(small):
    top = small.blocks
    assert reinitialised(small, 0)[0] == below(small, top, pooler=True)
    assert reinitialised(small, 0, layers=2)[0] == below(small, top, top - 1, pooler=True)
    assert reinitialised(small, 0, layers=1, pooler=False)[0] == below(small, top, pooler=False)


def test_the_seed_fixes_the_weights_and_they_are_the_class_s_own(small):
    _, one = reinitialised(small, 3, layers=2)
    _, again = reinitialised(small, 3, layers=2)
    changed, other = reinitialised(small, 4, layers=2)
    assert all(torch.equal(one[name], again[name]) for name in one)
    matrices = [name for name in changed if one[name].ndim == 2]
    assert not any(torch.equal(one[name], other[name]) for name in matrices)
    if small.name == "bert":  # normal with standard deviation 0.02; norms 1 and 0, biases 0
        together = torch.cat([one[name].reshape(-1) for name in matrices])
        assert abs(float(together.std()) - 0.02) < 0.001 and abs(float(together.mean())) < 0.001
        for name in changed - set(matrices):
            wanted = 1.0 if name.endswith("LayerNorm.weight") else 0.0
            assert bool((one[name] == wanted).all()), name
    else:
        for name in changed:
            if one[name].ndim == 1 and name.endswith("weight"):
                assert bool((one[name] == 1.0).all()), name


def test_what_cannot_be_is_said(small):
    with pytest.raises(ConfigError, match="nothing would start anew"):
        ReinitTopLayersOptions(layers=0, pooler=False)
    with pytest.raises(ConfigError, match=f"layers is 9; this model has {small.blocks} blocks"):
        reinitialised(small, 0, layers=9)
    if small.name != "bert":
        with pytest.raises(ConfigError, match="no pooler"):
            reinitialised(small, 0, layers=0)


def test_adapters_must_come_later(small):
    class Wrapper(nn.Module):
        def __init__(self, base_layer):
            super().__init__()
            self.base_layer = base_layer

    prefix = small.family.layers(small.model).blocks[-1][0].rstrip(".")
    block = small.model.get_submodule(prefix)
    name, child = next((n, m) for n, m in block.named_modules() if isinstance(m, nn.Linear | nn.Embedding) or
                       type(m).__name__ == "Conv1D")  # fmt: skip
    parent = block.get_submodule(name.rpartition(".")[0])
    setattr(parent, name.rpartition(".")[2], Wrapper(child))
    with pytest.raises(ConfigError, match="another strategy has changed the layers"):
        reinitialised(small, 0)
