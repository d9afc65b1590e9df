"""CTranslate2 over a GPT-2 checkpoint."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.remote.serve import serve


class CTranslate2:
    """One GPT-2 in float32. Tokens are what the model finds likeliest."""

    def start(self) -> str:
        """Imports it; its version."""
        import ctranslate2

        return str(ctranslate2.__version__)

    def load(self, path: str, threads: int) -> None:
        """Converts the checkpoint of a directory, once, and loads it."""
        import ctranslate2

        converted = Path(path) / "ctranslate2"
        if not (converted / "model.bin").exists():
            _convert(Path(path), converted)
        self._model = ctranslate2.Generator(
            str(converted), compute_type="float32", inter_threads=1, intra_threads=threads
        )

    def prefill(self, prompt: list[int]) -> dict[str, Any]:
        """Reads the prompt and predicts the next token."""
        return self._generate(prompt, 1)[0]

    def decode(self, prompt: list[int], steps: int) -> dict[str, Any]:
        """The tokens after the first one that follows the prompt; reading it is not counted."""
        return self._generate(prompt, 1 + steps)[1]

    def _generate(self, prompt: list[int], count: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The first predicted token, and the others."""
        moments = [time.perf_counter()]

        def stamp(step: object) -> bool:
            moments.append(time.perf_counter())
            return False

        (result,) = self._model.generate_batch(
            [[str(token) for token in prompt]],
            min_length=count,
            max_length=count,
            include_prompt_in_result=False,  # the prompt is then read at once
            callback=stamp,
        )
        tokens = result.sequences_ids[0]
        return (
            {"tokens": tokens[:1], "seconds": moments[1] - moments[0]},
            {"tokens": tokens[1:], "seconds": moments[-1] - moments[1]},
        )


def _convert(source: Path, target: Path) -> None:
    """What ctranslate2.converters does for a GPT-2, which would need torch and transformers here.

    The file is our own and its layout known: 8 bytes that tell the header's length, the header in
    JSON, float32 values (github.com/huggingface/safetensors).
    """
    from ctranslate2.specs import TransformerDecoderModelSpec, common_spec

    config = json.loads((source / "config.json").read_text())
    raw = np.memmap(source / "model.safetensors", np.uint8, "r")
    start = 8 + int(raw[:8].view(np.uint64)[0])
    header = json.loads(raw[8:start].tobytes())

    def tensor(name: str) -> Any:
        entry = header[f"transformer.{name}"]
        begin, end = entry["data_offsets"]
        return raw[start + begin : start + end].view(np.float32).reshape(entry["shape"])

    def norm(spec: Any, name: str) -> None:
        spec.gamma, spec.beta = tensor(f"{name}.weight"), tensor(f"{name}.bias")

    def linear(spec: Any, name: str) -> None:
        spec.weight = np.ascontiguousarray(tensor(f"{name}.weight").T)
        spec.bias = tensor(f"{name}.bias")

    spec = TransformerDecoderModelSpec.from_config(
        config["n_layer"], config["n_head"], activation=common_spec.Activation.GELUTanh
    )
    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = decoder.projection.weight = tensor("wte.weight")
    decoder.position_encodings.encodings = tensor("wpe.weight")
    norm(decoder.layer_norm, "ln_f")
    for i, layer in enumerate(decoder.layer):
        norm(layer.self_attention.layer_norm, f"h.{i}.ln_1")
        linear(layer.self_attention.linear[0], f"h.{i}.attn.c_attn")
        linear(layer.self_attention.linear[1], f"h.{i}.attn.c_proj")
        norm(layer.ffn.layer_norm, f"h.{i}.ln_2")
        linear(layer.ffn.linear_0, f"h.{i}.mlp.c_fc")
        linear(layer.ffn.linear_1, f"h.{i}.mlp.c_proj")
    spec.register_vocabulary([str(token) for token in range(config["vocab_size"])])
    # It has no others; generation runs to its length past the one that would end it.
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = "0"
    spec.validate()
    spec.optimize()
    target.mkdir(exist_ok=True)
    spec.save(str(target))


if __name__ == "__main__":
    serve(CTranslate2())
