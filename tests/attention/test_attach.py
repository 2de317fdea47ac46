from __future__ import annotations

import gc
import warnings
import weakref

import pytest
import torch
from torch import nn

from hnloader.attention import Application, attach, attachments, find_sites
from hnloader.errors import HypernetworkError, NoMatchingSitesError, PartialMatchWarning
from tests.support.small_models import (
    WIDTHS,
    assert_same,
    assert_untouched,
    fingerprint,
    make_hypernetwork,
    make_text_encoder,
    make_unet,
    make_vae,
    reference,
    run,
)

ALL = WIDTHS["sd1"]


@pytest.fixture
def unet():
    return make_unet("sd1")


@pytest.mark.parametrize("kind", WIDTHS)
@pytest.mark.parametrize("strength", [1.0, 0.35, -0.7, 2.5])
def test_keys_and_values_are_computed_from_the_changed_contexts(kind, strength):
    unet = make_unet(kind)
    before, plain = fingerprint(unet), run(unet, kind)
    hypernetwork = make_hypernetwork(WIDTHS[kind])
    expected = run(reference(unet, [(hypernetwork, strength, strength)]), kind)

    attachment = attach(unet, hypernetwork, strength)
    result = run(unet, kind)
    assert_same(result, expected)
    assert (result - plain).abs().max() > 0.05

    attachment.detach()
    assert_untouched(unet, before)
    assert torch.equal(run(unet, kind), plain)


def test_strength_zero_changes_no_bit(unet):
    plain = run(unet)
    with attach(unet, make_hypernetwork(ALL), 0):
        assert torch.equal(run(unet), plain)


def test_a_file_with_the_text_width_only_changes_cross_attention_only(unet):
    hypernetwork = make_hypernetwork((48,))
    expected = run(reference(unet, [(hypernetwork, 1, 1)]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attachment = attach(unet, hypernetwork)
    assert {site.kind for site in attachment.sites} == {"cross"}
    assert_same(run(unet), expected)


@pytest.mark.parametrize("kind", WIDTHS)
def test_several_are_chained_in_order(kind):
    unet = make_unet(kind)
    first, second = (
        make_hypernetwork(WIDTHS[kind], 1, "first"),
        make_hypernetwork(WIDTHS[kind][1:], 2, "second"),
    )
    forwards = run(reference(unet, [(first, 0.8, 0.8), (second, 0.3, 0.3)]), kind)
    backwards = run(reference(unet, [(second, 0.3, 0.3), (first, 0.8, 0.8)]), kind)
    with attach(unet, [(first, 0.8), (second, 0.3)]):
        assert_same(run(unet, kind), forwards)
    with attach(unet, [(second, 0.3), (first, 0.8)]):
        assert_same(run(unet, kind), backwards)
    with attach(unet, first, 0.8), attach(unet, second, 0.3):
        assert_same(run(unet, kind), forwards)
    with pytest.raises(AssertionError):
        assert_same(forwards, backwards)


def test_a_hypernetwork_attached_twice_acts_twice(unet):
    hypernetwork = make_hypernetwork(ALL)
    expected = run(reference(unet, [(hypernetwork, 0.5, 0.5), (hypernetwork, 0.5, 0.5)]))
    with attach(unet, [hypernetwork, hypernetwork], 0.5):
        assert_same(run(unet), expected)


def test_keys_and_values_can_have_their_own_factors(unet):
    hypernetwork = make_hypernetwork(ALL)
    expected = run(reference(unet, [(hypernetwork, 0.4, 0)]))
    with attach(unet, Application(hypernetwork, 0.8, k=0.5, v=0)):
        assert_same(run(unet), expected)


def test_the_strength_is_for_hypernetworks_without_one(unet):
    one, two = make_hypernetwork(ALL, 1), make_hypernetwork(ALL, 2)
    with attach(unet, [one, (two, 0.2), Application(two, 0.3)], 0.7, start=0.1) as attachment:
        assert [each.strength for each in attachment.applications] == [0.7, 0.2, 0.3]
        assert [each.start for each in attachment.applications] == [0.1, 0.1, 0]


@pytest.mark.parametrize("form", ["hypernetwork", "pair", "mapping pair", "application", "list", "list of pairs"])
def test_every_form_of_one_hypernetwork(unet, form):
    hypernetwork = make_hypernetwork(ALL)
    expected = run(reference(unet, [(hypernetwork, 0.6, 0.6)]))
    given, strength = {
        "hypernetwork": (hypernetwork, 0.6),
        "pair": ((hypernetwork, 0.6), 1.0),
        "mapping pair": ((hypernetwork, {"*": 0.6}), 1.0),
        "application": (Application(hypernetwork, 0.6), 1.0),
        "list": ([hypernetwork], {"*": 0.6}),
        "list of pairs": ([(hypernetwork, 0.6)], 1.0),
    }[form]
    with attach(unet, given, strength):
        assert_same(run(unet), expected)


def save_as_webui(hypernetwork, path):
    """Write a file as the webui does."""
    tensors = hypernetwork.state_dict()
    content = {
        width: tuple(
            {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
            for start in (f"sides.{width}.k.", f"sides.{width}.v.")
        )
        for width in hypernetwork.widths
    }
    torch.save({**content, "layer_structure": [1, 2, 1], "activation_func": "relu", "activate_output": False}, path)


@pytest.mark.parametrize("convert", [str, lambda path: path])
def test_paths_are_loaded(unet, tmp_path, convert):
    one, two = make_hypernetwork(ALL, 1), make_hypernetwork((48,), 2)
    save_as_webui(one, tmp_path / "ink.pt")
    save_as_webui(two, tmp_path / "dots.pt")
    ink, dots = convert(tmp_path / "ink.pt"), convert(tmp_path / "dots.pt")
    alone = run(reference(unet, [(one, 0.6, 0.6)]))
    both = run(reference(unet, [(one, 0.8, 0.8), (two, 0.3, 0.3)]))
    with attach(unet, ink, 0.6) as attachment:
        assert attachment.hypernetworks[0].name == "ink"
        assert_same(run(unet), alone)
    with attach(unet, [(ink, 0.8), (dots, 0.3)]):
        assert_same(run(unet), both)


def test_an_unreadable_file_leaves_the_model_unchanged(unet, tmp_path):
    before = fingerprint(unet)
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    with pytest.raises(HypernetworkError, match=r"bad\.pt"):
        attach(unet, [make_hypernetwork(ALL), tmp_path / "bad.pt"])
    assert_untouched(unet, before)


def test_a_tuple_of_two_hypernetworks_is_a_sequence(unet):
    one, two = make_hypernetwork(ALL, 1), make_hypernetwork(ALL, 2)
    with attach(unet, (one, two)) as attachment:
        assert attachment.hypernetworks == (one, two)


# Strengths while attached


def test_strengths_change_while_attached(unet):
    one, two = make_hypernetwork(ALL, 1, "one"), make_hypernetwork(ALL, 2, "two")
    with attach(unet, [(one, 0.8), (two, 0.3)]) as attachment:
        run(unet)
        attachment.set_strength(0.4)
        assert_same(run(unet), run(reference(make_unet(), [(one, 0.4, 0.4), (two, 0.4, 0.4)])))
        attachment.set_strength(0.9, 1)
        assert_same(run(unet), run(reference(make_unet(), [(one, 0.4, 0.4), (two, 0.9, 0.9)])))
        attachment.set_strength(0, "one")
        assert_same(run(unet), run(reference(make_unet(), [(two, 0.9, 0.9)])))
        attachment.set_strength({"up": 1.0}, -1)
        up = reference(make_unet(), lambda name: [(two, 1, 1)] if name.startswith("up") else [])
        assert_same(run(unet), run(up))


def test_a_wrong_strength_keeps_the_old_strength(unet):
    one, two = make_hypernetwork(ALL, 1, "one"), make_hypernetwork(ALL, 2, "two")
    with attach(unet, [one, two], 0.5) as attachment:
        expected = run(unet)
        for wrong, error in (
            ({"mid": 1, "x": 1}, NoMatchingSitesError),
            (float("nan"), ValueError),
            (1e39, ValueError),
        ):
            with pytest.raises(error):
                attachment.set_strength(wrong)
        with pytest.raises(IndexError, match="2"):
            attachment.set_strength(1, 2)
        with pytest.raises(KeyError, match="'one'"):
            attachment.set_strength(1, "onee")
        assert torch.equal(run(unet), expected)


def test_a_strength_beyond_float16_is_refused():
    one = make_hypernetwork(ALL)
    with pytest.raises(ValueError, match="65504"):
        Application(one, {"up": -1e5})
    with pytest.raises(ValueError, match="65504"):
        Application(one, 600, v=-600)


def test_setting_a_strength_after_detaching_is_an_error(unet):
    attachment = attach(unet, make_hypernetwork(ALL))
    attachment.detach()
    with pytest.raises(HypernetworkError, match="detached"):
        attachment.set_strength(1)


# Detaching


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
def test_detaching_in_any_order(unet, order):
    before = fingerprint(unet)
    hypernetworks = [make_hypernetwork(ALL if seed else (20, 48), seed, f"hn{seed}") for seed in range(3)]
    attached = [attach(unet, hypernetwork, 0.5) for hypernetwork in hypernetworks]
    left = list(range(3))
    for position in order:
        attached[position].detach()
        left.remove(position)
        assert attachments(unet) == [attached[each] for each in left]
        expected = reference(make_unet(), [(hypernetworks[each], 0.5, 0.5) for each in left])
        assert_same(run(unet), run(expected))
    assert_untouched(unet, before)


def test_detaching_twice_is_harmless(unet):
    before = fingerprint(unet)
    one, other = attach(unet, make_hypernetwork(ALL, 1)), attach(unet, make_hypernetwork(ALL, 2))
    one.detach()
    one.detach()
    assert attachments(unet) == [other]
    assert (one.attached, other.attached) == (False, True)
    other.detach()
    other.detach()
    assert_untouched(unet, before)


def test_nested_context_managers_and_exceptions(unet):
    before, plain = fingerprint(unet), run(unet)
    one, two = make_hypernetwork(ALL, 1), make_hypernetwork(ALL, 2)
    only_one = run(reference(unet, [(one, 1, 1)]))
    with attach(unet, one):
        with pytest.raises(KeyboardInterrupt), attach(unet, two):
            raise KeyboardInterrupt
        assert_same(run(unet), only_one)
    assert torch.equal(run(unet), plain)
    assert_untouched(unet, before)


def test_after_an_exception_in_the_model_it_can_be_detached(unet):
    before, plain = fingerprint(unet), run(unet)
    with pytest.raises(RuntimeError), attach(unet, make_hypernetwork(ALL)):
        run(unet, encoder_hidden_states=torch.randn(2, 7, 5))
    assert_untouched(unet, before)
    assert torch.equal(run(unet), plain)


def test_hooks_of_other_programs_stay(unet):
    seen = []
    layer = find_sites(unet)[0].module.to_k
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    own = unet.register_forward_pre_hook(lambda module, args: seen.append("unet"))
    before = fingerprint(unet)
    with attach(unet, make_hypernetwork(ALL)):
        run(unet)
    assert_untouched(unet, before)
    seen.clear()
    run(unet)
    assert len(seen) == 2
    handle.remove()
    own.remove()


def test_a_detached_model_is_freed():
    unet = make_unet()
    attachment = attach(unet, make_hypernetwork(ALL))
    attachment.detach()
    gone = [weakref.ref(unet), weakref.ref(find_sites(unet)[0].module)]
    del unet
    gc.collect()
    assert [reference() for reference in gone] == [None, None]
    assert attachment.sites == ()


# Errors while attaching


def refuse(*_, **__):
    raise ZeroDivisionError


def test_a_failure_while_attaching_leaves_the_model_unchanged(unet, monkeypatch):
    before = fingerprint(unet)
    with monkeypatch.context() as patch:
        patch.setattr("hnloader.attention.assembly.fold_into", refuse)
        with pytest.raises(ZeroDivisionError):
            attach(unet, make_hypernetwork(ALL, activation=None))
    assert_untouched(unet, before)
    assert attachments(unet) == []


def test_a_failing_second_attachment_leaves_the_first(unet, monkeypatch):
    one, two = make_hypernetwork((48,), 1), make_hypernetwork(ALL, 2, activation=None)
    first = attach(unet, one)
    expected, before = run(unet), fingerprint(unet)
    with monkeypatch.context() as patch:
        patch.setattr("hnloader.attention.assembly.fold_into", refuse)
        with pytest.raises(ZeroDivisionError):
            attach(unet, two)
    assert_untouched(unet, before)
    assert attachments(unet) == [first]
    assert torch.equal(run(unet), expected)
    first.detach()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (([],), ValueError),
        ((None,), TypeError),
        ((3,), TypeError),
        (([3],), TypeError),
        (([make_vae()],), TypeError),
        ((nn.ModuleList([make_hypernetwork(ALL)]),), TypeError),
        ((make_hypernetwork(ALL), "strong"), TypeError),
        ((make_hypernetwork(ALL), float("inf")), ValueError),
        ((make_hypernetwork(ALL), {"sideways": 1.0}), NoMatchingSitesError),
        (([make_hypernetwork(ALL), make_hypernetwork((7,))],), NoMatchingSitesError),
    ],
)
def test_a_wrong_argument_leaves_the_model_unchanged(unet, arguments, error):
    before = fingerprint(unet)
    with pytest.raises(error):
        attach(unet, *arguments)
    assert_untouched(unet, before)


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (0.6, 0.4), (-0.1, 1), (0, 1.1), (float("nan"), 1)])
def test_a_window_must_be_a_part_of_the_sampling(unet, start, end):
    before = fingerprint(unet)
    with pytest.raises(ValueError):
        attach(unet, make_hypernetwork(ALL), start=start, end=end)
    assert_untouched(unet, before)


def test_an_old_torch_and_a_compiled_model_are_refused(unet, monkeypatch):
    compiled = torch.compile(unet, backend="eager")
    before = fingerprint(unet)
    monkeypatch.setattr(torch, "__version__", "2.4.1+cpu")
    with pytest.raises(HypernetworkError, match=r"torch 2\.4\.1.*2\.5"):
        attach(compiled, make_hypernetwork(ALL))
    assert_untouched(unet, before)
    attach(unet, make_hypernetwork(ALL)).detach()


# Matching widths


def with_real_widths(kind: str) -> nn.Module:
    """Make the layout of a real model without its memory."""
    text = {"sd1": 768, "sd2": 1024, "sdxl": 2048}[kind]
    blocks = (320, 640, 1280) if kind == "sdxl" else (320, 640, 1280, 1280)
    with torch.device("meta"):
        return make_unet(kind, block_out_channels=blocks, cross_attention_dim=text, norm_num_groups=32)


def meta_hypernetwork(widths: tuple[int, ...], name: str = "style.pt") -> object:
    with torch.device("meta"):
        from hnloader.network import Architecture, Hypernetwork

        return Hypernetwork.new(widths, Architecture(), name=name)


def test_no_common_width_is_an_error_with_both_families():
    with pytest.raises(NoMatchingSitesError) as caught:
        attach(with_real_widths("sdxl"), meta_hypernetwork((768, 320)))
    message = str(caught.value)
    for fact in ("style.pt", "SD 1 (768)", "SDXL (2048)", "320, 768", "640, 1280, 2048"):
        assert fact in message


def test_unknown_widths_are_listed(unet):
    with pytest.raises(NoMatchingSitesError) as caught:
        attach(unet, make_hypernetwork((12, 24)))
    assert "an unknown model (12, 24)" in str(caught.value)
    assert "20, 40, 48, 80" in str(caught.value)


def test_a_partial_match_warns_once_with_counts():
    unet = with_real_widths("sdxl")
    with pytest.warns(PartialMatchWarning) as caught:
        attachment = attach(unet, meta_hypernetwork((320, 640, 768, 1280)))
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "11 of 22 attention layers" in message
    assert "320, 768" in message
    assert "SD 1 (768)" in message
    assert "SDXL (2048)" in message
    assert caught[0].filename == __file__
    assert len(attachment.sites) == 11


def test_a_missing_width_of_the_same_family_is_named_without_families():
    with pytest.warns(PartialMatchWarning, match="none has 1536") as caught:
        attach(with_real_widths("sd1"), meta_hypernetwork((320, 640, 768, 1280, 1536))).detach()
    assert str(caught[0].message).count("SD 1") == 1


def test_messages_about_an_unnamed_hypernetwork_name_a_subject():
    with pytest.warns(PartialMatchWarning) as warned:
        attach(with_real_widths("sdxl"), meta_hypernetwork((320, 640, 768, 1280), name="")).detach()
    with pytest.raises(NoMatchingSitesError) as caught:
        attach(with_real_widths("sdxl"), meta_hypernetwork((768, 320), name=""))
    for message in (warned[0].message, caught.value):
        assert str(message).startswith("Hypernetwork: ")


@pytest.mark.parametrize("widths", [(768,), (320, 640, 768, 1280), (320,)])
def test_a_file_whose_widths_all_match_gives_no_warning(widths):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attach(with_real_widths("sd1"), meta_hypernetwork(widths)).detach()


def test_a_summary_reports_the_covered_layers(unet):
    attachment = attach(unet, [(make_hypernetwork((48, 20), 1, "ink"), 0.8), make_hypernetwork(ALL, 2, "dots")])
    lines = attachment.summary().splitlines()
    assert lines[0] == (
        "ink at 0.8: 13 of 20 attention layers (3 self, 10 cross); "
        "not in the file: width 40 (3 layers), width 80 (4 layers)"
    )
    assert lines[1] == "dots at 1: 20 of 20 attention layers (10 self, 10 cross)"
    assert repr(attachment) == "<Attachment ink at 0.8, dots at 1: 20 of 20 attention layers>"
    attachment.detach()
    assert repr(attachment) == attachment.summary() == "<Attachment ink at 0.8, dots at 1: detached>"


def test_a_model_of_another_kind_is_refused():
    for model in (make_vae(), make_text_encoder(48)):
        with pytest.raises(NoMatchingSitesError, match=type(model).__name__):
            attach(model, make_hypernetwork(ALL))


def test_an_object_without_a_unet_is_refused():
    class FluxPipeline:
        transformer = nn.Linear(2, 2)

    with pytest.raises(NoMatchingSitesError, match="FluxPipeline"):
        attach(FluxPipeline(), make_hypernetwork(ALL))
    with pytest.raises(NoMatchingSitesError, match="FluxPipeline"):
        attachments(FluxPipeline())


def test_a_model_without_attachments(unet):
    assert attachments(unet) == []


# Memory


def test_attaching_copies_no_weights(unet):
    hypernetwork = make_hypernetwork(ALL)
    pointers = [parameter.data_ptr() for parameter in hypernetwork.parameters()]
    with attach(unet, hypernetwork) as attachment:
        run(unet)
        assert attachment.hypernetworks[0] is hypernetwork
        assert [parameter.data_ptr() for parameter in hypernetwork.parameters()] == pointers
        assert hypernetwork._copies == {}
