"""Models that hear and speak."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.zoo.stranger import TOKENS, Ready, Stranger, floats, get, method, padding, ready, tokens


def whisper(with_sdpa: bool) -> Ready:
    get("whisper.model.MultiHeadAttention").use_sdpa = with_sdpa
    dims = get("whisper.model.ModelDimensions")(8, 16, 32, 2, 2, TOKENS, 32, 32, 2, 2)
    return ready(get("whisper.model.Whisper")(dims), floats(2, 8, 32), tokens(2, 12))


def speechbrain(kind: str, **options: Any) -> Ready:
    model = get("speechbrain.lobes.models.transformer.TransformerASR.TransformerASR")(
        TOKENS,
        24,
        d_model=32,
        nhead=2,
        num_encoder_layers=2,
        num_decoder_layers=1,
        d_ffn=64,
        dropout=0.0,
        encoder_module=kind,
        **options,
    )
    return ready(model, floats(2, 32, 24), tokens(2, 10), wav_len=torch.tensor([1.0, 0.75]))


def funasr(kind: str) -> Ready:
    path = {"transformer": "transformer.encoder.TransformerEncoder", "conformer": "conformer.encoder.ConformerEncoder"}[
        kind
    ]
    model = get(f"funasr.models.{path}")(
        24,
        output_size=32,
        attention_heads=2,
        linear_units=64,
        num_blocks=2,
        dropout_rate=0.0,
        attention_dropout_rate=0.0,
        positional_dropout_rate=0.0,
    )
    return ready(model, floats(2, 64, 24), torch.tensor([64, 50]))


def sanm() -> Ready:
    model = get("funasr.models.sanm.encoder.SANMEncoder")(
        24,
        output_size=32,
        attention_heads=2,
        linear_units=64,
        num_blocks=2,
        dropout_rate=0.0,
        attention_dropout_rate=0.0,
        input_layer="pe",
        kernel_size=3,
    )
    return ready(model, floats(2, 32, 24), torch.tensor([32, 25]))


def demucs() -> Ready:
    model = get("demucs.transformer.CrossTransformerEncoder")(dim=32, num_heads=2, num_layers=3)
    return ready(model, floats(1, 32, 4, 8), floats(1, 32, 24))


def beat_this() -> Ready:
    model = get("beat_this.model.beat_tracker.BeatThis")(spect_dim=128, transformer_dim=64, n_layers=2)
    return ready(model, floats(1, 32, 128))


def matcha() -> Ready:
    model = get("matcha.models.components.decoder.Decoder")(
        16,
        8,
        channels=(32, 32),
        dropout=0.0,
        attention_head_dim=16,
        n_blocks=1,
        num_mid_blocks=1,
        num_heads=2,
        act_fn="snakebeta",
    )
    return ready(model, floats(1, 8, 16), torch.ones(1, 1, 16), floats(1, 8, 16), torch.rand(1))


def matcha_text() -> Ready:
    model = get("matcha.models.components.text_encoder.Encoder")(32, 64, 2, 2, kernel_size=3, p_dropout=0.0)
    return ready(model, floats(2, 32, 16), padding(2, 16).float()[:, None])


def glow() -> Ready:
    model = get("TTS.tts.layers.glow_tts.transformer.RelativePositionTransformer")(
        32, 32, 32, 64, 2, 2, rel_attn_window_size=4
    )
    return ready(model, floats(2, 32, 16), padding(2, 16).float()[:, None])


def tortoise() -> Ready:
    model = get("TTS.tts.layers.tortoise.arch_utils.AttentionBlock")(32, num_heads=2, relative_pos_embeddings=True)
    return ready(model, floats(2, 32, 16))


def asteroid() -> Ready:
    model = get("asteroid.models.DPTNet")(
        2, n_heads=2, ff_hid=16, chunk_size=10, n_repeats=1, n_filters=16, sample_rate=8000
    )
    return ready(model, floats(1, 400))


def soundstorm(**options: Any) -> Ready:
    model = get("soundstorm_pytorch.Conformer")(dim=32, depth=2, dim_head=16, heads=2, conv_kernel_size=7, **options)
    return ready(model, floats(2, 32, 32), mask=padding())


def spear() -> Ready:
    model = get("spear_tts_pytorch.spear_tts_pytorch.Transformer")(
        dim=32, depth=2, heads=2, dim_head=16, causal=True, cross_attend=True
    )
    return ready(model, floats(2, 16, 32), context=floats(2, 32, 32), context_mask=padding())


def audiolm() -> Ready:
    model = get("audiolm_pytorch.audiolm_pytorch.Transformer")(dim=32, depth=2, heads=2, dim_head=16)
    return ready(model, floats(2, 32, 32), self_attn_mask=padding())


def mulan() -> Ready:
    model = get("musiclm_pytorch.TextTransformer")(dim=32, depth=2, num_tokens=TOKENS, heads=2, dim_head=16)
    return ready(model, tokens(), mask=padding())


def voicebox() -> Ready:
    model = get("voicebox_pytorch.voicebox_pytorch.Transformer")(dim=32, depth=2, heads=2, dim_head=16)
    return ready(model, floats(2, 32, 32), mask=padding())


def encodec() -> Ready:
    model = get("encodec.modules.transformer.StreamingTransformerEncoder")(
        32, num_heads=2, num_layers=2, past_context=16
    )
    return ready(model, floats(2, 16, 32))


def e2() -> Ready:
    model = get("e2_tts_pytorch.e2_tts.Transformer")(dim=32, depth=2, heads=2, dim_head=16, cond_on_time=False)
    return ready(model, floats(2, 16, 32))


SOUND = (
    Stranger("openai-whisper", "without SDPA", lambda: whisper(False)),
    Stranger("openai-whisper", "with SDPA", lambda: whisper(True)),
    Stranger("speechbrain", "transformer", lambda: speechbrain("transformer")),
    Stranger(
        "speechbrain",
        "conformer",
        lambda: speechbrain("conformer", attention_type="RelPosMHAXL", kernel_size=7, normalize_before=True),
    ),
    Stranger(
        "speechbrain",
        "branchformer",
        lambda: speechbrain("branchformer", attention_type="RelPosMHAXL", csgu_linear_units=64, kernel_size=7),
    ),
    Stranger("funasr", "transformer", lambda: funasr("transformer")),
    Stranger("funasr", "conformer", lambda: funasr("conformer")),
    Stranger("funasr", "SANM", sanm),
    Stranger("demucs", "transformer", demucs),
    Stranger("beat-this", "BeatThis", beat_this),
    Stranger("matcha-tts", "decoder", matcha),
    Stranger("matcha-tts", "text encoder", matcha_text),
    Stranger("coqui-tts", "Glow-TTS", glow),
    Stranger("coqui-tts", "Tortoise", tortoise),
    Stranger("asteroid", "DPTNet", asteroid),
    Stranger("soundstorm-pytorch", "conformer", soundstorm),
    Stranger("soundstorm-pytorch", "by hand", lambda: soundstorm(attn_flash=False, t5_rel_pos_bias=True)),
    Stranger("spear-tts-pytorch", "transformer", spear),
    Stranger("audiolm-pytorch", "transformer", audiolm),
    Stranger("musiclm-pytorch", "text", mulan),
    Stranger("voicebox-pytorch", "transformer", voicebox),
    Stranger("encodec", "transformer", encodec),
    Stranger("e2-tts-pytorch", "transformer", e2),
    Stranger(
        "conformer",
        "Conformer",
        lambda: ready(
            get("conformer.Conformer")(dim=32, depth=2, dim_head=16, heads=2, conv_kernel_size=7), floats(2, 32, 32)
        ),
    ),
)
__all__ = ["SOUND", "method"]
