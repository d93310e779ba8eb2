"""Standard errors of distribution metrics over the generated images; the reference stays fixed.

Delete-a-group jackknife: the images are dealt at random into G groups, and every metric is computed
G times with one group left out; error² = (G - 1) / G · Σ (θ_g - mean)². No image is repeated as in
bootstrap resamples, where repeats shrink nearest-neighbour balls and add a Fréchet distance's
finite-sample bias a second time. That bias is left as it is: an interval is about the metric at
this number of images. The error itself is known to about 1 / sqrt(2 (G - 1)), 10% with 50 groups.

Recall and coverage ask for single nearest neighbours, and so are no smooth functions of the images,
which a jackknife supposes. Their errors are conservative: 1.3 to 1.65 times the spread of repeated
samples, which that of a Fréchet distance equals.

Cost beyond the metrics themselves: sums are kept by group, so only the Fréchet distance repeats
anything large, G eigenvalue problems of its D x D covariances.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from scipy.linalg import eigh, eigvalsh
from scipy.stats import t as student
from torch import Tensor
from torch_fidelity.metric_prc import calc_cdist_part

from lambda24.common.metrics.balls import (
    calibrated_coverage,
    calibrated_density,
    clipped_share,
    real_balls,
)
from lambda24.common.metrics.distances import FeatureStats, MomentAccumulator

CHUNK = 500  # rows of a distance matrix held at once


def deal_groups(count: int, num_groups: int, seed: int = 0) -> Tensor:
    """A group in [0, num_groups) for each of `count` images, of equal sizes up to one.

    Raises:
        ValueError: fewer than two groups, or groups of less than two images.
    """
    if not 2 <= num_groups <= count // 2:
        raise ValueError(
            f"num_resamples must lie in [2, {count // 2}] for {count} images, got {num_groups}"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order % num_groups


def jackknife_error(values: Tensor) -> float:
    """Standard error from the `(G,)` values of a metric without each of the groups."""
    count = len(values)
    spread = (values.double() - values.double().mean()).square().sum()
    return float(((count - 1) / count * spread).sqrt())


def half_width(error: float, num_groups: int | None = None) -> float:
    """Half of a 95% interval: Student's t with G - 1 degrees of freedom, or normal for None."""
    quantile = 1.959964 if num_groups is None else student.ppf(0.975, num_groups - 1)
    return float(quantile) * error


def binomial_error(fraction: float, count: int) -> float:
    """Standard error of a fraction of `count` independent images."""
    return math.sqrt(fraction * (1 - fraction) / count)


def frechet_without(features: Tensor, groups: Tensor, reference: FeatureStats) -> Tensor:
    """Fréchet distance of `(N, D)` features to the reference without each group, `(G,)`."""
    # scipy's solver, since torch's (divide and conquer) fails on some covariances of low rank.
    values, vectors = (torch.from_numpy(part) for part in eigh(reference.covariance.numpy()))
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T  # Σb^½
    whole = MomentAccumulator()
    whole.update(features)
    distances = []
    for group in range(int(groups.max()) + 1):
        stats = whole.without(features[groups == group])
        # tr (Σa Σb)^½ = tr (Σb^½ Σa Σb^½)^½, and the right matrix is symmetric.
        product = root @ stats.covariance @ root
        eigenvalues = torch.from_numpy(eigvalsh(product.numpy()))
        trace = stats.covariance.trace() + reference.covariance.trace()
        shift = (stats.mean - reference.mean).square().sum()
        distances.append(shift + trace - 2 * eigenvalues.clamp(min=0).sqrt().sum())
    return torch.stack(distances)


def inception_without(logits: Tensor, groups: Tensor) -> Tensor:
    """Inception Score of `(N, K)` logits without each group, `(G,)`."""
    log_p = logits.double().log_softmax(dim=1)
    p = log_p.exp()
    counts = torch.bincount(groups)
    marginals = _group_sums(p, groups)  # (G, K)
    negentropies = _group_sums((p * log_p).sum(dim=1), groups)  # (G,)
    kept = len(groups) - counts
    marginal = (marginals.sum(dim=0) - marginals) / kept[:, None]
    negentropy = (negentropies.sum() - negentropies) / kept
    return (negentropy - torch.xlogy(marginal, marginal).sum(dim=1)).exp()


def kernel_without(generated: Tensor, reference: Tensor, groups: Tensor) -> Tensor:
    """Unbiased KID over all pairs without each group, `(G,)`, less the reference's own term.

    That term is the same for all groups. Features `(N, D)` and `(M, D)`, kernel (x·y / D + 1)³.
    """
    num_groups, dim = int(groups.max()) + 1, generated.shape[1]
    rows, blocks, cross = (torch.zeros(num_groups, dtype=torch.float64) for _ in range(3))
    for group in range(num_groups):
        is_mine = groups == group
        mine = generated[is_mine]
        within = ((mine @ generated.T).double() / dim + 1) ** 3  # (n, N)
        diagonal = ((mine.square().sum(dim=1)).double() / dim + 1) ** 3
        rows[group] = within.sum() - diagonal.sum()
        blocks[group] = within[:, is_mine].sum() - diagonal.sum()
        cross[group] = (((mine @ reference.T).double() / dim + 1) ** 3).sum()
    kept = len(groups) - torch.bincount(groups)
    inner = (rows.sum() - 2 * rows + blocks) / (kept * (kept - 1))
    return inner - 2 * (cross.sum() - cross) / (kept * len(reference))


def manifold_without(
    generated: Tensor,
    reference: Tensor,
    groups: Tensor,
    *,
    neighbors: int,
    density_neighbors: int,
) -> Mapping[str, Tensor]:
    """Precision, recall, density, coverage and their clipped forms without each group.

    Returns:
        `(G,)` each, by name.
    """
    balls = real_balls(reference, neighbors).radii  # (M,)
    density_balls = real_balls(reference, density_neighbors)
    radii = _radii_without(generated, groups, neighbors)  # (N, G)
    hits, inside, held, covered, recalled = [], [], [], [], []
    for chunk, ball, density_ball, clipped in zip(
        reference.split(CHUNK),
        balls.split(CHUNK),
        density_balls.radii.split(CHUNK),
        density_balls.clipped.split(CHUNK),
        strict=True,
    ):
        distances = calc_cdist_part(generated, chunk, CHUNK)  # (N, m)
        hits.append((distances <= ball).any(dim=1))
        is_dense = distances < density_ball
        inside.append(is_dense.sum(dim=1))
        held.append((distances <= clipped).sum(dim=1))
        covered.append(_group_sums(is_dense.float(), groups))  # (G, m)
        recalled.append(_reached(distances, radii))  # (m, G)
    kept = len(groups) - torch.bincount(groups)
    precise = _group_sums(torch.stack(hits).any(dim=0).double(), groups)
    dense = _group_sums(torch.stack(inside).sum(dim=0).double(), groups)
    shares = clipped_share(torch.stack(held).sum(dim=0), density_neighbors)  # (N,)
    share = _group_sums(shares, groups)
    by_group = torch.cat(covered, dim=1).long()  # (G, M)
    found = by_group.sum(dim=0) - by_group  # generated images in each ball without the group
    reached = clipped_share(found, density_neighbors).mean(dim=1).tolist()
    counts = zip(reached, kept.tolist(), strict=True)
    size = len(reference)
    return {
        "precision": (precise.sum() - precise) / kept,
        "recall": torch.cat(recalled).double().mean(dim=0),
        "density": (dense.sum() - dense) / (density_neighbors * kept),
        "coverage": (found > 0).double().mean(dim=1),
        "clipped_density": torch.tensor(
            [calibrated_density(s, density_balls) for s in ((share.sum() - share) / kept).tolist()]
        ),
        "clipped_coverage": torch.tensor(
            [calibrated_coverage(part, n, size, density_neighbors) for part, n in counts]
        ),
    }


def _group_sums(values: Tensor, groups: Tensor) -> Tensor:
    """Sums of `(N, ...)` values by group, `(G, ...)`."""
    sums = values.new_zeros(int(groups.max()) + 1, *values.shape[1:])
    return sums.index_add_(0, groups, values)


def _radii_without(points: Tensor, groups: Tensor, neighbors: int) -> Tensor:
    """Distance of each point to its k-th neighbour without each group, `(N, G)`.

    Points of the group that is left out have radius -1: they reach nothing.
    """
    counts = torch.bincount(groups)
    num_candidates = min(len(points), neighbors + 1 + int(counts.max()))
    radii = []
    for chunk in points.split(CHUNK):
        distances = calc_cdist_part(chunk, points, CHUNK)
        nearest, ids = distances.topk(num_candidates, dim=1, largest=False)  # (n, L), sorted
        owners = groups[ids]
        by_group = []
        for group in range(len(counts)):
            rank = (owners != group).cumsum(dim=1)
            # The nearest of all is the point itself, hence neighbours + 1.
            position = (rank <= neighbors).sum(dim=1, keepdim=True).clamp(max=num_candidates - 1)
            by_group.append(nearest.gather(1, position))
        radii.append(torch.cat(by_group, dim=1))
    joined = torch.cat(radii)
    joined[torch.arange(len(points)), groups] = -1
    return joined


def _reached(distances: Tensor, radii: Tensor) -> Tensor:
    """Which of m points lie in a ball without each group; `(N, m)`, `(N, G)` -> `(m, G)` bool."""
    # Few pairs are close at all, so only those meet every group.
    centre, point = (distances <= radii.amax(dim=1, keepdim=True)).nonzero(as_tuple=True)
    inside = distances[centre, point][:, None] <= radii[centre]  # (P, G)
    counts = torch.zeros(distances.shape[1], radii.shape[1])
    return counts.index_add_(0, point, inside.float()) > 0
