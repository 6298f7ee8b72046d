"""Models of tables, time series and what people click on."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch

from benchmarks.zoo.stranger import Ready, Stranger, floats, get, padding, ready

CATEGORIES = torch.randint(0, 3, (4, 3))


def tab(name: str, **options: Any) -> Ready:
    model = get(f"tab_transformer_pytorch.{name}")(
        categories=(3, 3, 3), num_continuous=4, dim=32, depth=2, heads=2, dim_head=16, **options
    )
    return ready(model, torch.randint(0, 3, (4, 3)), floats(4, 4))


def rtdl(revisited: bool) -> Ready:
    if revisited:
        model = get("rtdl_revisiting_models.FTTransformer")(
            n_cont_features=4,
            cat_cardinalities=[3, 3],
            d_out=1,
            n_blocks=2,
            d_block=32,
            attention_n_heads=2,
            attention_dropout=0.0,
            ffn_d_hidden_multiplier=2.0,
            ffn_dropout=0.0,
            residual_dropout=0.0,
        )
    else:
        model = get("rtdl.FTTransformer").make_baseline(
            n_num_features=4,
            cat_cardinalities=[3, 3],
            d_token=32,
            n_blocks=2,
            attention_dropout=0.0,
            ffn_d_hidden=64,
            ffn_dropout=0.0,
            residual_dropout=0.0,
            d_out=1,
        )
    return ready(model, floats(4, 4), torch.randint(0, 3, (4, 2)))


def i_transformer(name: str, **options: Any) -> Ready:
    sizes = {"num_variates": 5, "lookback_len": 16, "depth": 2, "dim": 32, "pred_length": 4, "dim_head": 16, "heads": 2}
    return ready(get(f"iTransformer.{name}")(**sizes, **options), floats(2, 16, 5))


def neuralforecast(name: str, **options: Any) -> Ready:
    sizes = {"h": 8, "input_size": 16, "hidden_size": 32, "n_head": 2, "alias": None, "max_steps": 1}
    model = get(f"neuralforecast.models.{name}")(**sizes, **options)
    batch = {
        "insample_y": floats(2, 16, options.get("n_series", 1)),
        "insample_mask": torch.ones(2, 16, 1),
        "futr_exog": None,
        "hist_exog": None,
        "stat_exog": None,
    }
    return ready(model, batch)


def chronos() -> Ready:
    from chronos.chronos2 import Chronos2Model
    from chronos.chronos2.config import Chronos2CoreConfig

    config = Chronos2CoreConfig(
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        chronos_config={
            "context_length": 64,
            "input_patch_size": 8,
            "input_patch_stride": 8,
            "output_patch_size": 8,
            "quantiles": [0.1, 0.5, 0.9],
            "use_reg_token": True,
            "use_arcsinh": True,
            "max_output_patches": 4,
        },
    )
    return ready(Chronos2Model(config), floats(2, 64))


def moment() -> Ready:
    config = Namespace(
        task_name="reconstruction",
        seq_len=64,
        patch_len=8,
        patch_stride_len=8,
        transformer_backbone="google/flan-t5-small",
        transformer_type="encoder_only",
        d_model=512,
        device="cpu",
        torch_dtype="float32",
        revin_affine=False,
        value_embedding_bias=False,
        orth_gain=1.41,
        mask_ratio=0.0,
        dropout=0.0,
        add_positional_embedding=True,
        freeze_embedder=False,
        freeze_encoder=False,
        freeze_head=False,
        randomly_initialize_backbone=True,
        t5_config={
            "d_model": 32,
            "d_kv": 16,
            "d_ff": 64,
            "num_layers": 2,
            "num_heads": 2,
            "vocab_size": 32,
            "dropout_rate": 0.0,
        },
    )
    config.d_model = 32
    config = get("momentfm.utils.utils.NamespaceWithDefaults").from_namespace(config)
    return ready(get("momentfm.models.moment.MOMENT")(config), x_enc=floats(2, 1, 64))


def widedeep(name: str, **options: Any) -> Ready:
    columns = ["a", "b", "c", "d"]
    model = get(f"pytorch_widedeep.models.tabular.{name}")(
        column_idx={name: place for place, name in enumerate(columns)},
        cat_embed_input=[("a", 4), ("b", 4)],
        continuous_cols=["c", "d"],
        input_dim=32,
        n_heads=2,
        n_blocks=2,
        **options,
    )
    return ready(model, torch.cat([torch.randint(0, 4, (4, 2)).float(), floats(4, 2)], 1))


def sasrec() -> Ready:
    model = get("recbole.model.layers.TransformerEncoder")(
        n_layers=2, n_heads=2, hidden_size=32, inner_size=64, hidden_dropout_prob=0.0, attn_dropout_prob=0.0
    )
    hidden = torch.where(padding(2, 16, 3)[:, None, None] & torch.ones(16, 16, dtype=torch.bool).tril(), 0.0, -10000.0)
    return ready(model, floats(2, 16, 32), hidden)


def onmt() -> Ready:
    model = get("joeynmt.transformer_layers.MultiHeadedAttention")(2, 32, 0.0)
    return ready(model, floats(2, 16, 32), floats(2, 16, 32), floats(2, 16, 32), mask=padding(2, 16, 3)[:, None])


def tft() -> Ready:
    model = get("tft_torch.tft.InterpretableMultiHeadAttention")(embed_dim=32, num_heads=2)
    return ready(model, floats(2, 8, 32), floats(2, 16, 32), floats(2, 16, 32))


def pypots(name: str) -> Ready:
    if name == "Transformer":
        model = get("pypots.nn.modules.transformer.TransformerEncoder")(2, 32, 2, 16, 16, 64, 0.0, 0.0)
        return ready(model, floats(2, 16, 32))
    layer = get("pypots.nn.modules.autoformer.AutoCorrelationLayer")
    return ready(layer(get("pypots.nn.modules.autoformer.AutoCorrelation")(), 32, 2, 16, 16), *[floats(2, 16, 32)] * 3)


TABLES = (
    Stranger("tab-transformer-pytorch", "TabTransformer", lambda: tab("TabTransformer", mlp_act=torch.nn.ReLU())),
    Stranger("tab-transformer-pytorch", "FTTransformer", lambda: tab("FTTransformer")),
    Stranger("rtdl", "FT-Transformer", lambda: rtdl(False)),
    Stranger("rtdl-revisiting-models", "FT-Transformer", lambda: rtdl(True)),
    Stranger("itransformer", "iTransformer", lambda: i_transformer("iTransformer")),
    Stranger("itransformer", "by hand", lambda: i_transformer("iTransformer", flash_attn=False)),
    Stranger("itransformer", "2-D", lambda: i_transformer("iTransformer2D", num_time_tokens=4)),
    Stranger("neuralforecast", "VanillaTransformer", lambda: neuralforecast("VanillaTransformer", conv_hidden_size=32)),
    Stranger("neuralforecast", "Informer", lambda: neuralforecast("Informer", conv_hidden_size=32)),
    Stranger(
        "neuralforecast",
        "PatchTST",
        lambda: ready(
            get("neuralforecast.models.PatchTST")(
                h=8,
                input_size=32,
                hidden_size=32,
                n_heads=2,
                encoder_layers=2,
                linear_hidden_size=64,
                patch_len=8,
                stride=4,
            ),
            {"insample_y": floats(2, 32, 1)},
        ),
    ),
    Stranger(
        "neuralforecast",
        "iTransformer",
        lambda: ready(
            get("neuralforecast.models.iTransformer")(
                h=8, input_size=16, n_series=3, hidden_size=32, n_heads=2, e_layers=2, d_ff=64
            ),
            {"insample_y": floats(2, 16, 3)},
        ),
    ),
    Stranger(
        "neuralforecast",
        "TFT attention",
        lambda: ready(
            get("neuralforecast.models.tft.InterpretableMultiHeadAttention")(
                n_head=2, hidden_size=32, example_length=16, attn_dropout=0.0, dropout=0.0
            ),
            floats(2, 16, 32),
        ),
    ),
    Stranger(
        "pytorch-forecasting",
        "TFT attention",
        lambda: ready(
            get("pytorch_forecasting.models.temporal_fusion_transformer.sub_modules.InterpretableMultiHeadAttention")(
                n_head=2, d_model=32
            ),
            floats(2, 16, 32),
            floats(2, 16, 32),
            floats(2, 16, 32),
        ),
    ),
    Stranger("chronos-forecasting", "Chronos-2", chronos),
    Stranger("momentfm", "MOMENT", moment),
    Stranger("pytorch-widedeep", "FTTransformer", lambda: widedeep("FTTransformer")),
    Stranger("pytorch-widedeep", "SAINT", lambda: widedeep("SAINT")),
    Stranger(
        "pytorch-widedeep",
        "TabTransformer",
        lambda: widedeep("TabTransformer", embed_continuous=True, embed_continuous_method="standard"),
    ),
    Stranger(
        "deepctr-torch",
        "AutoInt",
        lambda: ready(get("deepctr_torch.layers.InteractingLayer")(32, 2, scaling=True), floats(4, 6, 32)),
    ),
    Stranger("recbole", "SASRec", sasrec),
    Stranger("joeynmt", "attention", onmt),
    Stranger("tft-torch", "attention", tft),
    Stranger("pypots", "transformer", lambda: pypots("Transformer")),
    Stranger(
        "etsformer-pytorch",
        "ETSformer",
        lambda: ready(
            get("etsformer_pytorch.ETSFormer")(time_features=4, model_dim=32, layers=2, heads=2, K=2),
            floats(2, 64, 4),
            num_steps_forecast=4,
        ),
    ),
    Stranger(
        "tsai",
        "TSTPlus",
        lambda: ready(
            get("tsai.models.TSTPlus.TSTPlus")(3, 2, 32, d_model=32, n_heads=2, d_ff=64, n_layers=2), floats(2, 3, 32)
        ),
    ),
    Stranger(
        "tsai",
        "TransformerModel",
        lambda: ready(
            get("tsai.models.TransformerModel.TransformerModel")(3, 2, d_model=32, n_head=2, d_ffn=64, n_layers=2),
            floats(2, 3, 32),
        ),
    ),
)
