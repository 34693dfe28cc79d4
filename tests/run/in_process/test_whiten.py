"""`whiten` divides every layer's components by the square root of their singular values, once."""

import pytest
import torch
from peft.tuners.lora.eva import get_eva_state_dict as peft_get_eva_state_dict

from .conftest import build, cosines, eva, lora, token_minibatches

SHARED = [f"model.layers.{i}.self_attn.{kind}_proj" for i in range(2) for kind in "qkv"]
ALONE = [f"model.layers.{i}.self_attn.o_proj" for i in range(2)]


def inputs_of(model, names, data):
    """Each layer's token rows over all of `data`, centred, float64."""
    caught = {name: [] for name in names}
    handles = [
        model.get_submodule(n).register_forward_hook(lambda m, args, out, n=n: caught[n].append(args[0])) for n in names
    ]
    with torch.no_grad():
        for minibatch in data:
            model(**minibatch)
    for handle in handles:
        handle.remove()
    rows = {name: torch.cat(caught[name]).flatten(0, 1).double() for name in names}
    return {name: x - x.mean(0) for name, x in rows.items()}


@pytest.mark.parametrize(("solver", "rtol"), [("covariance", 1e-5), ("subspace", 0.02), ("incremental", 0.1)])
def test_every_member_is_divided_once(solver, rtol):
    """Singular values come from the data themselves: the length of the projection on the component."""
    model, data = build("llama").eval(), token_minibatches()
    options = {"solver": solver, "max_steps": len(data), "on_max_steps": "accept"}
    plain = eva(model, data, lora(rho=1.0, tau=1.0), **options)
    white = eva(model, data, lora(rho=1.0, tau=1.0, whiten=True), **options)
    inputs = inputs_of(model, SHARED + ALONE, data)
    for name in SHARED + ALONE:
        singular_values = (inputs[name] @ plain[name].double().T).norm(dim=0)
        assert singular_values.max() > 2 * singular_values.min()
        assert (cosines(white[name], plain[name]) > 1 - 1e-9).all()
        torch.testing.assert_close(white[name].double().norm(dim=1), singular_values**-0.5, rtol=rtol, atol=0)


def test_peft_divides_a_shared_input_once_for_each_member():
    """Its known fault, in peft 0.21: the members' results are views of one tensor, divided in place.

    Not the later members alone: the first one's view is divided along with theirs.
    """
    data = token_minibatches()
    plain = eva(build("llama"), data, lora(rho=1.0), solver="incremental")
    ours = eva(build("llama"), data, lora(rho=1.0, whiten=True), solver="incremental")
    peft = peft_get_eva_state_dict(build("llama"), data, lora(rho=1.0, whiten=True), show_progress_bar=False)
    for name in ALONE:
        torch.testing.assert_close(peft[name].float(), ours[name], rtol=1e-3, atol=1e-6)
    for name in SHARED:
        once = ours[name].norm(dim=1, keepdim=True) / plain[name].norm(dim=1, keepdim=True)
        assert (once < 0.5).all()
        torch.testing.assert_close(peft[name].float(), plain[name] * once**3, rtol=2e-3, atol=1e-6)
        assert not torch.allclose(peft[name].float(), ours[name], rtol=0.5)
