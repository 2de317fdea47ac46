"""Run out of memory while attaching and using hypernetworks."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hnloader.attention import attach
from hnloader.attention.attach import attachments
from lab.faults._children import Ending, all_memory, run, small_memory, some
from lab.faults._trials import Count


class _FailAt(TorchDispatchMode):
    """Makes the `number`-th tensor operation raise torch's out-of-memory error."""

    def __init__(self, number: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.left = number

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.left -= 1
        if self.left == -1:
            raise torch.cuda.OutOfMemoryError("Out of memory.")
        return func(*args, **(kwargs or {}))


def at_operations(rounds: int, seed: int) -> Count:
    """Fail each tensor operation of attaching and of the first call, or `rounds` of them, and then try again.

    The model must be unchanged after a failed `attach`, and after detaching that follows a failed call.
    """
    count = Count()
    from tests.support.small_models import WIDTHS, assert_untouched, fingerprint, make_hypernetwork, make_unet
    from tests.support.small_models import run as call

    unet = make_unet("sd1")
    styles = [make_hypernetwork(WIDTHS["sd1"], seed=n, activation=a) for n, a in enumerate(("relu", None))]
    before, plain = fingerprint(unet), call(unet)
    with attach(unet, styles):
        expected = call(unet)
    with _FailAt(1 << 60) as counting, attach(unet, styles):
        call(unet)
    for number in some((1 << 60) - counting.left, rounds, seed):
        fresh_styles = [make_hypernetwork(WIDTHS["sd1"], seed=n, activation=a) for n, a in enumerate(("relu", None))]

        def tried(number: int = number, styles: list[object] = fresh_styles) -> Ending:
            attached = None
            try:
                with _FailAt(number):
                    attached = attach(unet, styles)  # type: ignore[arg-type]
                    call(unet)
            except torch.cuda.OutOfMemoryError:
                if attached is not None:
                    # The attachment must work again when memory is available.
                    assert torch.equal(call(unet), expected), "the next call has a different result"
                    attached.detach()
                return Ending("error")
            attached.detach()
            return Ending("done")

        def check() -> None:
            assert not attachments(unet)
            assert_untouched(unet, before)
            assert torch.equal(call(unet), plain)

        try:
            ending = tried()
        except Exception as error:
            ending = Ending("bug", repr(error))
        count.add(ending, check)
    return count


def for_real(rounds: int, seed: int) -> Count:
    """Attach a hypernetwork with SD 1's real widths in a process with little address space."""
    count = Count()
    for number in range(max(rounds // 10, 2)):
        count.add(run(lambda: _little_memory((1 + 6 * number) << 20)), lambda: None)
    return count


def _little_memory(extra: int) -> None:
    from tests.support.small_models import assert_untouched, fingerprint, make_hypernetwork, make_unet
    from tests.support.small_models import run as call

    torch.set_num_threads(1)
    unet = make_unet("sd1", block_out_channels=(320, 320, 320, 320), cross_attention_dim=768, norm_num_groups=32)
    style = make_hypernetwork((320, 768), activation=None)
    inputs = {"encoder_hidden_states": torch.randn(2, 7, 768)}
    before, plain = fingerprint(unet), call(unet, **inputs)
    small_memory(extra)
    attached = None
    try:
        attached = attach(unet, style)
        call(unet, **inputs)
    except (MemoryError, RuntimeError) as error:
        assert "memory" in str(error).lower() or isinstance(error, MemoryError), error
    all_memory()
    if attached is not None:
        attached.detach()
    assert_untouched(unet, before)
    assert torch.equal(call(unet, **inputs), plain)
