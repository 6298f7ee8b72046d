"""Policies: the grammar, what each condition asks, what is wrong with a text, and machines that nobody here has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from attnpass.errors import ConfigError, KernelUnavailableError, UnknownKernelError
from attnpass.ir.call import AttentionCall, Context, Kind, Pattern
from attnpass.ir.mask import MaskSpec, MaskTerm, Term
from attnpass.kernels.registry import registry, registry_for
from attnpass.machine.known import KNOWN_MACHINES
from attnpass.select.wishes import check_policy, resolve_policy
from attnpass.settings.conditions import COMPARISONS, FACTS, SIZES
from attnpass.settings.config import VARIABLES, Config
from attnpass.settings.policy import Choice, Clause, Condition, Policy, PolicyError, parse
from tests.select.test_select import call, masked

SELF, CROSS = call(kind=Kind.SELF, module="blocks.0.attn"), call(kind=Kind.CROSS, module="blocks.0.cross", Sk=77)
SYMBOL = ShapeEnv().create_unbacked_symint()


def chosen(policy: str, one: AttentionCall) -> str:
    return ",".join(parse(policy).choose(one).wishes)


# The grammar

names = st.from_regex(r"[a-z_][a-z0-9_]{0,5}|hub:[a-z]{1,4}/[a-z-]{1,4}(@v[0-9])?", fullmatch=True)
wishes = st.lists(names, min_size=1, max_size=3).map(tuple)
globs = st.from_regex(r"[a-z*?.\[\]0-9_-]{0,6}[.*?\[][a-z*?.\[\]0-9_-]{0,6}", fullmatch=True)
numbers = st.integers(0, 10**6)
conditions = st.one_of(
    st.builds(Condition, st.sampled_from(list(FACTS)), negated=st.booleans()),
    st.builds(Condition, globs, negated=st.booleans()),
    st.builds(Condition, st.sampled_from(list(SIZES)), st.sampled_from(list(COMPARISONS)), numbers, st.booleans()),
)
clauses = st.builds(Clause, st.lists(conditions, min_size=1, max_size=3).map(tuple), wishes)
policies = st.builds(
    Policy, st.lists(clauses, max_size=4, unique_by=lambda clause: frozenset(clause.conditions)).map(tuple), wishes
)


@given(policies, st.data())
def test_what_is_printed_is_read_back(policy: Policy, data: st.DataObject) -> None:
    assert parse(str(policy)) == policy
    spaced = "".join(f" {sign} " if sign in ",;&" else sign for sign in str(policy))
    assert parse(f";{spaced};;") == policy
    assert Config.load({"attnpass.kernel": str(policy)}, {}).kernel == policy


@given(policies)
def test_every_call_gets_one_answer(policy: Policy) -> None:
    for one in (SELF, CROSS, call(module="", needs_grad=True)):
        choice = policy.choose(one)
        assert choice.wishes in [names for _, names in policy.wish_lists()]
        assert set(choice.wishes) <= set(policy.wishes)


def test_a_plain_list_is_as_plain_as_ever() -> None:
    config = Config.load({"attnpass.kernel": " sage , flash3 "}, {})
    assert config.kernel.default == ("sage", "flash3") and not config.kernel.clauses
    assert config == Config(kernel=Policy(default=("sage", "flash3")))
    assert config.kernel.choose(CROSS) == Choice(("sage", "flash3"))
    assert config.to_dict()["kernel"] == ["sage", "flash3"]
    assert Config.load({}, {}).kernel == Policy() == parse("auto")


def test_the_example_of_the_docs() -> None:
    policy = parse("sage; cross=native_cudnn; blocks.0.*=flash3; decode=native")
    assert policy.default == ("sage",) and [str(clause) for clause in policy.clauses] == [
        "cross=native_cudnn",
        "blocks.0.*=flash3",
        "decode=native",
    ]
    assert policy.choose(SELF).clause == "blocks.0.*=flash3"
    assert policy.choose(CROSS).clause == "cross=native_cudnn"  # the first one that matches, not the closest
    assert policy.choose(replace(SELF, module="blocks.1.attn")) == Choice(("sage",), "sage")
    assert chosen("decode=native; sage", call(Sq=1)) == "native"


def test_the_default_may_stand_anywhere_and_is_auto_if_missing() -> None:
    assert parse("a; cross=b") == parse("cross=b; a") == parse("cross=b;a;")
    assert parse("cross=b").default == ("auto",)
    assert str(parse("cross=b; auto")) == "cross=b"


def test_options_take_lists() -> None:
    def policy(value: Any) -> Policy:
        return Config.load({"attnpass.kernel": value}, {}).kernel

    assert policy(["sage", "flash3"]) == policy(("sage", "flash3")) == parse("sage,flash3")
    assert policy(["sage,flash3", "cross=native", "head_dim>128=flex"]) == parse(
        "sage,flash3; cross=native; head_dim>128=flex"
    )
    with pytest.raises(ConfigError, match=r"'sage' and 'flash3' both have no condition"):
        policy(["sage", "flash3", "cross=native"])


# What each condition asks


@pytest.mark.parametrize(
    ("condition", "yes", "no"),
    [
        ("self", SELF, CROSS),
        ("cross", CROSS, SELF),
        ("!cross", SELF, CROSS),
        ("decode", call(Sq=1), call()),
        ("prefill", call(), call(Sq=1)),
        ("train", call(needs_grad=True), call()),
        ("inference", call(), call(needs_grad=True)),
        ("causal", call(mask=MaskSpec.causal(3)), call()),
        ("masked", masked(), call()),
        ("masked", call(mask=MaskSpec.causal()), call()),
        ("gqa", call(Hkv=2), call()),
        ("handwritten", call(pattern=Pattern.HANDWRITTEN), call()),
        ("bf16", call(), call(dtype=torch.float16)),
        ("fp16", call(context=Context(autocast=torch.float16)), call()),
        ("head_dim>128", call(D=256), call(D=128)),
        ("head_dim==64", call(D=64), call(D=65)),
        ("head_dim != 64", call(D=65), call(D=64)),
        ("Sk<=1024", call(Sk=1024), call(Sk=1025)),
        ("Sq>=4", call(Sq=4), call(Sq=3)),
        ("!Sq<4", call(Sq=4), call(Sq=3)),
        ("blocks.0.*", SELF, replace(SELF, module="blocks.10.attn")),
        ("*.attn", SELF, CROSS),
        ("!*.attn", CROSS, SELF),
        ("blocks.[0-3].*", SELF, replace(SELF, module="blocks.4.attn")),
        ("blocks.[!1-9].*", SELF, replace(SELF, module="blocks.4.attn")),
        ("attn?", call(module="attn1"), call(module="attn")),
        ("*attn", SELF, CROSS),
        ("self&head_dim==64&!train", SELF, replace(SELF, needs_grad=True)),
    ],
)
def test_conditions(condition: str, yes: AttentionCall, no: AttentionCall) -> None:
    policy = parse(f"{condition} = flex; native")
    assert policy.choose(yes).wishes == ("flex",)
    assert policy.choose(no) == Choice(("native",), "native")


@pytest.mark.parametrize(
    ("condition", "one", "reason"),
    [
        ("cross", call(), "the graph does not show where K comes from"),
        ("Sk>1024", call(Sk=SYMBOL), "Sk is u0"),
        ("decode", replace(call(), q=replace(call().q, shape=(2, 8, SYMBOL, 64))), "Sq is u0"),
        ("causal", masked(), "what the mask tensor means was not proved"),
        ("causal", call(mask=MaskSpec((MaskTerm(Term.FUNCTION),), meaning="q > k")), "the mask has no name: q > k"),
        ("causal", call(context=Context(unreadable="is_causal")), "is_causal is decided at run time"),
        ("masked", call(context=Context(unreadable="is_causal")), "is_causal is decided at run time"),
        ("gqa", call(Hkv=SYMBOL), "H is 8 and Hkv is u0"),
        ("cross&Sk>1024", call(Sk=SYMBOL), "the graph does not show where K comes from; Sk is u0"),
    ],
)
def test_what_is_unknown_matches_neither_and_is_told(condition: str, one: AttentionCall, reason: str) -> None:
    choice = parse(f"{condition}=flex; native").choose(one)
    assert choice == Choice(("native",), "native", (f"{condition}=flex: {reason}",))
    if "&" not in condition:
        assert parse(f"!{condition}=flex; native").choose(one).skipped == (f"!{condition}=flex: {reason}",)


def test_one_no_settles_it_whatever_is_unknown_beside() -> None:
    assert parse("cross&train=flex; native").choose(call()).skipped == ()
    assert chosen("Sk>1024&*.attn=flex; native", call(Sk=SYMBOL, module="x.y")) == "native"


def test_symbolic_sizes_with_bounds_are_known_without_a_guard() -> None:
    env = ShapeEnv()
    length = env.create_unbacked_symint()
    torch._check(length >= 2)
    torch._check(length <= 512)
    one = call(Sk=length)
    assert chosen("Sk<=1024=flex; native", one) == "flex"
    assert chosen("Sk>1024=flex; native", one) == "native"
    assert parse("Sk>1024=flex").choose(one).skipped == ()
    assert parse("Sk>64=flex").choose(one).skipped and not env.guards


# What is wrong with a text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "crss=flex",
            "in the clause 'crss=flex': 'crss' is no condition, did you mean cross? Legal conditions: self, cross,",
        ),
        ("sage; !crss=flex", "in the clause '!crss=flex': '!crss' is no condition, did you mean cross?"),
        ("attn=flex", "a module path with a . or a *, such as blocks.0.* or *attn"),
        ("!!*.attn=flex", "in the clause '!!*.attn=flex': '!!*.attn' is no condition."),
        ("blocks.[0,20].*=flex", "'blocks.[0,20].*' is no condition."),
        ("cross&=flex", "in the clause 'cross&=flex': '' is no condition."),
        ("=flex", "in the clause '=flex': '' is no condition."),
        ("sq>4=flex", "in the clause 'sq>4=flex': 'sq' is no size, did you mean Sq?"),
        ("cross>4=flex", "'cross' is no size."),
        (
            "head_dim>x=flex",
            "in the clause 'head_dim>x=flex': head_dim is compared with 'x', needs a number, 0 or more",
        ),
        ("head_dim>-1=flex", "head_dim is compared with '-1', needs a number, 0 or more"),
        ("head_dim=64=flash3", "head_dim needs a comparison, as in 'head_dim==64=flash3'"),
        ("head_dim=flash3", "head_dim needs a comparison, as in 'head_dim<=128=flash3'"),
        (
            "head_dim==64",
            "in the clause 'head_dim==64': 'head_dim==64' is no kernel; conditions stand in front of one =",
        ),
        ("cross==flex", "'cross==flex' is no kernel; conditions stand in front of one ="),
        ("cross=flex=native", "in the clause 'cross=flex=native': 'flex=native' is no kernel"),
        (
            "cross=native,self=flex",
            "'self=flex' is no kernel; conditions stand in front of one =, clauses are separated by ;",
        ),
        ("sage,cross=flex", "in the clause 'sage,cross=flex': 'sage,cross' is no condition"),
        ("cross=", "the clause 'cross=' names no kernel, needs at least one, such as cross=auto"),
        ("cross= , ", "the clause 'cross= ,' names no kernel"),
        ("sage; cross=flex; flash3", "the clauses 'sage' and 'flash3' both have no condition, at most one may"),
        ("cross=flex; self=sage; cross=native", "the clause 'cross=native' has the conditions of 'cross=flex', which"),
        ("self&train=a; train&self=b", "the clause 'train&self=b' has the conditions of 'self&train=a'"),
        (" ; ", "it names no kernel"),
    ],
)
def test_wording_of_errors(text: str, message: str) -> None:
    with pytest.raises(PolicyError) as refused:
        parse(text)
    assert message in str(refused.value)
    with pytest.raises(ConfigError) as told:
        Config.load({}, {"ATTNPASS_KERNEL": text})
    assert str(told.value).startswith(f"reading attnpass settings: ATTNPASS_KERNEL is {text!r}: ")
    assert message in str(told.value)


def test_every_legal_condition_is_named() -> None:
    with pytest.raises(PolicyError) as refused:
        parse("what=flex")
    assert all(word in str(refused.value) for word in (*FACTS, *SIZES))


def test_names_are_checked_in_every_clause() -> None:
    policy = parse("_native_flash; cross=_native_cudnn,auto; *.attn=flex")
    assert resolve_policy(policy, registry()) == ("native_flash", "native_cudnn", "auto", "flex")
    with pytest.raises(UnknownKernelError) as unknown:
        resolve_policy(parse("sage; cross=native_cudn"), registry())
    assert (
        "ATTNPASS_KERNEL names 'native_cudn' in the clause 'cross=native_cudn', which is not a kernel, did you mean"
        in (str(unknown.value))
    )
    with pytest.raises(UnknownKernelError, match="names 'flax' in the clause 'flax', which is not"):
        resolve_policy(parse("flax; cross=native"), registry())
    with pytest.raises(UnknownKernelError, match="names 'flax', which is not"):
        resolve_policy(parse("flax"), registry())


def test_a_missing_library_is_an_error_in_any_clause() -> None:
    machine = replace(KNOWN_MACHINES["h100"], versions={"torch": "2.4.1"})
    check_policy(parse("auto; cross=auto"), registry(), machine)
    with pytest.raises(
        KernelUnavailableError, match=r"names flex in the clause 'cross=flex', whose library torch is 2\.4\.1"
    ):
        check_policy(parse("auto; cross=flex"), registry(), machine)


def test_hub_kernels_have_colons_and_slashes() -> None:
    policy = parse("auto; cross=hub:kernels-community/flash-attn2@2; *.attn=hub:./my-kernel,native")
    assert policy.wishes == ("auto", "hub:kernels-community/flash-attn2@2", "hub:./my-kernel", "native")
    assert "hub:kernels-community/flash-attn2@2" in registry_for(policy.wishes[:2])


# Selection on invented machines


def test_the_setting_and_the_docs_say_it() -> None:
    (variable,) = (one for one in VARIABLES if one.field == "kernel")
    assert "CONDITION=names" in variable.legal
    assert parse("sage; cross=native_cudnn; blocks.0.*=flash3").clauses  # the example in it
