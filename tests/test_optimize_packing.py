"""Packed weights of an optimised model: dropped whenever the weights change; adapters of peft."""

import copy
import subprocess
import sys

import pytest
import torch
from optimized_models import eager_twin, make, prompts, relative
from torch import nn
from torch.nn.utils import parametrize, prune

import lanewise

pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

# peft's own, about transformers' names and about Conv1D.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:fan_in_fan_out is set")

TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gemma3": ["k_proj", "o_proj", "gate_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "bert": ["query", "dense"],
}


@pytest.fixture(autouse=True)
def _one_thread():
    """These models are too small to share."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def packed(model):
    return [name for name, buffer in model.named_buffers() if name.endswith("packed_weight")]


def outputs(model, ids):
    """Logits by the fused layers where there are any, else part by part."""
    options = {} if "Bert" in type(model).__name__ else {"use_cache": True}
    with torch.no_grad():
        return model(ids, **options).logits


def by_load_state_dict(model):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for name, value in state.items():
        if name.endswith("_proj.weight"):
            value *= 1.5
    model.load_state_dict(state)


def by_an_in_place_operation(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_proj.weight"):
                parameter.mul_(1.5)


def by_new_parameters(model):
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.out_features != 97:
            module.weight = nn.Parameter(module.weight.detach() * 1.5)


def by_a_vector(model):
    vector = nn.utils.parameters_to_vector(model.parameters()).detach()
    nn.utils.vector_to_parameters(vector * 1.1, model.parameters())


def by_new_data(model):
    for name, parameter in model.named_parameters():
        if name.endswith("_proj.bias") or name.endswith("norm.weight"):
            parameter.data = parameter.data * 1.5


def by_an_optimizer(model):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.dim() == 2], lr=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) * 0.05
    optimizer.step()
    model.zero_grad()


def by_training(model):
    model.train()
    assert not packed(model)
    by_an_optimizer(model)
    model.eval()


CHANGES = [
    by_load_state_dict,
    by_an_in_place_operation,
    by_new_parameters,
    by_a_vector,
    by_new_data,
    by_an_optimizer,
    by_training,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changed_weights_are_seen(change):
    model = make("llama")
    lanewise.optimize(model, pack=True)
    assert packed(model)
    ids = prompts()
    before = outputs(model, ids)
    change(model)
    after = outputs(model, ids)
    expected = copy.deepcopy(model)
    lanewise.unoptimize(expected)
    assert relative(after, outputs(eager_twin(expected), ids)) < 1e-5
    assert relative(before, after) > 1e-3
    lanewise.nn.pack(model)
    assert relative(outputs(model, ids), after) < 1e-5


def test_moves_drop_the_copy():
    model = make("llama")
    lanewise.optimize(model, pack=True)
    ids = prompts()
    before = outputs(model, ids)
    for move in ({"dtype": torch.bfloat16}, {"dtype": torch.float32}):
        assert packed(lanewise.nn.pack(model))
        model.to(**move)
        assert not packed(model)
    assert relative(outputs(model, ids), before) < 0.05
    lanewise.nn.pack(model)
    lanewise.optimize(model, dtype=torch.bfloat16)
    assert not packed(model)
    lanewise.nn.pack(model).to("meta")
    assert not packed(model)


def test_gradients_come_from_the_weights():
    model = make("gemma3")
    lanewise.optimize(model, pack=True)
    ids = prompts()
    model(ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_projections_are_packed_once():
    model = make("llama")
    lanewise.optimize(model, pack=True)
    names = packed(model)
    assert "model.layers.0.self_attn.packed_weight" in names
    assert not [name for name in names if "q_proj" in name or "k_proj" in name or "v_proj" in name]
    weights = sum(
        p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n
    )
    sizes = dict(model.named_buffers())
    # Panels are padded, which at these sizes is most of it: each weight is there once, not twice.
    assert weights * 4 < sum(sizes[name].numel() for name in names) < 2 * weights * 4


COMPUTED = [
    nn.utils.parametrizations.weight_norm,
    nn.utils.parametrizations.spectral_norm,
    pytest.param(nn.utils.weight_norm, marks=pytest.mark.filterwarnings("ignore::FutureWarning")),
    nn.utils.spectral_norm,
    lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
]
COMPUTED_IDS = ["weight_norm", "spectral_norm", "hooked_weight_norm", "hooked_spectral", "pruning"]


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("compute", COMPUTED, ids=COMPUTED_IDS)
def test_weights_that_are_computed_on_optimised_layers(compute, pack):
    """Parametrized, normed by a hook or pruned: such weights are not packed, and can be undone."""
    model = make("llama")
    twin = eager_twin(model)
    lanewise.optimize(model, pack=pack)
    ids = prompts()
    with torch.no_grad():
        outputs(model, ids)
    for m in (model, twin):
        layer = m.model.layers[1]
        for module in (layer.self_attn.k_proj, layer.mlp.up_proj, m.lm_head):
            torch.manual_seed(0)
            compute(module)
        m.eval()
    expected = outputs(twin, ids)
    assert relative(outputs(model, ids), expected) < 1e-5
    if pack:
        lanewise.nn.pack(model)
        assert "lm_head.packed_weight" not in packed(model)
        assert "model.layers.1.self_attn.q_proj.packed_weight" in packed(model)
        assert relative(outputs(model, ids), expected) < 1e-5
        assert relative(outputs(copy.deepcopy(model), ids), expected) < 1e-5
    lanewise.unoptimize(model)
    model.set_attn_implementation("eager")
    assert [type(m).__mro__[-3:] for m in model.modules()] == [
        type(m).__mro__[-3:] for m in twin.modules()
    ]
    assert torch.equal(outputs(model, ids), expected)
    if parametrize.is_parametrized(model.lm_head):
        parametrize.remove_parametrizations(model.lm_head, "weight")
        assert type(model.lm_head) is nn.Linear
        assert relative(outputs(model, ids), expected) < 1e-5


def test_released_weights():
    model = make("gemma3")
    lanewise.optimize(model)
    ids = prompts()
    before = outputs(model, ids)
    lanewise.nn.pack(model, release=True)
    assert relative(outputs(model, ids), before) < 1e-5
    classes = [type(module) for module in model.modules()]
    for change in (lanewise.unoptimize, nn.Module.train, copy.deepcopy):
        with pytest.raises(RuntimeError, match="its weights were released"):
            change(model)
    assert [type(module) for module in model.modules()] == classes


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("family", list(TARGETS))
def test_lora_on_an_optimised_model(family, pack, tmp_path):
    model = make(family)
    twin = eager_twin(model)
    lanewise.optimize(model, pack=pack)
    ids = prompts()
    base = outputs(model, ids)

    def adapt(m):
        torch.manual_seed(5)
        config = peft.LoraConfig(
            r=4, target_modules=TARGETS[family], init_lora_weights=False, lora_alpha=32
        )
        return peft.get_peft_model(m, config)

    def pack_again():
        if pack:
            assert packed(lanewise.nn.pack(ours))

    ours, theirs = adapt(model), adapt(twin)
    for m in (ours, theirs):  # a step of training
        m.train()
        labels = torch.tensor([0, 2]) if family == "bert" else ids
        optimizer = torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.1)
        m(ids, labels=labels).loss.backward()
        optimizer.step()
        m.eval()
    expected = outputs(theirs, ids)
    assert relative(expected, base) > 1e-2
    assert relative(outputs(ours, ids), expected) < 1e-4
    pack_again()
    assert relative(outputs(ours, ids), expected) < 1e-4

    with ours.disable_adapter():
        assert relative(outputs(ours, ids), base) < 1e-4
    ours.merge_adapter()
    assert relative(outputs(ours, ids), expected) < 1e-4
    pack_again()
    assert relative(outputs(ours, ids), expected) < 1e-4
    ours.unmerge_adapter()
    assert relative(outputs(ours, ids), expected) < 1e-4
    with ours.disable_adapter():
        assert relative(outputs(ours, ids), base) < 1e-4

    ours.save_pretrained(tmp_path)
    fresh = make(family)
    lanewise.optimize(fresh, pack=pack)
    assert relative(outputs(peft.PeftModel.from_pretrained(fresh, tmp_path), ids), expected) < 1e-4

    pack_again()
    merged = ours.merge_and_unload()
    assert relative(outputs(merged, ids), expected) < 1e-4
    pack_again()
    assert relative(outputs(merged, ids), expected) < 1e-4
    lanewise.unoptimize(merged)
    assert relative(outputs(merged, ids), expected) < 1e-4


@pytest.mark.parametrize("family", list(TARGETS))
def test_optimising_a_model_with_lora(family):
    model = make(family)
    config = peft.LoraConfig(r=4, target_modules=TARGETS[family], init_lora_weights=False)
    model = peft.get_peft_model(model, config).eval()
    ids = prompts()
    expected = outputs(model, ids)
    report = lanewise.optimize(model, pack=True)
    assert any(name.endswith("base_layer") for name in report.replaced)
    assert relative(outputs(model, ids), expected) < 1e-5
    model.merge_adapter()
    assert relative(outputs(model, ids), expected) < 1e-5
    model.unmerge_adapter()
    assert relative(outputs(model, ids), expected) < 1e-5
    lanewise.unoptimize(model)
    assert relative(outputs(model, ids), expected) < 1e-5


def test_merging_after_packing_drops_exactly_what_changed():
    model = make("llama")
    lanewise.optimize(model)
    model = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules=["up_proj"], init_lora_weights=False)
    ).eval()
    lanewise.nn.pack(model)
    layers = model.base_model.model.model.layers
    mlp = layers[0].mlp
    assert mlp.up_proj.base_layer.usable_pack() is not None
    model.merge_adapter()
    assert mlp.up_proj.base_layer.usable_pack() is None
    assert mlp.down_proj.usable_pack() is not None
    assert layers[0].self_attn.usable_pack() is not None


def test_peft_imported_after_packing():
    """A merge that nobody watched is found by comparison, whether or not a call came before it."""
    code = """
import sys, torch, lanewise
assert "peft" not in sys.modules
models = [torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)) for _ in range(2)]
for model in models:
    lanewise.optimize(model, pack=True)
from peft import LoraConfig, get_peft_model
config = LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
x = torch.randn(2, 8)
for model, is_called in zip(models, (False, True)):
    kept = model[1].packed_weight
    with torch.no_grad():
        model = get_peft_model(model, config).eval()
        delta = model.base_model.model[0].get_delta_weight("default")
        weight = model.base_model.model[0].base_layer.weight + delta
        if is_called:
            model(x)
        model = model.merge_and_unload()
        torch.testing.assert_close(model[0](x), x @ weight.T + model[0].bias)
        assert model[1].usable_pack() is kept
"""
    subprocess.run([sys.executable, "-c", code], check=True)
