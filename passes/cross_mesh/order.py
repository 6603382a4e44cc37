"""In which order pieces go: one round after the other, each a sequence of pairings of senders and receivers.

A bipartite graph whose nodes are cards (or ports) and whose edges carry seconds of sending falls apart into matchings
whose lengths add up to the largest load of a node (Birkhoff): nobody waits. Cut into rounds, each round sends one piece
of everything, and what is handed on follows a round behind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from passes.cross_mesh.routes import Hop
from passes.cross_mesh.wiring import Resource

MOST_PAIRS = 2000
"""Above that many pairs of senders and receivers, everybody goes round in a circle instead of by matchings."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A part of a hop's piece, in one round: from `start` to `stop` of the piece (0 ... 1)."""

    hop: int
    start: float
    stop: float


def turns(hops: Sequence[Hop], seconds: Sequence[float]) -> tuple[Turn, ...]:
    """The order within a round; `seconds[i]` is what hop i takes on its card or port in all rounds together."""
    pairs: dict[tuple[Resource, Resource], list[int]] = {}
    links: list[int] = []
    for hop in hops:
        if hop.path.at_once:
            pairs.setdefault((hop.path.resources[0], hop.path.resources[1]), []).append(hop.id)
        else:
            links.append(hop.id)
    out: list[Turn] = []
    for _, pair, low, high in _windows(pairs, seconds):
        out += _cut(pairs[pair], seconds, low, high)
    # On a torus the farthest go first, and the near ones fill the gaps.
    links.sort(key=lambda i: (hops[i].depth, -len(hops[i].path.resources), i))
    return (*out, *(Turn(i, 0.0, 1.0) for i in links))


def _cut(mine: Sequence[int], seconds: Sequence[float], low: float, high: float) -> list[Turn]:
    """The turns of one pair whose hops, end to end, cover low ... high seconds."""
    out, at = [], 0.0
    for i in mine:
        end = at + seconds[i]
        a, b = max(low, at), min(high, end)
        if b - a > 1e-9 * max(seconds[i], 1e-300) or (seconds[i] == 0 and low == 0):
            out.append(Turn(i, (a - at) / seconds[i], (b - at) / seconds[i]) if seconds[i] else Turn(i, 0.0, 1.0))
        at = end
    return out


def _windows(
    pairs: Mapping[tuple[Resource, Resource], Sequence[int]], seconds: Sequence[float]
) -> list[tuple[int, tuple[Resource, Resource], float, float]]:
    """(slot, pair, from, to): in which slots a pair is busy, and which of its seconds it works off there."""
    weight = {pair: sum(seconds[i] for i in mine) for pair, mine in pairs.items()}
    if len(pairs) > MOST_PAIRS:
        givers = {r: i for i, r in enumerate(sorted({a for a, _ in pairs}))}
        takers = {r: i for i, r in enumerate(sorted({b for _, b in pairs}))}
        turn = max(len(givers), len(takers))
        shifted = sorted(pairs, key=lambda p: ((takers[p[1]] - givers[p[0]]) % turn, p))
        return [(k, pair, 0.0, weight[pair]) for k, pair in enumerate(shifted)]
    done = dict.fromkeys(pairs, 0.0)
    out = []
    for slot, (length, matched) in enumerate(matchings(weight)):
        for pair in matched:
            # The last window takes what rounding left.
            left = weight[pair] - done[pair] - length
            high = weight[pair] if left <= 1e-9 * weight[pair] else done[pair] + length
            out.append((slot, pair, done[pair], high))
            done[pair] = high
    return out + [(len(out), pair, done[pair], weight[pair]) for pair in pairs if done[pair] < weight[pair]]


def matchings(
    weight: Mapping[tuple[Resource, Resource], float],
) -> list[tuple[float, list[tuple[Resource, Resource]]]]:
    """Edges (sender, receiver) with their weights as matchings with lengths, whose sum is the largest load of a node.

    The matrix W is completed to [[W, slack], [slack, W transposed]], whose rows and columns all have the same sum, so
    that it always has a perfect matching; each is kept as long as its least entry lasts.
    """
    outs = sorted({a for a, _ in weight})
    ins = sorted({b for _, b in weight})
    n, m = len(outs), len(ins)
    row, col = {a: i for i, a in enumerate(outs)}, {b: j for j, b in enumerate(ins)}
    sums_out, sums_in = [0.0] * n, [0.0] * m
    for (a, b), w in weight.items():
        sums_out[row[a]] += w
        sums_in[col[b]] += w
    most = max([*sums_out, *sums_in], default=0.0)
    dust = 1e-9 * most
    entries: list[dict[int, float]] = [{} for _ in range(n + m)]
    for (a, b), w in weight.items():
        if w > dust:
            entries[row[a]][col[b]] = w
            entries[n + col[b]][m + row[a]] = w
    for i in range(n):
        if most - sums_out[i] > dust:
            entries[i][m + i] = most - sums_out[i]
    for j in range(m):
        if most - sums_in[j] > dust:
            entries[n + j][j] = most - sums_in[j]
    partner, owner = [-1] * (n + m), [-1] * (n + m)
    out: list[tuple[float, list[tuple[Resource, Resource]]]] = []
    left = most
    while left > dust:
        for i in range(n + m):
            if partner[i] < 0:
                _augment(i, entries, partner, owner, set())
        matched = [i for i in range(n + m) if partner[i] >= 0]
        length = min((entries[i][partner[i]] for i in matched), default=0.0)
        if length <= 0:
            break
        found = [(outs[i], ins[partner[i]]) for i in matched if i < n and partner[i] < m]
        if found:
            out.append((length, found))
        left -= length
        for i in matched:
            j = partner[i]
            entries[i][j] -= length
            if entries[i][j] <= dust:
                del entries[i][j]
                partner[i] = owner[j] = -1
    return out


def _augment(
    i: int, entries: Sequence[Mapping[int, float]], partner: list[int], owner: list[int], seen: set[int]
) -> bool:
    """Give row i a column, moving other rows if need be (Kuhn)."""
    for j in entries[i]:
        if owner[j] < 0:
            partner[i], owner[j] = j, i
            return True
    for j in entries[i]:
        if j not in seen:
            seen.add(j)
            if _augment(owner[j], entries, partner, owner, seen):
                partner[i], owner[j] = j, i
                return True
    return False
