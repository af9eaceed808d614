"""Decision Transformer: its loss, its steps, and how it acts through Tianshou's collectors."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from conftest import SPACES
from contract import same, update
from gymnasium.spaces import Box, Discrete
from tianshou.data import Batch, VectorReplayBuffer
from tianshou.env import DummyVectorEnv

from tianshou_ext.data.replay import Replay
from tianshou_ext.data.sequences import Windows
from tianshou_ext.errors import InputError
from tianshou_ext.evaluation.targets import report_targets
from tianshou_ext.nn.contexts import Context
from tianshou_ext.nn.transformer import DecisionTransformer
from tianshou_ext.policy import DecisionTransformerConfig, DecisionTransformerPolicy
from tianshou_ext.policy.in_context import Solo
from tianshou_ext.schedules import LinearDecay
from tianshou_ext.tianshou_api import Collector, ReplayBuffer, training_step

OBS, ACT = SPACES["vector"], SPACES["continuous"]
SMALL: dict[str, Any] = {"embed_dim": 8, "num_layers": 2, "context_len": 4, "rtg_scale": 10.0}


def build(act: Any = ACT, obs: Any = OBS, **options: Any) -> DecisionTransformerPolicy:
    return DecisionTransformerPolicy.build(obs, act, **{**SMALL, "obs_norm": "none", **options})


class Counter(gymnasium.Env):
    """Observes which environment, episode and step it is; pays what is asked; ends on time."""

    def __init__(self, name: int, lengths: list[int], pay: Callable[[int], float]) -> None:
        self.observation_space, self.action_space = OBS, ACT
        self.name, self.lengths, self.pay = name, lengths, pay
        self.episode = -1

    def see(self) -> np.ndarray:
        return np.array([self.name, self.episode, self.step_count], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None):
        self.episode += 1
        self.step_count = 0
        return self.see(), {}

    def step(self, act: Any):
        rew = self.pay(self.step_count)
        self.step_count += 1
        over = self.step_count >= self.lengths[self.episode % len(self.lengths)]
        return self.see(), rew, over and self.episode % 2 == 0, over and self.episode % 2 == 1, {}


def counters(count: int) -> DummyVectorEnv:
    """Return environments whose episodes have different lengths; environment n pays n + 1."""

    def maker(name: int) -> Callable[[], Counter]:
        lengths = [3 + 4 * name, 9, 2 + name]
        return lambda: Counter(name, lengths, lambda t: name + 1.0)

    return DummyVectorEnv([maker(name) for name in range(count)])


class Watched(DecisionTransformerPolicy):
    """Checks whatever it is asked to act on."""

    seen = 0

    def _act(self, contexts: Any, obs: Any, deterministic: bool) -> Any:
        answer = super()._act(contexts, obs, deterministic)
        for one, row in zip(contexts, obs.tolist(), strict=True):
            name, episode, step = map(int, row)
            held = len(one.obs)
            assert one.steps == step + 1, "a context went on into another episode"
            assert held <= self.config.context_len and len(one.act) == held - 1
            expected = [[name, episode, t] for t in range(step - held + 1, step + 1)]
            assert [o.tolist() for o in one.obs] == expected, "a context saw another's episode"
            asked = [(self.target_return - (name + 1) * t) / 10.0 for *_, t in expected]
            assert one.rtg == pytest.approx(asked)
            self.seen += 1
        return answer


def collect(policy: Any, envs: DummyVectorEnv, **collector: Any) -> Collector:
    buffer = VectorReplayBuffer(400, len(envs))
    made = Collector(policy, envs, buffer, on_step_hook=policy.on_step, **collector)
    made.reset()
    return made


@pytest.mark.parametrize("slide", [1, 3])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_no_episode_or_environment_sees_another(count, slide):
    """Also with surplus environments dropped, and over several calls of collect."""
    options = {**SMALL, "obs_norm": "none", "slide": slide, "target_return": 50.0}
    policy = Watched.build(OBS, ACT, **options)
    collector = collect(policy, counters(count))
    stats = collector.collect(n_episode=2 * count + 1)
    assert stats.n_collected_episodes == 2 * count + 1
    assert policy.seen == stats.n_collected_steps
    for _ in range(6):
        collector.collect(n_step=3 * count)
    collector.collect(n_episode=count)
    assert policy.seen == collector.collect_step
    assert "hidden_state" not in collector.buffer._meta.policy.get_keys()


def test_a_leak_would_fail_the_test_above():
    """The checks see a state that a collector did not empty."""
    policy = Watched.build(OBS, ACT, **SMALL, obs_norm="none", target_return=50.0)
    first = policy(Batch(obs=np.array([[0, 0, 0]], np.float32), info={}))
    policy.record(first.state, first.act, [1.0], [False])
    with pytest.raises(AssertionError, match="another episode"):
        policy(Batch(obs=np.array([[0, 1, 0]], np.float32), info={}), first.state)


def test_an_episode_that_ended_is_not_gone_on_with_even_if_the_state_comes_back():
    policy = Watched.build(OBS, ACT, **SMALL, obs_norm="none", target_return=50.0)
    first = policy(Batch(obs=np.array([[0, 0, 0]], np.float32), info={}))
    policy.record(first.state, first.act, [1.0], [True])
    policy(Batch(obs=np.array([[0, 1, 0]], np.float32), info={}), first.state)
    assert policy.seen == 2


@pytest.mark.parametrize("act", [ACT, Discrete(3)], ids=["continuous", "discrete"])
def test_several_environments_act_as_each_would_alone(act):
    def answers(names: list[int]) -> dict[int, np.ndarray]:
        policy, state = build(act, target_return=3.0), None
        kept: dict[int, list] = {name: [] for name in names}
        for t in range(15):
            obs = np.array([[np.sin(t * name), t, name] for name in names], np.float32)
            result = policy(Batch(obs=obs, info={}), state)
            state = result.state
            for k, name in enumerate(names):
                kept[name].append(result.logits[k].numpy())
            rew = [0.1 * name for name in names]
            done = [t == 4 + name for name in names]
            policy.record(state, result.act, rew, done)
            for k, over in enumerate(done):
                if over:
                    state[k] = None
        return {name: np.array(rows) for name, rows in kept.items()}

    together = answers([1, 2, 3])
    for name in (1, 2, 3):
        assert np.allclose(together[name], answers([name])[name], atol=1e-5)


def test_without_the_rewards_the_second_step_is_refused():
    policy, envs = build(), counters(2)
    collector = Collector(policy, envs, VectorReplayBuffer(100, 2))
    collector.reset()
    with pytest.raises(
        InputError, match=r"expected the reward .* on_step_hook=policy.on_step"
    ) as e:
        collector.collect(n_step=10)
    assert "\n" not in str(e.value)


def test_a_step_recorded_twice_or_with_no_number_is_refused():
    policy = build()
    result = policy(Batch(obs=np.zeros((1, 3), np.float32), info={}))
    with pytest.raises(InputError, match="expected finite rewards, got nan"):
        policy.record(result.state, result.act, [math.nan], [False])
    policy.record(result.state, result.act, [1.0], [False])
    with pytest.raises(InputError, match="expected one record of each step"):
        policy.record(result.state, result.act, [1.0], [False])


def test_the_action_remembered_is_the_one_taken_exploration_included():
    class Played(gymnasium.Env):
        observation_space, action_space = OBS, Discrete(3)
        taken: list[int] = []  # noqa: RUF012

        def reset(self, *, seed=None, options=None):
            return np.zeros(3, np.float32), {}

        def step(self, act):
            self.taken.append(int(act))
            return np.zeros(3, np.float32), 1.0, False, False, {}

    policy = build(Discrete(3), context_len=30, max_ep_len=30)
    policy.set_eps(1.0)
    contexts: list[Context] = []
    policy._new_context = lambda: contexts.append(Context(1.0)) or contexts[-1]
    collect(policy, DummyVectorEnv([Played]), exploration_noise=True).collect(n_step=20)
    assert contexts[0].act == Played.taken and len(set(Played.taken)) == 3


def test_random_steps_of_a_collector_need_no_state():
    collector = collect(build(), counters(2))
    collector.collect(n_step=10, random=True)
    assert len(collector.buffer) == 10


def test_frames_and_discrete_actions_through_a_collector():
    class Screen(gymnasium.Env):
        observation_space, action_space = SPACES["pixel"], Discrete(4)

        def reset(self, *, seed=None, options=None):
            self.t = 0
            return self.observation_space.sample(), {}

        def step(self, act):
            self.t += 1
            return self.observation_space.sample(), 1.0, self.t == 7, False, {}

    policy = build(Discrete(4), SPACES["pixel"], obs_norm="255", slide=2)
    assert policy.model.is_atari
    stats = collect(policy, DummyVectorEnv([Screen, Screen])).collect(n_episode=3)
    assert stats.n_collected_steps == 21


def test_discrete_actions_are_the_likeliest_or_drawn():
    obs = Batch(obs=np.zeros((300, 3), np.float32), info={})
    assert len(set(build(Discrete(3))(obs).act.tolist())) == 1
    drawn = build(Discrete(3), sample_actions=True)
    assert len(set(drawn(obs).act.tolist())) == 3
    policy = build(Discrete(3))
    with training_step(policy):
        assert len(set(policy(obs).act.tolist())) == 3


def test_watching_alone_plays_as_a_collector_does():
    """Returns, actions and resets reach the policy through ``Solo`` too."""
    policy = Watched.build(OBS, ACT, **SMALL, obs_norm="none", target_return=50.0)
    env = Solo(Counter(0, [3, 9], lambda t: 1.0), policy)
    for length in (3, 9):
        obs, _ = env.reset()
        for t in range(length):
            act = env.choose(obs)
            assert ACT.contains(act)
            obs, rew, terminated, truncated, _ = env.step(act)
            assert rew == 1.0 and (terminated or truncated) is (t == length - 1)
    assert policy.seen == 12


def test_each_of_several_targets_is_played_and_reported(tmp_path, capsys):
    policy = build(target_return=5.0)
    rows = report_targets(policy, counters(2), [3.0, 7.5], 4, folder=tmp_path, task="Counter-v0")
    assert [row["target_return"] for row in rows] == [3.0, 7.5]
    assert all(row["episodes"] == 4 and row["return_mean"] > 0 for row in rows)
    assert policy.target_return == 5.0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == ["asked for 3", "asked for 7.5"]
    assert sum("the best" in line for line in said) >= 1
    assert (tmp_path / "targets.csv").read_text().startswith("target_return,return_mean")
    with pytest.raises(InputError, match="at least one episode of each target, got 0"):
        report_targets(policy, counters(1), [1.0], 0, folder=tmp_path, task="Counter-v0")


# ---- the return that is asked for ---------------------------------------------------------------


def test_the_target_is_the_configs_then_the_datas_best(continuous_buffer):
    assert build(target_return=(3600, 1800)).target_return == 3600.0
    policy = build()
    assert policy.target_return == 0.0
    update(policy, continuous_buffer)
    rew = continuous_buffer.rew
    returns = [rew[a:b].sum() for a, b in ((0, 7), (7, 12), (12, 21), (21, 27))]
    assert policy.target_return == pytest.approx(max(returns), abs=1e-5)
    assert policy.data_returns.tolist() == pytest.approx([min(returns), max(returns)], abs=1e-5)
    policy.set_target_return(0.5)
    assert policy.target_return == 0.5
    policy.set_target_return(None)
    assert policy.target_return == pytest.approx(max(returns), abs=1e-5)


def test_a_target_outside_the_data_warns_with_the_range(continuous_buffer):
    policy = build(target_return=3600.0)
    with pytest.warns(UserWarning, match=r"between -?[\d.]+ and -?[\d.]+, the .*, got 3600; none"):
        update(policy, continuous_buffer)
    with pytest.warns(UserWarning, match="got -999"):
        policy.set_target_return(-999.0)
    assert policy.target_return == -999.0
    with pytest.raises(InputError, match="finite target return, got nan"):
        policy.set_target_return(math.nan)


def test_the_range_of_the_data_is_saved_with_the_weights(continuous_buffer):
    policy, other = build(), build(seed=1)
    update(policy, continuous_buffer)
    other.load_state_dict(policy.state_dict())
    assert other.target_return == policy.target_return != 0.0


def test_weights_from_before_rewards_were_told_apart_still_load(continuous_buffer):
    policy, other = build(), build(seed=1)
    update(policy, continuous_buffer)
    older = {k: v for k, v in policy.state_dict().items() if k != "rewards_are_signs"}
    other.load_state_dict(older)
    assert other.target_return == policy.target_return and not other.rewards_are_signs


@pytest.mark.parametrize(("points", "left"), [(1.0, [29.0, 30.0]), (7.0, [23.0, 27.0])])
def test_a_step_that_pays_7_counts_as_it_does_in_the_data(points, left, continuous_buffer):
    buffer = copy.deepcopy(continuous_buffer)
    buffer.rew[:] = points * np.sign(buffer.rew)
    policy, played = build(rtg_scale=2.0), build(rtg_scale=2.0)
    policy.process_buffer(buffer)
    played.load_state_dict(policy.state_dict())  # as a saved policy that is played
    played.asked, state, asked = 30.0, None, []
    for paid in (7.0, -4.0):
        result = played(Batch(obs=np.zeros((1, 3), np.float32), info={}), state)
        state = result.state
        played.record(state, result.act, [paid], [False])
        asked.append(2.0 * state[0].next_rtg)
    assert asked == left


def test_another_target_gives_other_actions_to_new_episodes_only():
    policy, obs = build(), np.zeros((1, 3), np.float32)
    answers = []
    for target in (0.0, 5.0):
        policy.set_target_return(target)
        result = policy(Batch(obs=obs, info={}))
        answers.append(result.logits)
    assert not torch.equal(*answers)
    policy.record(result.state, result.act, [2.0], [False])
    policy.set_target_return(100.0)
    policy(Batch(obs=obs, info={}), result.state)
    assert result.state[0].rtg == pytest.approx([0.5, 0.3])


# ---- learning -----------------------------------------------------------------------------------


def test_the_squared_loss_by_hand_leaves_padding_out():
    pred, act = torch.randn(2, 3, 2), torch.randn(2, 3, 2)
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    errors = [((pred[b, t] - act[b, t]) ** 2).sum() / 2 for b, t in ((0, 0), (0, 1), (1, 0))]
    loss = DecisionTransformerPolicy.squared_loss(pred, act, mask)
    assert float(loss) == pytest.approx(float(sum(errors)) / 3, rel=1e-6)
    pred[mask == 0] = 1e6
    assert DecisionTransformerPolicy.squared_loss(pred, act, mask) == loss


def test_the_discrete_loss_by_hand_leaves_padding_out():
    logits, act = torch.randn(2, 2, 3), torch.tensor([[0, 2], [1, 0]])
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    terms = [-logits[b, t].log_softmax(0)[act[b, t]] for b, t in ((0, 0), (0, 1), (1, 0))]
    right = [bool(logits[b, t].argmax() == act[b, t]) for b, t in ((0, 0), (0, 1), (1, 0))]
    loss, accuracy = DecisionTransformerPolicy.cloning_loss(logits, act, mask)
    assert float(loss) == pytest.approx(float(sum(terms)) / 3, rel=1e-6)
    assert float(accuracy) == pytest.approx(sum(right) / 3)
    logits[1, 1] = torch.tensor([-1e6, 1e6, 0.0])
    assert DecisionTransformerPolicy.cloning_loss(logits, act, mask)[0] == loss


@pytest.mark.parametrize("act", [ACT, Discrete(4)], ids=["continuous", "discrete"])
def test_what_is_padded_does_not_change_a_step(act, make_buffer):
    buffer = make_buffer("vector", "discrete" if isinstance(act, Discrete) else "continuous")
    one, other = build(act, warmup_steps=0), build(act, warmup_steps=0)
    windows = one.sample(buffer, 16)
    assert 0 < windows.mask.mean() < 1
    other.sample(buffer, 16)
    changed = {k: v.clone() for k, v in vars(windows).items()}
    empty = windows.mask == 0
    for key, value in (("obs", 50.0), ("act", 0), ("rtg", -70.0), ("time", 3)):
        changed[key][empty] = value
    one.learn(windows)
    other.learn(Windows(**changed))
    assert same(one.model.state_dict(), other.model.state_dict())


def test_a_step_by_hand(continuous_buffer):
    """Warm-up, clipping and AdamW, against torch's own without dropout."""
    options = {"dropout": 0.0, "lr": 0.1, "warmup_steps": 4, "weight_decay": 0.1}
    policy, plain = build(**options), build(**options)
    optim = torch.optim.AdamW(plain.model.parameters(), lr=0.1, weight_decay=0.1)
    for k in range(6):
        windows = policy.sample(continuous_buffer, 8)
        pred = torch.tanh(plain.model(windows.rtg / 10.0, windows.obs, windows.act, windows.time))
        real = windows.mask.bool()
        loss = (pred - windows.act)[real].square().mean()
        optim.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.model.parameters(), 0.25)
        optim.param_groups[0]["lr"] = 0.1 * min(1.0, (k + 1) / 4)
        optim.step()
        metrics = policy.learn(windows).metrics
        assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for a, b in zip(policy.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_a_schedule_goes_on_beside_the_warm_up(continuous_buffer):
    policy = build(lr=1.0, warmup_steps=3)
    policy.lr_scheduler = LinearDecay(policy.optimizers.values(), 4)
    rates = []
    step = policy.optimizers["model"].step
    policy.optimizers["model"].step = lambda: (
        rates.append(policy.optimizers["model"].param_groups[0]["lr"]),
        step(),
    )
    update(policy, continuous_buffer, times=4)
    assert rates == pytest.approx([1 / 3, 2 / 3 * 0.75, 0.5, 0.25])


def test_dropout_is_the_policys_own_and_off_when_it_acts(continuous_buffer):
    policy, other, without = build(), build(), build(dropout=0.0)
    for one in (policy, other, without):
        torch.manual_seed(hash(id(one)) % 1000)
        update(one, continuous_buffer, times=3)
    assert same(policy.state_dict(), other.state_dict())
    assert not same(policy.state_dict(), without.state_dict())
    policy.train()
    obs = Batch(obs=np.zeros((2, 3), np.float32), info={})
    assert torch.equal(policy(obs).logits, policy(obs).logits)


def test_it_does_what_the_return_asked_for_did_in_the_data():
    """The action is +1 in episodes of return 10, -1 in those of 0; states tell nothing."""
    buffer = ReplayBuffer(200)
    rng = np.random.default_rng(0)
    for episode in range(20):
        good = episode % 2
        for t in range(10):
            obs = rng.normal(size=3).astype(np.float32)
            act = np.full(2, 0.9 if good else -0.9, np.float32)
            ends = {"terminated": t == 9, "truncated": False}
            buffer.add(Batch(obs=obs, act=act, rew=float(good), obs_next=obs, info={}, **ends))
    policy = build(lr=1e-2, warmup_steps=10, dropout=0.0)
    update(policy, buffer, times=120, sample_size=16)
    for target, expected in ((10.0, 0.9), (0.0, -0.9)):
        policy.set_target_return(target)
        act = policy(Batch(obs=rng.normal(size=(5, 3)).astype(np.float32), info={})).act
        assert np.allclose(act, expected, atol=0.3)


def test_contexts_of_one_step_with_constant_returns_are_cloning():
    """Then an answer depends on its state alone, as that of behavioural cloning does."""
    policy = build(context_len=1, max_ep_len=1, target_return=2.0)
    obs, state = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32), None
    at_once = policy(Batch(obs=obs, info={})).logits
    for k in range(6):
        result = policy(Batch(obs=obs[k : k + 1], info={}), state)
        assert torch.allclose(result.logits[0], at_once[k], atol=1e-6)
        policy.record(result.state, result.act, [0.0], [False])
        state = result.state


# ---- what cannot be used ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"context_len": 0}, r"expected context_len in \[1, 1000\], the steps of an episode"),
        ({"context_len": 30, "max_ep_len": 20}, r"expected context_len in \[1, 20\], .*got 30"),
        ({"embed_dim": 10, "num_heads": 4}, r"embed_dim a positive multiple of num_heads \(4\)"),
        ({"num_layers": 0}, "expected num_layers at least 1, got 0"),
        ({"num_heads": 0}, "expected num_heads at least 1, got 0"),
        ({"slide": 0}, r"expected slide in \[1, 20\] \(context_len\), or None, got 0"),
        ({"slide": 5, "context_len": 4}, r"expected slide in \[1, 4\]"),
        ({"dropout": 1.0}, r"expected dropout in \[0, 1\), got 1.0"),
        ({"rtg_scale": 0.0}, "expected rtg_scale above 0, got 0.0"),
        ({"target_return": (1.0, math.inf)}, "expected target_return of finite numbers"),
        ({"variant": "mujoco"}, "expected variant auto, gym or atari, got mujoco"),
        ({"warmup_steps": -1}, "expected warmup_steps at least 0"),
        ({"max_grad_norm": 0.0}, "expected max_grad_norm above 0"),
        ({"reward_norm": "standard"}, "expected reward_norm none, as returns are what"),
    ],
)
def test_values_out_of_range_give_one_sentence(options, sentence):
    with pytest.raises(InputError, match=sentence) as error:
        DecisionTransformerConfig(**options)
    assert "\n" not in str(error.value)


def test_episodes_longer_than_the_embeddings_are_refused(continuous_buffer):
    policy = build(max_ep_len=8)
    for _ in range(2):
        with pytest.raises(InputError, match=r"at most 8 steps, got one of 9 .*pass max_ep_len 9"):
            update(policy, continuous_buffer)


def test_a_network_of_other_sizes_is_refused():
    model = DecisionTransformer((3,), 3, discrete=False, width=8)
    optim = torch.optim.Adam(model.parameters())
    with pytest.raises(InputError, match="expected a network of .*'act_size': 2.* got .*: 3"):
        DecisionTransformerPolicy(model=model, optim=optim, action_space=ACT)


def test_a_network_and_an_optimizer_of_ones_own(continuous_buffer):
    model = DecisionTransformer((3,), 2, discrete=False, width=8, context_len=5)
    optim = torch.optim.Adam(model.parameters(), lr=1e-3)
    space = Box(-1.0, 1.0, (2,))
    policy = DecisionTransformerPolicy(
        model=model, optim=optim, action_space=space, context_len=5, rtg_scale=1.0
    )
    assert np.isfinite(update(policy, continuous_buffer, times=2)[-1]["loss"])


def test_single_steps_are_refused_with_what_to_do(continuous_buffer):
    policy = build()
    with pytest.raises(InputError, match=r"expected windows of steps, got a Transitions .*sample"):
        policy.learn(Replay(continuous_buffer).sample(4))
    with pytest.raises(InputError, match="expected windows of steps, got a Batch"):
        policy.learn(continuous_buffer.sample(4)[0])


def test_a_buffer_that_has_grown_is_learned_from_whole():
    buffer = ReplayBuffer(100)

    def add(rew: float) -> None:
        for t in range(5):
            obs, act = np.zeros(3, np.float32), np.zeros(2, np.float32)
            ends = {"terminated": t == 4, "truncated": False}
            buffer.add(Batch(obs=obs, act=act, rew=rew, obs_next=obs, info={}, **ends))

    policy = build()
    add(1.0)
    update(policy, buffer)
    add(7.0)
    assert policy.sample(buffer, 0).rtg.max() == 35.0
    assert policy.data_returns.tolist() == [5.0, 35.0]
