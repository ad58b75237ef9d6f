"""LIIF as the paper writes it: slow, unfolded, one corner after another. What the fast path is held against.

The steps follow section 3 of the paper and the published code: the 3x3 neighbourhood is unfolded into 576 channels, a
query is shifted by half a feature pixel to each of the four corners, asks the nearest code with [features, relative
coordinate, cell], and the answers are weighed by the area of the rectangle to the diagonally opposite corner.
"""

import torch
import torch.nn.functional as F

EPSILON = 1e-6


def query(model, image, coords, cell):
    """Image (B, 3, H, W) in [0, 1], coords (B, Q, 2), cell (B, Q, 2) in [-1, 1] units, to (B, Q, 3) in [0, 1]."""
    features = model.encoder((image - 0.5) / 0.5)
    if model.feat_unfold:
        batch, channels, height, width = features.shape
        features = F.unfold(features, 3, padding=1).view(batch, channels * 9, height, width)
    batch, _, height, width = features.shape
    rows = -1 + (2 * torch.arange(height) + 1) / height
    columns = -1 + (2 * torch.arange(width) + 1) / width
    centres = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).expand(batch, 2, height, width)

    shifts = [(a, b) for a in (-1, 1) for b in (-1, 1)] if model.local_ensemble else [(0, 0)]
    nudge = EPSILON if model.local_ensemble else 0
    answers, areas = [], []
    for down, right in shifts:
        shifted = coords + torch.tensor([down / height, right / width]) + nudge
        shifted = shifted.clamp(-1 + EPSILON, 1 - EPSILON)
        grid = shifted.flip(-1)[:, None]
        code = F.grid_sample(features, grid, mode="nearest", align_corners=False)[:, :, 0].permute(0, 2, 1)
        centre = F.grid_sample(centres, grid, mode="nearest", align_corners=False)[:, :, 0].permute(0, 2, 1)
        relative = (coords - centre) * torch.tensor([height, width])
        inputs = [code, relative]
        if model.cell_decode:
            inputs.append(cell * torch.tensor([height, width]))
        answers.append(model.imnet(torch.cat(inputs, dim=-1)))
        areas.append((relative[..., 0] * relative[..., 1]).abs() + 1e-9)
    if model.local_ensemble:
        areas = [areas[3], areas[2], areas[1], areas[0]]  # the diagonally opposite one
    total = sum(areas)
    blended = sum(answer * (area / total)[..., None] for answer, area in zip(answers, areas, strict=True))
    return blended * 0.5 + 0.5


def grid_coords(size):
    """Centres of all pixels of an image of ``size``, row by row: (height * width, 2), (y, x) in [-1, 1]."""
    rows, columns = (-1 + (2 * torch.arange(n) + 1) / n for n in size)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).view(-1, 2)


def paint(model, image, size, block=2**15):
    """The whole image at ``size``: (height, width, 3), asked in blocks as the published code does."""
    coords = grid_coords(size)[None]
    cell = torch.tensor([2 / size[0], 2 / size[1]]).expand_as(coords)
    parts = [
        query(model, image, coords[:, i : i + block], cell[:, i : i + block]) for i in range(0, coords.shape[1], block)
    ]
    return torch.cat(parts, dim=1).view(*size, 3)
