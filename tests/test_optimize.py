"""`lanewise.optimize`: results, gradients, and all that must not change about a model."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from optimized_models import (
    DECODERS,
    FAMILIES,
    eager_twin,
    left_padding,
    make,
    prompts,
    relative,
)
from torch import nn

import lanewise
from lanewise.integrations.optimize import fused

transformers = pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def _one_thread():
    """These models are too small to share."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def fused_calls(monkeypatch):
    """Counts the layers that are computed as one op."""
    calls = []
    run = fused._run
    monkeypatch.setattr(fused, "_run", lambda *args: calls.append(1) or run(*args))
    return calls


def generate(model, ids, count=10, **options):
    options = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": count, **options}
    return model.generate(ids, **options)


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits(family, pack):
    model = make(family)
    twin = eager_twin(model)
    lanewise.optimize(model, pack=pack)
    ids = prompts()
    mask = left_padding(ids)
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            assert relative(model(ids).logits, twin(ids).logits) < 1e-5
            padded, expected = (m(ids, attention_mask=mask).logits for m in (model, twin))
    rows = slice(None) if family == "bert" else 1  # the other's padding has states of no meaning
    assert relative(padded[rows], expected[rows]) < 1e-5


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("family", DECODERS)
def test_generate(family, pack, fused_calls):
    model = make(family)
    twin = eager_twin(model)
    lanewise.optimize(model, pack=pack)
    ids = prompts()
    mask = left_padding(ids)
    assert torch.equal(
        generate(model, ids, attention_mask=mask), generate(twin, ids, attention_mask=mask)
    )
    fused_calls.clear()
    assert torch.equal(generate(model, ids), generate(twin, ids))
    assert len(fused_calls) == (3 * 10 if pack else 0)


@pytest.mark.parametrize(
    "options",
    [{"num_beams": 3}, {"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 3}],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_generate_with_other_caches_and_searches(family, options):
    model = make(family)
    twin = eager_twin(model)
    lanewise.optimize(model, pack=True)
    ids = prompts(batch=1)
    assert torch.equal(generate(model, ids, **options), generate(twin, ids, **options))


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_copied_cache_goes_its_own_way(family, fused_calls):
    model = make(family)
    twin = eager_twin(model)
    lanewise.optimize(model, pack=True)
    ids = prompts(batch=1, length=9)
    first, second = torch.tensor([[5]]), torch.tensor([[60]])
    with torch.no_grad():
        cache = model(ids, use_cache=True).cache
        shallow, deep = copy.copy(cache), copy.deepcopy(cache)
        shallow.layers = [copy.copy(layer) for layer in cache.layers]
        outs = [
            model(token, cache=cache).logits
            for token, cache in (
                (first, cache),
                (second, shallow),
                (second, deep),
                (second, cache),
            )
        ]
        for out, tokens in zip(outs, ([first], [second], [second], [first, second]), strict=True):
            expected = twin(torch.cat([ids, *tokens], 1)).logits[:, -1:]
            assert relative(out, expected) < 1e-5
    assert len(fused_calls) == 5 * 3


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_a_cache_goes_on_in_another_mode(family, pack):
    model = make(family)
    twin = eager_twin(model)
    lanewise.optimize(model, pack=pack)
    ids = prompts(length=5)
    modes = [torch.inference_mode, torch.no_grad, torch.inference_mode, torch.enable_grad]
    with torch.inference_mode():
        cache = model(ids[:, :1], use_cache=True).cache
    for at, mode in enumerate(modes, start=1):
        with mode():
            out = model(ids[:, at : at + 1], cache=cache).logits
    with torch.no_grad():
        assert relative(out, twin(ids).logits[:, -1:]) < 1e-5


def test_a_cache_of_another_batch_is_refused():
    model = make("llama")
    lanewise.optimize(model)
    with torch.no_grad():
        cache = model(prompts(batch=2), use_cache=True).cache
        with pytest.raises(ValueError, match=r"lanewise\.optimize: the cache's keys must be like"):
            model(prompts(batch=1), cache=cache)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients(family):
    model = make(family).train()
    twin = eager_twin(model)
    lanewise.optimize(model)
    ids = prompts()
    labels = torch.tensor([0, 2]) if family == "bert" else ids
    for m in (model, twin):
        m(ids, labels=labels).loss.backward()
    expected = {name: parameter.grad for name, parameter in twin.named_parameters()}
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, parameter in model.named_parameters():
        # Some gradients, as that of a key's bias, are 0 but for rounding.
        scale = max(expected[name].abs().max(), 1e-3 * largest)
        assert (parameter.grad - expected[name]).abs().max() < 1e-4 * scale, name


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable.:FutureWarning")
def test_gradient_checkpointing():
    model = make("gemma3").train()
    lanewise.optimize(model)
    ids = prompts()
    model(ids, labels=ids).loss.backward()
    expected = [parameter.grad for parameter in model.parameters()]
    model.zero_grad(set_to_none=True)
    model.gradient_checkpointing_enable()
    model(ids, labels=ids).loss.backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("family", ["gpt2", "bert", "llama"])
def test_dropout_in_training_is_the_models_own(family):
    rates = ("attn_pdrop", "resid_pdrop", "attention_probs_dropout_prob", "hidden_dropout_prob")
    model = make(family, **dict.fromkeys((*rates, "attention_dropout"), 0.3)).train()
    twin = eager_twin(model)
    lanewise.optimize(model)
    ids = prompts()
    with torch.no_grad():
        outs = []
        for m in (model, twin):
            torch.manual_seed(3)
            outs.append(m(ids).logits)
    assert relative(*outs) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_as_exact_as_torch(family):
    model = make(family)
    reference = eager_twin(model).double()
    theirs = eager_twin(model).to(torch.bfloat16)
    report = lanewise.optimize(model, dtype=torch.bfloat16, pack=True)
    assert report.replaced
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    ids = prompts(batch=3, length=17)
    with torch.no_grad():
        expected, ours, torchs = (m(ids).logits.double() for m in (reference, model, theirs))

    def error(x):
        return (x - expected).square().mean().sqrt().item()

    assert error(ours) < 2 * error(torchs)
    buffers = [b for name, b in model.named_buffers() if "inv_freq" in name]
    assert all(b.dtype is torch.float32 for b in buffers)


@pytest.mark.parametrize("family", FAMILIES)
def test_undo(family):
    model = make(family)
    untouched = copy.deepcopy(model)
    parameters = list(model.parameters())
    report = lanewise.optimize(model, pack=True)
    assert type(model.get_submodule(next(iter(report.replaced)))) not in (nn.Linear, nn.LayerNorm)
    lanewise.unoptimize(model)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    for ours, theirs in zip(model.modules(), untouched.modules(), strict=True):
        assert type(ours) is type(theirs)
        assert ours.__dict__.keys() == theirs.__dict__.keys()
        assert ours._buffers.keys() == theirs._buffers.keys()
        assert ours._non_persistent_buffers_set == theirs._non_persistent_buffers_set
    assert model.config.to_dict() == untouched.config.to_dict()
    assert model.config._attn_implementation == untouched.config._attn_implementation
    with torch.no_grad():
        assert torch.equal(model(prompts()).logits, untouched(prompts()).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_call_changes_nothing(family):
    model = make(family)
    first = lanewise.optimize(model, pack=True)
    classes = [type(module) for module in model.modules()]
    packed = [buffer for name, buffer in model.named_buffers() if "packed" in name]
    assert lanewise.optimize(model) == first
    assert [type(module) for module in model.modules()] == classes
    again = [buffer for name, buffer in model.named_buffers() if "packed" in name]
    assert all(a is b for a, b in zip(packed, again, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_state_saving_and_copies(family, tmp_path):
    model = make(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = [name for name, _ in model.named_modules()]
    lanewise.optimize(model, pack=True)
    assert [name for name, _ in model.named_modules()] == names
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)

    ids = prompts()
    with torch.no_grad():
        expected = model(ids).logits
        generated = None if family == "bert" else generate(model, ids, 4)
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        stream = io.BytesIO()
        torch.save(model, stream)
        stream.seek(0)
        copies.append(torch.load(stream, weights_only=False))
        for other in copies:
            assert type(other.get_submodule(names[-1])) is type(model.get_submodule(names[-1]))
            assert not [n for n, _ in other.named_buffers() if "packed" in n]
            assert relative(other(ids).logits, expected) < 1e-5
            lanewise.nn.pack(other)
            assert relative(other(ids).logits, expected) < 1e-5
            if generated is not None:
                assert torch.equal(generate(other, ids, 4), generated)

        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path)
        assert loaded.config._attn_implementation != "lanewise"
        assert relative(loaded(ids).logits, expected) < 1e-5
        lanewise.unoptimize(copies[0])
        assert relative(copies[0](ids).logits, expected) < 1e-5


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_fire_and_are_honoured(family, pack):
    """A hook that changes a module's output changes the logits as it does transformers'."""
    model = make(family)
    names = [
        name
        for name, module in model.named_modules()
        if name and not isinstance(module, (nn.ModuleList, nn.Dropout)) and "rotary" not in name
    ]
    twin = eager_twin(model)
    lanewise.optimize(model, pack=pack)
    ids = prompts()

    def double(module, args, output):
        seen.append(module)
        if isinstance(output, tuple):
            return (output[0] * 1.5, *output[1:])
        return output * 1.5 if isinstance(output, torch.Tensor) else None

    options = {} if family == "bert" else {"use_cache": True}
    with torch.no_grad():
        plain = model(ids, **options).logits
        for name in names:
            outs, seen = [], []
            for m in (model, twin):
                handle = m.get_submodule(name).register_forward_hook(double)
                outs.append(m(ids, **options).logits)
                handle.remove()
            assert len(seen) == 2, name
            assert relative(*outs) < 1e-5, name
        assert torch.equal(model(ids, **options).logits, plain)


def test_a_replaced_child_is_called():
    """A plan of the fused layer does not outlive the modules it was made of."""
    model = make("llama")
    twin = eager_twin(model)
    lanewise.optimize(model, pack=True)
    ids = prompts()
    with torch.no_grad():
        model(ids, use_cache=True)
        for m in (model, twin):
            layer = m.model.layers[1]
            layer.input_layernorm = nn.RMSNorm(32, eps=1e-6)
            layer.mlp.act_fn = nn.ReLU()
            m.model.layers[2].self_attn.o_proj.weight = nn.Parameter(torch.ones(32, 64) * 0.03)
        assert relative(model(ids, use_cache=True).logits, twin(ids).logits) < 1e-5


def test_a_wrapped_forward_is_called():
    model = make("llama")
    twin = eager_twin(model)
    lanewise.optimize(model, pack=True)
    ids = prompts()
    with torch.no_grad():
        model(ids, use_cache=True)
        for m in (model, twin):
            for module in (m.model.layers[0].mlp.up_proj, m.model.layers[1].self_attn.q_proj):
                module.forward = lambda x, old=module.forward: old(x) * 0.5
        assert relative(model(ids, use_cache=True).logits, twin(ids).logits) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_and_attentions(family):
    """As transformers' own, whose attention computes them; whatever the model had before."""
    model = make(family)
    twin = eager_twin(model)
    lanewise.optimize(model, pack=True)
    ids = prompts()
    for mask in (None, left_padding(ids)):
        with torch.no_grad():
            ours, theirs = (
                m(ids, attention_mask=mask, output_hidden_states=True, output_attentions=True)
                for m in (model, twin)
            )
        rows = 1 if mask is not None else slice(None)  # padding's states have no meaning
        assert len(ours.hidden_states) == len(theirs.hidden_states) == 4
        assert len(ours.attentions) == len(theirs.attentions) == 3
        pairs = zip(
            (*ours.hidden_states, *ours.attentions),
            (*theirs.hidden_states, *theirs.attentions),
            strict=True,
        )
        assert all(a.shape == b.shape and relative(a[rows], b[rows]) < 1e-5 for a, b in pairs)
    model.set_attn_implementation("eager")  # which hands attention back to the model's own code
    with torch.no_grad():
        handed_back = model(ids, attention_mask=mask, output_attentions=True).attentions
    assert all(
        relative(a[1], b[1]) < 1e-5 for a, b in zip(handed_back, ours.attentions, strict=True)
    )


def test_attentions_by_the_config():
    model = make("llama")
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    twin = copy.deepcopy(model)
    lanewise.optimize(model, pack=True)
    ids = prompts()
    with torch.no_grad():
        ours, theirs = (m(ids).attentions for m in (model, twin))
    assert len(ours) == len(theirs) == 3
    assert all(relative(a, b) < 1e-5 for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("asked", ["output_hidden_states", "output_attentions"])
@pytest.mark.parametrize("family", DECODERS)
def test_the_layers_are_fused_again_after_intermediate_outputs(family, asked, fused_calls):
    model = make(family)
    lanewise.optimize(model, pack=True)
    ids = prompts()
    with torch.no_grad():
        plain = model(ids, use_cache=True).logits
        model(ids, use_cache=True, **{asked: True})
        fused_calls.clear()
        assert torch.equal(model(ids, use_cache=True).logits, plain)
        assert len(fused_calls) == 3
        assert len(model(ids, use_cache=True, output_hidden_states=True).hidden_states) == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_forward_mode(family):
    model = make(family)
    twin = eager_twin(model)
    lanewise.optimize(model, pack=True)
    generator = torch.Generator().manual_seed(2)
    embeddings, tangent = torch.randn(2, 2, 7, 32, generator=generator)
    ours, theirs = (
        torch.func.jvp(lambda x, m=m: m(inputs_embeds=x).logits, (embeddings,), (tangent,))[1]
        for m in (model, twin)
    )
    assert theirs.abs().max() > 0
    assert relative(ours, theirs) < 1e-5


def test_autocast_is_torchs():
    model = make("gpt2").train()
    twin = copy.deepcopy(model)
    lanewise.optimize(model)
    ids = prompts()
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = model(ids).logits, twin(ids).logits
    assert ours.dtype == theirs.dtype
    assert relative(ours, theirs) < 0.03


@pytest.mark.parametrize("family", FAMILIES)
def test_attentions_under_autocast(family):
    model = make(family)
    twin = eager_twin(model)
    lanewise.optimize(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (m(prompts(), output_attentions=True).attentions for m in (model, twin))
    assert len(ours) == len(theirs) == 3
    assert all(relative(a.float(), b.float()) < 0.05 for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_float64_is_torchs(family, pack):
    model = make(family)
    lanewise.optimize(model, pack=pack)
    with torch.no_grad():
        narrow, wide = model(prompts()).logits, model.double()(prompts()).logits
    assert wide.dtype is torch.float64
    assert relative(narrow, wide) < 1e-5


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a .functools.lru_cache")
@pytest.mark.parametrize("pack", [False, True])
def test_compile(pack):
    model = make("llama", num_hidden_layers=1)
    lanewise.optimize(model, pack=pack)
    ids = prompts()
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        compiled = torch.compile(model, backend="aot_eager")
        torch.testing.assert_close(compiled(ids, use_cache=False).logits, expected)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(12)
        self.rms = nn.RMSNorm(12)
        self.linear = nn.Linear(12, 20)
        self.attention = nn.MultiheadAttention(20, 2, batch_first=True)
        self.conv = nn.Conv1d(20, 4, 1)

    def forward(self, x):
        x = self.linear(self.norm(x) + self.rms(x))
        x, _ = self.attention(x, x, x)
        return self.conv(x.transpose(1, 2))


def test_any_torch_module():
    model = Block()
    twin = copy.deepcopy(model)
    report = lanewise.optimize(model, pack=True)
    assert report.replaced.keys() == {"norm", "rms", "linear"}
    x = torch.randn(3, 5, 12)
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            torch.testing.assert_close(model(x), twin(x))
    assert isinstance(model.linear, nn.Linear)
    assert "lanewise" in repr(model.linear)
    assert "packed" in repr(model.linear)
    # Optimising one layer alone works as well.
    layer = nn.Linear(3, 4)
    assert lanewise.optimize(layer).replaced.keys() == {""}


def test_report():
    model = Block()
    model.double_linear = nn.Linear(3, 3, dtype=torch.float64)
    model.parametrized = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))

    class OwnForward(nn.Linear):
        def forward(self, x):
            return -super().forward(x)

    model.own = OwnForward(3, 3)
    model.wrapped = nn.Linear(3, 3)
    model.wrapped.forward = lambda x: x
    report = lanewise.optimize(model)
    reasons = {
        "double_linear": "Linear: lanewise has no kernels for torch.float64",
        "parametrized": "ParametrizedLinear: it is parametrized",
        "own": "OwnForward: it has a forward of its own",
        "wrapped": "Linear: its forward is wrapped",
        "conv": "Conv1d: lanewise has no counterpart",
        "attention": "MultiheadAttention: lanewise has no counterpart",
        "attention.out_proj": (
            "NonDynamicallyQuantizableLinear: nn.MultiheadAttention reads its weight without "
            "calling it"
        ),
    }
    assert {name: report.kept[name] for name in reasons} == reasons
    text = str(report)
    assert "replaced: 3 modules" in text
    assert "1 × Conv1d: lanewise has no counterpart" in text
    assert model.double_linear(torch.ones(2, 3, dtype=torch.float64)).dtype is torch.float64


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*quantize_per_tensor")
def test_quantized_layers_are_left_alone():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    x = torch.randn(2, 8)
    before = quantized(x)
    report = lanewise.optimize(quantized)
    assert not report.replaced
    assert torch.equal(quantized(x), before)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*quantize_per_tensor")
def test_replaced_layers_are_quantized_after_undoing():
    """By their exact class quantize_dynamic does not find them, as docs/models.md says."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    twin = copy.deepcopy(model)
    lanewise.optimize(model)
    x = torch.randn(2, 8)
    passed_over = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    assert torch.equal(passed_over(x), model(x))
    lanewise.unoptimize(model)
    quantized = (torch.ao.quantization.quantize_dynamic(m, {nn.Linear}) for m in (model, twin))
    assert torch.equal(*(m(x) for m in quantized))


def test_later_changes_fall_back_to_torch():
    """What kernels do not serve after optimising is computed as torch would, errors included."""
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    twin = copy.deepcopy(model)
    lanewise.optimize(model, pack=True)
    x = torch.randn(2, 8, dtype=torch.float64)
    torch.testing.assert_close(model.double()(x), twin.double()(x))
    with pytest.raises(RuntimeError, match="same dtype"):
        model(x.float())
    assert model.to("meta")(x.to("meta")).device.type == "meta"


class Labelled(torch.Tensor):
    """A subclass without ops of its own."""


@pytest.fixture(scope="module")
def mesh():
    """Of one process, over whose DTensors lanewise's ops have no rule."""
    distributed = pytest.importorskip("torch.distributed")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield distributed.device_mesh.init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def as_dtensors(layer, mesh):
    torch.distributed.tensor.distribute_module(layer, mesh)


def in_parallel(layer, mesh):
    """As transformers' tensor parallelism: plain tensors between layers of DTensors."""
    parallel = torch.distributed.tensor.parallel
    plan = {
        **dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj"), parallel.ColwiseParallel()),
        **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), parallel.ColwiseParallel()),
        **dict.fromkeys(("self_attn.o_proj", "mlp.down_proj"), parallel.RowwiseParallel()),
    }
    parallel.parallelize_module(layer, mesh, plan)


def sharded(layer, mesh):
    torch.distributed.fsdp.fully_shard(layer, mesh=mesh)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("first", ["optimize", "distribute"])
@pytest.mark.parametrize("distribute", [in_parallel, sharded], ids=lambda f: f.__name__)
def test_distributed_layers(distribute, first, pack, mesh):
    """Whichever comes first; packing again then packs what it can."""
    model = make("llama")
    twin = eager_twin(model)
    if first == "optimize":
        lanewise.optimize(model, pack=pack)
    for layer in model.model.layers:
        distribute(layer, mesh)
    report = lanewise.optimize(model, dtype=torch.float32, pack=pack)
    assert report.kept or first == "optimize"
    ids = prompts()
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            assert relative(model(ids, use_cache=True).logits, twin(ids).logits) < 1e-5
    model(ids).logits.square().sum().backward()
    assert model.lm_head.weight.grad.abs().max() > 0
    lanewise.unoptimize(model)
    with torch.no_grad():
        assert relative(model(ids).logits, twin(ids).logits) < 1e-5


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("first", ["optimize", "subclass"])
def test_weights_of_a_subclass_of_tensor(first, pack, mesh):
    x = torch.randn(2, 8)
    plain = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.RMSNorm(8))
    expected = plain(x)
    model, distributed = copy.deepcopy(plain), copy.deepcopy(plain)
    if first == "optimize":
        lanewise.optimize(model, pack=pack)
        lanewise.optimize(distributed, pack=pack)
    for layer in model:
        layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Labelled))
    as_dtensors(distributed, mesh)
    for m in (model, distributed):
        report = lanewise.optimize(m, pack=pack)
        assert len(report.kept) == (3 if first == "subclass" else 0)
    torch.testing.assert_close(model(x).as_subclass(torch.Tensor), expected)
    placed = torch.distributed.tensor.distribute_tensor(x, mesh)
    torch.testing.assert_close(distributed(placed).full_tensor(), expected)


def test_inputs_of_a_subclass_of_tensor():
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    x = torch.randn(2, 8)
    expected = model(x)
    lanewise.optimize(model, pack=True)
    with torch.no_grad():
        y = model(x.as_subclass(Labelled))
    assert type(y) is Labelled
    torch.testing.assert_close(y.as_subclass(torch.Tensor), expected)


@pytest.mark.parametrize("function", [lanewise.optimize, lanewise.unoptimize])
def test_only_modules(function):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got Tensor"):
        function(torch.zeros(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, "bfloat16"])
def test_only_served_dtypes(dtype):
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"lanewise\.optimize: dtype must be one of"):
        lanewise.optimize(model, dtype=dtype)
    assert type(model) is nn.Linear


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_casts_keep_what_transformers_keeps_in_float32(dtype, tmp_path):
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2, "num_layers": 1}
    config = transformers.T5Config(
        vocab_size=31, decoder_start_token_id=0, feed_forward_proj="gated-gelu", **sizes
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    load = transformers.T5ForConditionalGeneration.from_pretrained
    twin, model = load(tmp_path, dtype=dtype), load(tmp_path, dtype=torch.bfloat16)
    lanewise.optimize(model, dtype=dtype)
    names = dict(model.named_parameters())
    assert {n: p.dtype for n, p in twin.named_parameters()} == {n: names[n].dtype for n in names}
    ids = torch.tensor([[3, 7, 9]])
    assert model(input_ids=ids, decoder_input_ids=ids).logits.isfinite().all()


def test_casts_keep_what_a_model_wants_wide_in_any_dtype():
    class Gated(nn.Module):
        _keep_in_fp32_modules_strict = ("gate.weight", "layers.*.norm")

        def __init__(self):
            super().__init__()
            self.gate = nn.Linear(4, 4)
            self.layers = nn.ModuleList([nn.Sequential(nn.Linear(4, 4))])
            self.layers[0].norm = nn.LayerNorm(4)

    model = nn.Sequential(Gated())
    lanewise.optimize(model, dtype=torch.bfloat16)
    wide = [name for name, p in model.named_parameters() if p.dtype is torch.float32]
    assert wide == ["0.gate.weight", "0.layers.0.norm.weight", "0.layers.0.norm.bias"]


def test_float8_weights_are_not_cast():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = nn.Parameter(model[1].weight.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(ValueError, match=r"must be None .* torch\.float8_e4m3fn .* as 1\.weight"):
        lanewise.optimize(model, dtype=torch.bfloat16)
    assert model[0].weight.dtype is torch.float32
    report = lanewise.optimize(model)
    assert report.kept["1"] == "Linear: lanewise has no kernels for torch.float8_e4m3fn"


def test_importing_lanewise_needs_no_transformers():
    code = (
        "import sys; sys.modules['transformers'] = sys.modules['peft'] = None\n"
        "import torch, lanewise\n"
        "layer = torch.nn.Linear(4, 4)\n"
        "assert lanewise.optimize(layer, pack=True).replaced\n"
        "layer(torch.ones(1, 4))\n"
        "lanewise.unoptimize(layer)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_inputs_that_the_ops_do_not_take_are_torchs() -> None:
    model = torch.nn.Sequential(torch.nn.LayerNorm(32), torch.nn.Linear(32, 8))
    apart = torch.randn(2, 32, 7, 7).permute(0, 2, 3, 1)
    rows = torch.randn(4, 32)

    def run() -> list[torch.Tensor]:
        return [
            model(apart),
            torch.func.jvp(model, (rows,), (torch.ones_like(rows).cumsum(-1),))[1],
            torch.func.jacrev(model)(rows),
        ]

    expected = run()
    assert expected[1].abs().max() > 0
    lanewise.optimize(model)
    for found, want in zip(run(), expected, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_default_eps_of_an_rms_norm(dtype: torch.dtype) -> None:
    norm = torch.nn.RMSNorm(64, dtype=dtype)
    x = (torch.randn(3, 64) * 0.01).to(dtype)
    expected = norm(x)
    lanewise.optimize(norm)
    torch.testing.assert_close(norm(x), expected)
