"""The transformer: what an answer may depend on, and that cached answers are the same."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tianshou_ext.errors import InputError
from tianshou_ext.nn.contexts import Context, ContextReader, as_contexts, as_state
from tianshou_ext.nn.transformer import DecisionTransformer
from tianshou_ext.policy.compiled import draw_numbers

K, OBS, ACT, CHOICES, EPISODE = 6, 3, 2, 4, 40
KINDS = [*itertools.product(("gym", "atari"), (False, True))]
every_kind = pytest.mark.parametrize(("variant", "discrete"), KINDS)


def make(variant: str = "gym", discrete: bool = False, **sizes) -> DecisionTransformer:
    """Return a small network whose weights are all random, those that start at 0 too."""
    options = {"context_len": K, "width": 8, "num_heads": 2, "max_ep_len": EPISODE, **sizes}
    size = CHOICES if discrete else ACT
    model = DecisionTransformer((OBS,), size, discrete=discrete, variant=variant, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return model


def windows(discrete: bool, batch: int = 2, steps: int = K) -> list[torch.Tensor]:
    """Return returns-to-go, observations, actions and times."""
    act = torch.randint(CHOICES, (batch, steps)) if discrete else torch.randn(batch, steps, ACT)
    time = torch.arange(steps).expand(batch, -1) + torch.randint(20, (batch, 1))
    return [torch.randn(batch, steps), torch.randn(batch, steps, OBS), act, time]


@every_kind
def test_an_answer_sees_the_past_and_its_own_return_and_state_but_not_its_action(variant, discrete):
    model, inputs, t = make(variant, discrete), windows(discrete), 3
    before = model(*inputs)
    for k, earlier in itertools.product(range(3), (True, False)):
        at = t - 1 if earlier else t
        changed = [value.clone() for value in inputs]
        changed[k][:, at] = (changed[k][:, at] + 1) % CHOICES if k == 2 else changed[k][:, at] + 1
        after = model(*changed)
        assert torch.equal(after[:, :at], before[:, :at]), "an answer saw what came later"
        seen = earlier or k < 2
        assert torch.equal(after[:, t], before[:, t]) is not seen


@every_kind
def test_everything_after_a_step_may_change_without_changing_its_answer(variant, discrete):
    model, inputs, t = make(variant, discrete), windows(discrete), 2
    before, other = model(*inputs), windows(discrete)
    for k, value in enumerate(inputs[:3]):
        value[:, t + (k < 2) :] = other[k][:, t + (k < 2) :]
    assert torch.equal(model(*inputs)[:, : t + 1], before[:, : t + 1])


@every_kind
def test_a_shorter_window_gives_the_same_answers(variant, discrete):
    """So padding at the end is not seen."""
    model, inputs = make(variant, discrete), windows(discrete)
    short = model(*(value[:, :4] for value in inputs))
    assert torch.allclose(short, model(*inputs)[:, :4], atol=1e-5)


def test_times_are_those_of_the_episode_and_in_atari_of_the_window():
    for variant in ("gym", "atari"):
        model, inputs = make(variant), windows(False)
        before = model(*inputs)
        moved = [*inputs[:3], inputs[3] + 1]
        assert not torch.allclose(model(*moved), before)
        last = inputs[3].clone()
        last[:, -1] += 1
        after = model(*inputs[:3], last)
        assert torch.equal(after, before) is (variant == "atari")


def test_steps_beyond_the_last_embedding_share_it():
    model, inputs = make(), windows(False)
    far = [model(*inputs[:3], torch.full((2, K), time)) for time in (EPISODE - 1, EPISODE, 999)]
    assert torch.equal(far[0], far[1]) and torch.equal(far[0], far[2])


CPU = torch.device("cpu")


@every_kind
def test_dropout_changes_answers_and_keeps_their_mean(variant, discrete):
    model, inputs = make(variant, discrete), windows(discrete)
    assert torch.equal(model(*inputs), model(*inputs))
    generator = torch.Generator().manual_seed(1)

    def draw_masks(batch):
        bits = draw_numbers("bits", (model.num_mask_bits(batch, K),), generator, CPU)
        return model.dropout_masks(batch, K, 0.1, bits)

    masks = [draw_masks(2) for _ in range(2)]
    shapes = model.mask_shapes(2, K)
    assert [tuple(mask.shape) for mask in masks[0]] == shapes and len(shapes) == 1 + 3 * 3
    first, second = (model(*inputs, drawn) for drawn in masks)
    assert not torch.equal(first, second)
    ones = [torch.ones(shape) for shape in shapes]
    assert torch.allclose(model(*inputs, ones), model(*inputs), atol=1e-6)
    many = torch.cat([mask.flatten() for mask in draw_masks(200)])
    assert many.mean() == pytest.approx(1.0, abs=0.01)
    assert many.view(-1, 4).mean(0).tolist() == pytest.approx([1.0] * 4, abs=0.01)
    assert sorted(many.unique().tolist()) == pytest.approx([0.0, 1 / 0.9])


def test_attention_by_hand():
    """One block, one head, against the formulas written out."""
    model = make(num_layers=1, num_heads=1).double()
    inputs = [v.double() if v.is_floating_point() else v for v in windows(False, batch=1)]
    (block,) = model.blocks
    x = model.embed(*inputs)[0]
    n = block.norm1(x)
    q, k, v = block.query(n), block.key(n), block.value(n)
    mixed = []
    for t in range(1, 3 * K - 1, 3):  # the states
        weights = torch.stack([(q[t] * k[s]).sum() / 8**0.5 for s in range(t + 1)]).softmax(0)
        mixed.append(sum(w * v[s] for s, w in enumerate(weights)))
    x = x[1::3] + block.project(torch.stack(mixed))
    x = x + block.contract(torch.relu(block.expand(block.norm2(x))))
    assert torch.allclose(model.head(model.last_norm(x)), model(*inputs)[0], atol=1e-12)


def test_tokens_are_in_the_order_return_state_action():
    model, inputs = make(), windows(False)
    tokens = torch.cat([model.embed(*inputs), torch.zeros(2, 1, 8)], 1).view(2, K, 3, 8)
    time = model.time(inputs[3])
    parts = (
        model.embed_return(inputs[0].unsqueeze(-1)),
        model.embed_obs(inputs[1].flatten(0, 1)).view(2, K, 8),
        model.embed_act(inputs[2]),
    )
    for k, part in enumerate(parts):
        there = K - (k == 2)  # the last action is none
        assert torch.allclose(tokens[:, :there, k], model.norm(part + time)[:, :there], atol=1e-6)


def test_a_width_that_heads_cannot_share_gets_one_sentence():
    with pytest.raises(InputError, match="multiple of the 3 heads, got 8; change one"):
        make(num_heads=3)


def test_weight_decay_is_for_all_in_gym_and_for_matrices_in_atari():
    (everything,) = make().parameter_groups(0.1)
    assert len(everything["params"]) == len([*make().parameters()])
    model = make("atari")
    decaying, others = model.parameter_groups(0.1)
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    spared = {id(p) for p in others["params"]}
    assert {id(model.place), id(model.time.weight), id(model.head.weight)} - spared == {
        id(model.head.weight)
    }
    assert all(p.ndim == 1 or p is model.place or p is model.time.weight for p in others["params"])


# ---- acting --------------------------------------------------------------------------------------


def play(model: DecisionTransformer, one: Context, slide: int) -> None:
    one.see(torch.randn(OBS), K, slide)


def decide(model: DecisionTransformer, one: Context) -> None:
    act = int(torch.randint(CHOICES, ())) if model.discrete else np.random.randn(ACT)
    one.record(act if model.discrete else act.astype(np.float32), rew=0.1, ended=False)


def uncached(model: DecisionTransformer, one: Context) -> torch.Tensor:
    """Return the answer of a forward pass over all that a context holds."""
    held = len(one.obs)
    filler = 0 if model.discrete else np.zeros(ACT, np.float32)
    act = torch.from_numpy(np.array([*one.act, filler]))
    time = torch.arange(one.steps - held, one.steps)
    inputs = [torch.tensor(one.rtg), torch.stack(one.obs), act, time]
    return model(*(value.unsqueeze(0) for value in inputs))[0, -1]


@torch.no_grad()
@pytest.mark.parametrize("slide", [1, 2, 3, K])
@every_kind
def test_cached_answers_are_those_of_the_whole_context(variant, discrete, slide):
    """Long episodes; one environment starts anew in between, one leaves, one comes."""
    model = make(variant, discrete)
    reader = ContextReader(model)
    playing = [Context(1.0) for _ in range(3)]
    for t in range(35):
        if t in (4, 5, 19):
            playing[t % 3] = Context(2.0)
        if t == 17:
            del playing[0]
        if t == 22:
            playing = [playing[1], Context(0.0), playing[0]]
        for one in playing:
            play(model, one, slide)
        answers = reader.read(playing)
        for one, answer in zip(playing, answers, strict=True):
            assert len(one.obs) <= K
            assert torch.allclose(answer, uncached(model, one), rtol=1e-4, atol=1e-5), (t, one)
            decide(model, one)


@torch.no_grad()
def test_a_full_context_drops_as_many_steps_as_it_should():
    model = make()
    for slide, expected in ((1, [5, 6, 6, 6, 6]), (3, [5, 6, 4, 5, 6]), (K, [5, 6, 1, 2, 3])):
        one, lengths = Context(1.0), []
        for _ in range(9):
            play(model, one, slide)
            decide(model, one)
            lengths.append(len(one.obs))
        assert lengths[4:] == expected and one.steps == 9


@torch.no_grad()
def test_cached_answers_notice_new_weights():
    model = make()
    reader, one = ContextReader(model), Context(1.0)
    optim = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    for t in range(5):
        play(model, one, 1)
        assert torch.allclose(reader.read([one])[0], uncached(model, one), atol=1e-5), t
        decide(model, one)
        if t == 1:
            with torch.enable_grad():
                model(*windows(False)).sum().backward()
            optim.step()
        if t == 3:
            model.load_state_dict(make("gym", False).state_dict())


@torch.no_grad()
def test_two_groups_of_environments_that_take_turns_get_their_own_answers():
    model = make()
    reader, groups = ContextReader(model), ([Context(1.0)], [Context(5.0), Context(-5.0)])
    for _ in range(9):
        for group in groups:
            for one in group:
                play(model, one, 3)
            for one, answer in zip(group, reader.read(group), strict=True):
                assert torch.allclose(answer, uncached(model, one), atol=1e-5)
                decide(model, one)


@torch.no_grad()
def test_keys_and_values_are_reused_while_the_context_grows():
    model = make()
    reader, one, filled = ContextReader(model), Context(1.0), []
    fill = model.fill
    model.fill = lambda *args: (filled.append(one.steps), fill(*args))[1]
    for _ in range(20):
        play(model, one, 3)
        reader.read([one])
        decide(model, one)
    assert filled == [1, 7, 10, 13, 16, 19]


def test_a_state_that_was_emptied_begins_a_new_episode():
    held, ended = Context(1.0), Context(1.0, ended=True)
    new = [Context(float(k)) for k in range(5)]
    fresh = iter(new)
    state = as_state([held, ended, held, held, held])
    state[2], state[3], state[4] = None, 0, 0.0
    assert as_contexts(state, 5, lambda: next(fresh)) == [held, *new[:4]]
    assert len({id(one) for one in as_contexts(None, 3, lambda: Context(1.0))}) == 3
    assert len(as_contexts(np.zeros(2), 2, lambda: Context(1.0))) == 2


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        (as_state([Context(1.0)]), "these 2 environments, got a ndarray of 1"),
        (["a", "b"], "got a list of 2; hand back result.state, or None to begin anew"),
        (np.ones((2, 3)), "got a ndarray of 2"),
    ],
)
def test_a_state_of_something_else_gets_one_sentence(state, sentence):
    with pytest.raises(InputError, match=sentence) as error:
        as_contexts(state, 2, lambda: Context(1.0))
    assert "\n" not in str(error.value)
