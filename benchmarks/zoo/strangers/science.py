"""Models of proteins, molecules, graphs and points, and building blocks for images."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.zoo.stranger import Ready, Stranger, floats, get, method, padding, ready
from benchmarks.zoo.strangers.parts import HEADS, block


def esm1(name: str) -> Ready:
    alphabet = get("esm.data.Alphabet").from_architecture("ESM-1b" if name == "ESM2" else "roberta_large")
    model = get("esm.model.esm2.ESM2")(num_layers=2, embed_dim=32, attention_heads=2, alphabet=alphabet)
    ids = torch.randint(4, 20, (2, 16))
    ids[1, 12:] = alphabet.padding_idx
    return ready(model, ids)


def msa() -> Ready:
    from argparse import Namespace

    alphabet = get("esm.data.Alphabet").from_architecture("msa_transformer")
    args = Namespace(
        embed_dim=32,
        layers=1,
        attention_heads=2,
        ffn_embed_dim=64,
        max_tokens=256,
        max_tokens_per_msa=256,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        max_positions=64,
        embed_positions_msa=True,
        logit_bias=True,
        embed_positions_msa_dim=32,
        arch="msa_transformer",
    )
    return ready(get("esm.model.msa_transformer.MSATransformer")(args, alphabet), torch.randint(4, 20, (1, 4, 12)))


def enformer() -> Ready:
    model = get("enformer_pytorch.Enformer").from_hparams(
        dim=192, depth=1, heads=2, output_heads={"human": 4}, target_length=8, use_checkpointing=False, attn_dim_key=16
    )
    return ready(model, torch.randint(0, 5, (1, 1024)))


def en_transformer() -> Ready:
    return ready(
        get("en_transformer.EnTransformer")(dim=32, depth=1, dim_head=64, heads=2), floats(1, 8, 32), floats(1, 8, 3)
    )


def se3() -> Ready:
    model = get("se3_transformer_pytorch.SE3Transformer")(
        dim=8, heads=2, depth=1, dim_head=4, num_degrees=2, valid_radius=10
    )
    return ready(model, floats(1, 8, 8), floats(1, 8, 3), mask=torch.ones(1, 8, dtype=torch.bool), return_type=0)


def equiformer() -> Ready:
    model = get("equiformer_pytorch.Equiformer")(
        dim=8, heads=2, depth=1, dim_head=4, num_degrees=2, l2_dist_attention=False
    )
    return ready(model, floats(1, 8, 8), floats(1, 8, 3), mask=torch.ones(1, 8, dtype=torch.bool))


def ipa() -> Ready:
    model = get("invariant_point_attention.InvariantPointAttention")(dim=32, heads=2, require_pairwise_repr=False)
    return ready(
        model,
        floats(1, 16, 32),
        rotations=torch.eye(3).expand(1, 16, 3, 3).clone(),
        translations=floats(1, 16, 3),
        mask=padding(1, 16, 3),
    )


def graph() -> Ready:
    model = get("graph_transformer_pytorch.GraphTransformer")(dim=32, depth=1, dim_head=16, heads=2, edge_dim=8)
    return ready(model, floats(1, 16, 32), floats(1, 16, 16, 8), mask=padding(1, 16, 3))


def molecule() -> Ready:
    model = get("molecule_attention_transformer.MAT")(dim_in=16, model_dim=32, dim_out=4, depth=1, heads=2)
    return ready(
        model,
        floats(2, 12, 16),
        mask=padding(2, 12, 3),
        adjacency_mat=torch.randint(0, 2, (2, 12, 12)).bool(),
        distance_mat=torch.rand(2, 12, 12),
    )


def alphafold(name: str) -> Ready:
    if name == "attention":
        model = get("alphafold3_pytorch.attention.Attention")(dim=32, dim_head=16, heads=2)
        return ready(model, floats(2, 16, 32), mask=padding(2, 16, 3))
    model = get("alphafold3_pytorch.alphafold3.AttentionPairBias")(dim=32, heads=2, dim_pairwise=16, dim_head=16)
    return ready(model, floats(1, 16, 32), pairwise_repr=floats(1, 16, 16, 16), mask=padding(1, 16, 3))


SCIENCE = (
    Stranger("fair-esm", "ESM-2", partial(esm1, "ESM2")),
    Stranger("fair-esm", "MSA transformer", msa),
    Stranger("enformer-pytorch", "Enformer", enformer),
    Stranger("en-transformer", "En-Transformer", en_transformer),
    Stranger("se3-transformer-pytorch", "SE3-Transformer", se3),
    Stranger("equiformer-pytorch", "Equiformer", equiformer),
    Stranger("invariant-point-attention", "IPA", ipa),
    Stranger("graph-transformer-pytorch", "transformer", graph),
    Stranger("molecule-attention-transformer", "MAT", molecule),
    Stranger("alphafold3-pytorch", "attention", partial(alphafold, "attention")),
    Stranger("alphafold3-pytorch", "pair bias", partial(alphafold, "pair")),
    Stranger(
        "point-transformer-pytorch",
        "vector attention",
        lambda: block("point_transformer_pytorch.PointTransformerLayer", (1, 16, 32), (1, 16, 3), dim=32),
    ),
    Stranger(
        "egnn-pytorch",
        "global attention",
        lambda: method(
            get("egnn_pytorch.egnn_pytorch.GlobalLinearAttention")(dim=32, **HEADS),
            "forward",
            floats(1, 16, 32),
            floats(1, 4, 32),
        ),
    ),
)
