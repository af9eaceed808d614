"""A causal transformer over the steps of an episode: the network of Decision Transformer.

arXiv 2106.01345. A step is three tokens: return-to-go R, state s, action a; the action is read off
the output at s. The official repository (kzl/decision-transformer@e2d82e6) has two networks, which
are the two variants here, x being a token's linear embedding, t the step in its episode, t0 that of
the context's first step, i the token's place in the context:

    gym:    LayerNorm(x + time[t]),          blocks with ReLU,  action = tanh(linear)
    atari:  tanh(x) + time[t0] + place[i],   blocks with GELU,  logits = linear without bias

Blocks are GPT-2's: h + attention(norm(h)), then h + mlp(norm(h)); a last norm before the head.

``forward`` answers at all states of a window, as training needs. ``fill`` and ``extend`` answer at
the newest state and keep keys and values, as acting needs; their numbers are the same. The last
block computes only the tokens that are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tianshou_ext.errors import InputError
from tianshou_ext.nn.nets import Head, make_trunk

Variant = Literal["gym", "atari"]
Pick = Callable[[Tensor], Tensor]
"""From tokens (B, T, ...) to those that are wanted, (B, Q, ...)."""
Store = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From the keys and values of new tokens to those of all tokens, (B * heads, T, width) each."""

INIT_STD = 0.02
"""Of weights in the blocks: GPT-2, minGPT."""


class KeyValueCache:
    """Keys and values of the tokens so far, for several rows and all blocks.

    :param rows: contexts R.
    :param tokens: room for so many in each row.
    :param like: gives device and number type.
    """

    def __init__(
        self, blocks: int, rows: int, heads: int, tokens: int, width: int, like: Tensor
    ) -> None:
        self.rows, self.heads = rows, heads
        shape = (rows * heads, tokens, width // heads)
        self.keys = [like.new_zeros(shape) for _ in range(blocks)]
        self.values = [like.new_zeros(shape) for _ in range(blocks)]

    def places(self, rows: Tensor) -> Tensor:
        """Return where the heads of some rows are, (R,) to (R * heads,)."""
        heads = torch.arange(self.heads, device=rows.device)
        return (rows.unsqueeze(1) * self.heads + heads).flatten()

    def select(self, rows: Tensor) -> None:
        """Keep only ``rows``, in this order."""
        at = self.places(rows)
        self.rows = len(rows)
        self.keys = [keys[at] for keys in self.keys]
        self.values = [values[at] for values in self.values]


class Block(nn.Module):
    """Causal self-attention and a two-layer network, each behind a layer norm."""

    def __init__(self, width: int, num_heads: int, activation: nn.Module) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)  # one would drop out of the softmax
        self.value = nn.Linear(width, width)
        self.project = nn.Linear(width, width)
        self.expand = nn.Linear(width, 4 * width)
        self.activation = activation
        self.contract = nn.Linear(4 * width, width)

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, width) to (B * heads, T, width / heads)."""
        if self.num_heads == 1:
            return x
        batch, tokens, _ = x.shape
        split = x.view(batch, tokens, self.num_heads, -1).transpose(1, 2)
        return split.reshape(batch * self.num_heads, tokens, -1)

    def _joined(self, x: Tensor) -> Tensor:
        """The other way round."""
        if self.num_heads == 1:
            return x
        split = x.view(-1, self.num_heads, *x.shape[1:])
        return split.transpose(1, 2).flatten(2)

    def forward(
        self,
        x: Tensor,
        bias: Tensor,
        masks: Sequence[Tensor] | None = None,
        pick: Pick | None = None,
        store: Store | None = None,
    ) -> Tensor:
        """Return the new features (B, Q, width) of the tokens that ``pick`` wants, else of all.

        :param x: (B, T, width).
        :param bias: added to the attention's scores, -inf where not to look; (Q, T), or
            (B * heads, Q, T).
        :param masks: dropout of the weights, of the attention's and of the network's output:
            factors (B * heads, Q, T), (B, Q, width), (B, Q, width); no dropout if None.
        """
        normed = self.norm1(x)
        keys, values = self._heads(self.key(normed)), self._heads(self.value(normed))
        if store is not None:
            keys, values = store(keys, values)
        if pick is not None:
            x, normed = pick(x), pick(normed)
        queries = self._heads(self.query(normed))
        scale = 1.0 / math.sqrt(queries.shape[-1])
        weights = torch.baddbmm(bias, queries, keys.transpose(1, 2), alpha=scale).softmax(-1)
        if masks is not None:
            weights = weights * masks[0]
        mixed = self.project(self._joined(torch.bmm(weights, values)))
        x = x + mixed if masks is None else torch.addcmul(x, mixed, masks[1])
        hidden = self.contract(self.activation(self.expand(self.norm2(x))))
        return x + hidden if masks is None else torch.addcmul(x, hidden, masks[2])


class DecisionTransformer(nn.Module):
    """Actions from returns-to-go, states and actions so far.

    :param obs_shape: (D,) or (S, H, W).
    :param act_size: actions to choose from, or dimensions A of one.
    :param discrete: whether actions are numbered.
    :param context_len: steps K of a context at most.
    :param width: of the tokens; a multiple of ``num_heads``.
    :param max_ep_len: steps of an episode that have an embedding of their own.
    :param hidden_sizes: fully connected layers before the embedding of a state.
    :raises InputError: if the width is no multiple of the heads.
    """

    def __init__(
        self,
        obs_shape: Sequence[int],
        act_size: int,
        *,
        discrete: bool,
        context_len: int = 20,
        width: int = 128,
        num_layers: int = 3,
        num_heads: int = 1,
        max_ep_len: int = 1000,
        hidden_sizes: Sequence[int] = (),
        variant: Variant = "gym",
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise InputError(
                f"expected a width that is a multiple of the {num_heads} heads, got {width}; "
                "change one of them"
            )
        self.act_size, self.discrete = act_size, discrete
        self.context_len, self.max_ep_len, self.width = context_len, max_ep_len, width
        self.is_atari = variant == "atari"
        trunk, features = make_trunk(obs_shape, hidden_sizes)
        self.embed_return = nn.Linear(1, width)
        self.embed_obs = nn.Sequential(trunk, nn.Linear(features, width))
        self.embed_act = nn.Embedding(act_size, width) if discrete else nn.Linear(act_size, width)
        self.time = nn.Embedding(max_ep_len, width)
        self.place = nn.Parameter(torch.zeros(3 * context_len, width)) if self.is_atari else None
        self.norm = nn.Identity() if self.is_atari else nn.LayerNorm(width)
        # In place on the view that a linear layer returns of three dimensions costs copies.
        activation = nn.GELU() if self.is_atari else nn.ReLU()
        self.blocks = nn.ModuleList(Block(width, num_heads, activation) for _ in range(num_layers))
        self.last_norm = nn.LayerNorm(width)
        self.head = Head(width, act_size, bias=not self.is_atari)
        small = [*self.blocks.modules(), *([self.head, self.embed_act] if self.is_atari else [])]
        for module in small:
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INIT_STD)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.is_atari:
            nn.init.zeros_(self.time.weight)
        tokens = 3 * context_len
        causal = torch.full((tokens, tokens), -math.inf).triu(1)
        self.register_buffer("causal", causal, persistent=False)

    causal: Tensor

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return the parameters for an optimizer: all decay in gym, only matrices in atari."""
        layers = [one for one in self.modules() if isinstance(one, nn.Linear | nn.Conv2d)]
        matrices = {id(layer.weight) for layer in layers}
        decaying = [p for p in self.parameters() if not self.is_atari or id(p) in matrices]
        chosen = {id(p) for p in decaying}
        others = [p for p in self.parameters() if id(p) not in chosen]
        groups = [(decaying, weight_decay), (others, 0.0)]
        return [{"params": params, "weight_decay": decay} for params, decay in groups if params]

    @property
    def num_heads(self) -> int:
        """Attention heads of a block."""
        heads: Any = self.blocks[0].num_heads
        return int(heads)

    # ---- training -------------------------------------------------------------------------

    def forward(
        self,
        rtg: Tensor,
        obs: Tensor,
        act: Tensor,
        time: Tensor,
        masks: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Return the head's output at each state, (B, K, act_size); no tanh is applied.

        :param rtg: (B, K) returns-to-go, scaled.
        :param obs: (B, K, ...) normalised observations.
        :param act: (B, K) int64 or (B, K, A); the last one is not looked at.
        :param time: (B, K) int64 steps in the episode.
        :param masks: those of ``dropout_masks``; no dropout if None.
        """
        x = self.embed(rtg, obs, act, time)
        if masks is not None:
            x = x * masks[0]
        tokens = x.shape[1]
        bias = self.causal[:tokens, :tokens]
        last = len(self.blocks) - 1
        for k, block in enumerate(self.blocks):
            own = None if masks is None else masks[1 + 3 * k : 4 + 3 * k]
            if k == last:
                x = block(x, bias[1::3], own, pick=lambda t: t[:, 1::3])
            else:
                x = block(x, bias, own)
        out: Tensor = self.head(self.last_norm(x))
        return out

    def num_mask_bits(self, batch: int, steps: int) -> int:
        """Return how many numbers of 64 random bits ``dropout_masks`` takes."""
        return math.ceil(sum(map(math.prod, self.mask_shapes(batch, steps))) / 4)

    def dropout_masks(self, batch: int, steps: int, dropout: float, bits: Tensor) -> list[Tensor]:
        """Return the dropout factors of a forward pass, 0 or 1 / (1 - dropout).

        :param bits: (n,) int64, all of them random.
        """
        shapes = self.mask_shapes(batch, steps)
        sizes = [math.prod(shape) for shape in shapes]
        # Four numbers of 16 bits out of each that is drawn: a fifth of the time of bernoulli_.
        numbers = bits.view(torch.int16)[: sum(sizes)]
        kept = (numbers >= round(dropout * 2**16) - 2**15).float() / (1.0 - dropout)
        parts = torch.split(kept, sizes)
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def mask_shapes(self, batch: int, steps: int) -> list[tuple[int, ...]]:
        """Return the shapes of all dropout factors of a forward pass."""
        tokens, heads = 3 * steps - 1, batch * self.num_heads
        shapes: list[tuple[int, ...]] = [(batch, tokens, self.width)]
        for k in range(len(self.blocks)):
            out = steps if k == len(self.blocks) - 1 else tokens
            shapes += [(heads, out, tokens), (batch, out, self.width), (batch, out, self.width)]
        return shapes

    def embed(self, rtg: Tensor, obs: Tensor, act: Tensor, time: Tensor) -> Tensor:
        """Return the tokens (B, 3 K - 1, width) of a window, R, s, a, R, s, a, ..., R, s.

        No answer depends on the last action.
        """
        state = self.embed_obs(obs.flatten(0, 1)).view(*rtg.shape, -1)
        x = torch.stack([self.embed_return(rtg.unsqueeze(-1)), state, self.embed_act(act)], dim=2)
        if self.place is None:
            x = x + self.time(self._known(time)).unsqueeze(2)
            return self.norm(x.flatten(1, 2)[:, :-1])  # type: ignore[no-any-return]
        x = torch.tanh(x.flatten(1, 2)[:, :-1])
        x = x + self.place[: x.shape[1]]
        return x + self.time(self._known(time[:, :1]))  # type: ignore[no-any-return]

    def _known(self, time: Tensor) -> Tensor:
        """Let steps beyond the last embedding share it."""
        return time.clamp(0, self.max_ep_len - 1)

    # ---- acting ---------------------------------------------------------------------------

    def make_cache(self, rows: int) -> KeyValueCache:
        """Return an empty cache for ``rows`` contexts."""
        sizes = (len(self.blocks), rows, self.num_heads, 3 * self.context_len, self.width)
        return KeyValueCache(*sizes, like=self.head.weight.detach())

    def fill(
        self,
        rtg: Tensor,
        obs: Tensor,
        act: Tensor,
        time: Tensor,
        lengths: Tensor,
        cache: KeyValueCache,
        rows: Tensor,
    ) -> Tensor:
        """Read whole contexts; return the head's output at their newest states, (B, act_size).

        :param rtg, obs, act, time: as for ``forward``, contexts padded at the end to K steps each;
            the newest steps' actions are placeholders.
        :param lengths: (B,) steps of each.
        :param cache: gets the keys and values in its ``rows`` (B,).
        """
        x = self.embed(rtg, obs, act, time)
        newest, tokens = 3 * lengths - 2, x.shape[1]
        each, at = torch.arange(len(x), device=x.device), cache.places(rows)

        def keep(block: int) -> Store:
            def store(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
                cache.keys[block][at, :tokens] = keys
                cache.values[block][at, :tokens] = values
                return keys, values

            return store

        bias = self.causal[newest, :tokens].repeat_interleave(cache.heads, 0).unsqueeze(1)

        def pick(t: Tensor) -> Tensor:
            return t[each, newest].unsqueeze(1)

        return self._read(x, self.causal[:tokens, :tokens], bias, pick, keep)

    def extend(
        self,
        last_act: Tensor,
        rtg: Tensor,
        obs: Tensor,
        when: Tensor,
        starts: Sequence[int],
        cache: KeyValueCache,
    ) -> Tensor:
        """Read one more step of every row; return the head's output at its state, (R, act_size).

        :param last_act: (R,) or (R, A) actions of the step before.
        :param rtg, obs: (R,), (R, ...) of the new step.
        :param when: (R, 3) time of the three tokens; of Atari's, that of the context's first step.
        :param starts: tokens that each row has in the cache.
        """
        parts = [
            self.embed_act(last_act),
            self.embed_return(rtg.unsqueeze(-1)),
            self.embed_obs(obs),
        ]
        x = torch.stack(parts, dim=1)  # (R, 3, width)
        stop = max(starts) + 3
        same = min(starts) + 3 == stop
        if same:
            at = None
            bias = self.causal[stop - 3 : stop, :stop]
        else:
            tokens = torch.arange(3, device=x.device)
            at = torch.tensor(starts, device=x.device).unsqueeze(1) + tokens  # (R, 3)
            at = at.repeat_interleave(cache.heads, 0)  # (R * heads, 3)
            each = torch.arange(len(at), device=x.device).unsqueeze(1)
            bias = self.causal[at, :stop]
        if self.place is None:
            x = self.norm(x + self.time(self._known(when)))
        else:
            own = self.place[stop - 3 : stop] if at is None else self.place[at[:: cache.heads]]
            x = torch.tanh(x) + own + self.time(self._known(when))

        def keep(block: int) -> Store:
            def store(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
                for new, every in ((keys, cache.keys[block]), (values, cache.values[block])):
                    if at is None:
                        every[:, stop - 3 : stop] = new
                    else:
                        every[each, at] = new
                return cache.keys[block][:, :stop], cache.values[block][:, :stop]

            return store

        return self._read(x, bias, bias[..., -1:, :], lambda t: t[:, -1:], keep)

    def _read(
        self, x: Tensor, bias: Tensor, last_bias: Tensor, pick: Pick, keep: Callable[[int], Store]
    ) -> Tensor:
        last = len(self.blocks) - 1
        for k, block in enumerate(self.blocks):
            if k == last:
                x = block(x, last_bias, pick=pick, store=keep(k))
            else:
                x = block(x, bias, store=keep(k))
        out: Tensor = self.head(self.last_norm(x.squeeze(1)))
        return out
