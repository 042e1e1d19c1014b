"""`Decoder` against its parts by hand, and against Llama where transformers is installed."""

import pytest
import torch
from torch import nn

from mpbook.decoder import Decoder, DecoderConfig, Experts, GatedMLP, RMSNorm

SMALL = DecoderConfig(vocabulary=64, context=16, layers=2, heads=4, width=32, hidden=48)


def test_tokens_give_logits_and_do_not_see_what_follows():
    torch.manual_seed(0)
    model, tokens = Decoder(SMALL), torch.randint(64, (2, 16))
    logits = model(tokens)
    assert logits.shape == (2, 16, 64)
    changed = tokens.clone()
    changed[:, 10:] = 0
    torch.testing.assert_close(model(changed)[:, :10], logits[:, :10])
    assert not torch.allclose(model(changed)[:, 10:], logits[:, 10:])


def test_positions_turn_by_their_distance_alone():
    torch.manual_seed(0)
    attention = Decoder(SMALL).blocks[0].attention
    x = torch.randn(1, 1, 32).expand(1, 16, 32)
    query, key = (
        part(x).view(1, 16, -1, 8).transpose(1, 2) for part in (attention.query, attention.key)
    )
    from mpbook.decoder import _turned

    turned = [
        p * attention.cosines + _turned(p) * attention.sines for p in (query[:, :1], key[:, :1])
    ]
    scores = turned[0] @ turned[1].mT
    for distance in (0, 1, 5):
        line = scores[0, 0].diagonal(-distance)
        torch.testing.assert_close(line, line[:1].expand_as(line), rtol=1e-4, atol=1e-5)


def test_the_norm_is_torchs():
    norm, x = RMSNorm(32), torch.randn(3, 32)
    torch.testing.assert_close(norm(x), nn.functional.rms_norm(x, (32,), norm.weight, 1e-5))


def test_all_experts_together_are_a_weighted_sum():
    config = DecoderConfig(width=32, heads=4, hidden=24, experts=3, experts_per_token=3)
    torch.manual_seed(0)
    layer, x = Experts(config), torch.randn(2, 5, 32)
    shares = layer.router(x).softmax(-1)
    expected = sum(shares[..., i, None] * e(x) for i, e in enumerate(layer.experts))
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_a_token_goes_to_the_expert_that_scores_highest():
    config = DecoderConfig(width=32, heads=4, hidden=24, experts=3, experts_per_token=1)
    torch.manual_seed(0)
    layer, x = Experts(config), torch.randn(1, 5, 32)
    chosen = layer.router(x).argmax(-1)[0]
    for i, index in enumerate(chosen):
        expert = layer.experts[index]
        assert isinstance(expert, GatedMLP)
        torch.testing.assert_close(layer(x)[0, i], expert(x)[0, i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("experts", [1, 4])
def test_it_trains_in_16_bits_and_under_autocast(dtype, experts):
    config = DecoderConfig(experts=experts, experts_per_token=min(experts, 2))
    tokens = torch.randint(256, (2, 8))
    for model in (Decoder(config), Decoder(config).to(dtype)):
        with torch.autocast("cpu", dtype, enabled=model.head.weight.dtype == torch.float32):
            loss = model(tokens).float().logsumexp(-1).mean()
        loss.backward()
        assert all(p.grad is not None for p in model.parameters()) or experts > 1


def test_it_is_llama():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=16,
            rms_norm_eps=1e-5, tie_word_embeddings=False,
        )
    ).eval()  # fmt: skip
    ours, state = Decoder(SMALL), theirs.state_dict()
    names = {
        "token_embedding": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head",
        "blocks": "model.layers", "attention_norm": "input_layernorm", "attention": "self_attn",
        "mlp_norm": "post_attention_layernorm", "query": "q_proj", "key": "k_proj",
        "value": "v_proj", "project": "o_proj", "gate": "gate_proj", "up": "up_proj",
        "down": "down_proj",
    }  # fmt: skip
    for name, parameter in ours.named_parameters():
        their = ".".join(names.get(part, part) for part in name.split("."))
        parameter.data.copy_(state[their])
    tokens = torch.randint(64, (2, 16))
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "right"),
    [
        (dict(width=36), "a multiple of 2 x heads=4"),
        (dict(key_value_heads=3), "a divisor of heads=4"),
        (dict(experts_per_token=2), "expected at most 1"),
        (dict(layers=0), "layers=0: expected at least 1"),
    ],
)
def test_bad_shapes_are_refused(options, right):
    with pytest.raises(ValueError, match=right):
        DecoderConfig(**options)


def test_too_long_a_sequence_is_refused():
    with pytest.raises(ValueError, match="17 a sequence, expected at most 16"):
        Decoder(SMALL)(torch.zeros(1, 17, dtype=torch.int64))
