"""Order the tails of sibling prompts so that many prompts begin alike, and an engine reads what they share once."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Sequence


def order_to_share(draws: Sequence[Iterable[int]]) -> list[tuple[int, ...]]:
    """Return the distinct numbers of each draw in an order that shares prefixes. Part of the lineage: do not change.

    The rule is greedy. The number that most draws have (the lowest of several) comes first in all of them. These draws
    are ordered by the same rule without that number, and then the draws that do not have it.
    """
    remaining = [set(draw) for draw in draws]
    orders: list[list[int]] = [[] for _ in draws]
    groups = [list(range(len(draws)))]
    while groups:
        group = groups.pop()
        holders: defaultdict[int, set[int]] = defaultdict(set)
        for draw in group:
            for number in remaining[draw]:
                holders[number].add(draw)
        by_frequency = [(-len(of_number), number) for number, of_number in holders.items()]
        heapq.heapify(by_frequency)
        while by_frequency:
            negative, number = heapq.heappop(by_frequency)
            if len(holders[number]) < -negative:  # some of its draws have left the group since
                heapq.heappush(by_frequency, (-len(holders[number]), number))
                continue
            members = sorted(holders[number])
            for draw in members:
                for other in remaining[draw]:
                    holders[other].discard(draw)
                remaining[draw].remove(number)
                orders[draw].append(number)
            if members:
                groups.append(members)
    return [tuple(order) for order in orders]
