"""What a CPU can check of the path that a GPU takes.

A CUDA graph records the kernels of one step with the addresses that they read and write, and
replays them. `Tape` does the same with PyTorch's operators: what a replay would get wrong there, it
gets wrong here. The device `meta` stands in for a GPU where only places matter.
"""
import pytest
import torch
import transformers
from test_families import FAMILIES_PROVEN, SHAPE, llama_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import model as lms

aten = torch.ops.aten
# They bring a value to the host, or a size that depends on one: a graph cannot be captured then.
WAITING = {aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.equal, aten.nonzero,
           aten.masked_select, aten.unique_dim, aten._unique2, aten.bincount}
PROMPTS = [[9, 8, 7], list(range(30, 50)), [5] * 11]
ROOM = 12      # longer than the windows of those families that have one


def tensors(tree):
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


def by_mask(func, args):
    """Is it an index by a mask, whose result has a size that only the values tell?"""
    masks = [x for x in tensors(args[1:2]) if x.dtype in (torch.bool, torch.uint8)]
    return func.overloadpacket in (aten.index, aten.index_put, aten.index_put_) and masks


class Tape(TorchDispatchMode):
    """The operators of a step, with their tensors."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in WAITING and not by_mask(func, args), (
            f"{func} waits for the device")
        out = func(*args, **kwargs or {})
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self):
        """Run the kernels again: results go where they went the first time."""
        for func, args, kwargs, out in self.calls:
            for old, new in zip(tensors(out), tensors(func(*args, **kwargs))):
                if old.data_ptr() != new.data_ptr():      # else a view, or written in place
                    old.copy_(new)


class Recorded:
    """A step as `Decoder.stretch` takes it on a GPU: once plainly, then recorded, then replayed."""

    def __init__(self, step):
        self.step, self.calls, self.tape = step, 0, Tape()

    def __call__(self):
        self.calls += 1
        if self.calls > 2:
            return self.tape.replay()
        with self.tape if self.calls == 2 else torch.no_grad():
            self.step()


def family(name, device="cpu"):
    """LM of a family at tiny width, with random weights."""
    torch.manual_seed(0)
    kind, more = FAMILIES_PROVEN[name]
    config = getattr(transformers, kind)(**SHAPE | more)
    return lms.LM(lms.from_config(config, device=device), llama_tokenizer(), (1,))


def decoder(lm, device="cpu"):
    u_BT = torch.rand(6, 2 * ROOM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return lms.Decoder(lm, PROMPTS, u_BT.to(device), 1.0)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES_PROVEN)
def test_a_recorded_step_replays_as_plain_steps_and_never_waits_for_the_device(name):
    lm, drawn = family(name), []
    for record in (False, True):
        chunk = decoder(lm)
        plain = chunk.step
        for _ in range(2):      # a stretch of its own has a graph of its own
            chunk.step = Recorded(plain) if record else plain
            chunk.stretch(ROOM - 1)
        drawn.append((chunk.ids_BT, chunk.logp_BT))
    (plain_ids, plain_logps), (ids, logps) = drawn
    assert chunk.t.item() == 2 * ROOM - 2
    assert torch.equal(ids, plain_ids)
    torch.testing.assert_close(logps, plain_logps)


@torch.no_grad()
def test_the_tape_finds_what_a_graph_would_get_wrong():
    """Against a test that cannot fail: a number that Python counts is not counted by a replay."""
    count, x = iter(range(9)), torch.zeros(3)
    step = Recorded(lambda: x.add_(next(count)))
    for _ in range(4):
        step()
    assert x.tolist() == [0 + 1 + 1 + 1] * 3
    for wait in (lambda: x.sum().item(), lambda: x[x > 1], lambda: bool(x.any()), x.nonzero):
        with pytest.raises(AssertionError, match="waits"), Tape():
            wait()


# ---------------------------------------------------------------------------------------------
# Devices


class OnePlace(TorchDispatchMode):
    """No operator but a copy may meet tensors of two devices. An index by a mask, whose size a
    tensor without values cannot tell, takes all."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        places = {x.device.type for x in tensors((args, kwargs)) if x.dim()}
        assert len(places) < 2 or func.overloadpacket in (aten._to_copy, aten.copy_), (
            f"{func} meets tensors on {sorted(places)}")
        if places == {"meta"} and func.overloadpacket is aten.index and by_mask(func, args):
            return args[0].flatten(0, tensors(args[1])[0].dim() - 1)
        return func(*args, **kwargs or {})


def test_a_tensor_in_another_place_is_found():
    with pytest.raises(AssertionError, match="meets tensors on"), OnePlace():
        torch.ones(2, device="meta") + torch.ones(2)


def moved(thing):
    """A decoder or a cache with all its tensors on `meta`."""
    for name, value in vars(thing).items():
        if isinstance(value, (torch.Tensor, list)):
            setattr(thing, name, torch.utils._pytree.tree_map(lambda x: x.to("meta"), value))


@torch.no_grad()
@pytest.mark.parametrize("name", ["Qwen2", "Llama", "Gemma 3", "Phi-3"])
def test_the_sampler_makes_its_tensors_on_the_device_of_the_model(name):
    lm = family(name, "meta")
    with OnePlace():
        decoder(lm, "meta")      # the prefill, and the first pick
    chunk = decoder(family(name))
    chunk.cache.repack(~chunk.ended_B, ROOM)
    moved(chunk.cache), moved(chunk)
    chunk.lm = lm
    with OnePlace():
        chunk.step()
    assert chunk.ids_BT.device.type == chunk.live.device.type == "meta"


@pytest.mark.parametrize("attend", ["_attend_by_text", "_attend_in_rows"])
@pytest.mark.parametrize("name", ["Qwen2", "Gemma 3"])
def test_the_trainer_makes_its_tensors_on_the_device_of_the_model(name, attend, monkeypatch):
    monkeypatch.setattr(lms.Packed, "_attend_by_text", getattr(lms.Packed, attend))
    model = family(name, "meta").model
    groups = [[lms.Rollout(ids, [4, 5, 6], "", True, [])] * 2 for ids in PROMPTS]
    with OnePlace():
        logp_BC, entropy_BC, mask_BC = lms.token_logprobs(model, lms.pack(groups, "meta"))
        logp_BC.sum().backward()
    places = {x.device.type for x in (logp_BC, entropy_BC, mask_BC, *(
        p.grad for p in model.parameters() if p.grad is not None))}
    assert places == {"meta"}
