"""Is the map or the measure wrong on Fashion-MNIST? The share of the oracle when deleted cells become something else.

``python -m benchmarks.fashion`` trains the small network for two epochs on 10,000 images on first use (a minute or two) and
judges its maps on validation images. It needs ``dataset-fashion-mnist``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

import exitlens as xl
from benchmarks.harness import table
from benchmarks.tasks import build_network, fashion
from exitlens.functional.baselines import fill
from exitlens.functional.maps import draw_random_map, pair_samples, rank_locations, regrid, share_of_possible, top_cells

FOLDER = Path("runs/fashion")
TRAINED, EPOCHS, JUDGED, FRACTION, GRID = 10_000, 2, 200, 0.2, (5, 5)
Fill = Callable[[Tensor, Tensor], Tensor]  # images (B,C,H,W), chosen (B,1,H,W) bool -> (B,C,H,W)


def train() -> tuple[xl.ExitNet, xl.data.ImageSet]:
    """Return a trained network and validation images that its training did not watch."""
    task = fashion(0)
    net = build_network(task, 0, exits=True)
    settings = {**task.settings, "epochs": EPOCHS, "out_dir": FOLDER, "resume": True, "progress": False}
    xl.fit(net, task.train.subset(torch.arange(TRAINED)), task.validation.subset(torch.arange(500)), **settings)
    return net.eval(), task.validation.subset(torch.arange(500, 500 + JUDGED))


def list_fills(black: float) -> Mapping[str, Fill]:
    """Return what deleted cells become; ``black`` is the value of the background."""
    return {
        "mean colour": lambda images, chosen: fill(images, chosen, "mean"),
        "black": lambda images, chosen: torch.full_like(images, black),
        "blurred": lambda images, chosen: fill(images, chosen, "blur"),
        "imputed": lambda images, chosen: fill(images, chosen, "road"),
        "another image": lambda images, chosen: images[pair_samples(len(images), 7)],
    }


@torch.inference_mode()
def judge(net: xl.ExitNet, images: Tensor, maps: Mapping[str, list[Tensor]], replace: Fill) -> dict[str, list[str]]:
    """Return, for each kind of map, the share of the oracle at every exit, and beside it what cells of the oracle cost."""
    modality, plain = net.input_spec.modality, [out.logits.softmax(1) for out in net(images)]

    def drop(cells: Tensor) -> list[Tensor]:  # (B,*grid) bool -> (B,) for each exit
        chosen = modality.spread(cells, images)
        after = net(torch.where(chosen, replace(images, chosen), images))
        pairs = zip(plain, after, strict=True)
        return [(p - out.logits.softmax(1)).gather(1, p.argmax(1, keepdim=True)).squeeze(1) for p, out in pairs]

    single = torch.eye(GRID[0] * GRID[1], dtype=torch.bool).view(-1, 1, *GRID).expand(-1, len(images), *GRID)
    losses = [torch.stack(each, 1).view(-1, *GRID) for each in zip(*map(drop, single), strict=True)]
    blind = [drop(top_cells(draw_random_map(losses[0], seed), FRACTION)) for seed in range(3)]
    shares: dict[str, list[str]] = {name: [] for name in (*maps, "oracle's drop", "random drop")}
    for k, loss in enumerate(losses):
        best = drop(top_cells(rank_locations(loss, None), FRACTION))[k]
        control = torch.stack([each[k] for each in blind]).mean(0)
        for name, kind in maps.items():
            share, error = share_of_possible(drop(top_cells(kind[k], FRACTION))[k], control, best)
            shares[name].append("" if share is None or error is None else f"{share:.2f} ± {1.96 * error:.2f}")
        shares["oracle's drop"].append(f"{best.mean():.2f}")
        shares["random drop"].append(f"{control.mean():.2f}")
    return shares


def main() -> None:
    net, data = train()
    images, modality = data.inputs, net.input_spec.modality
    with torch.no_grad():
        outs = net(images)
    attention = [modality.coarsen(net.info.place(k, out.attention), GRID) for k, out in enumerate(outs)]
    relevance = [modality.coarsen(xl.attribute(net, images, exit=k), GRID) for k in range(net.num_exits)]
    garment = (data.images[:, 0] > 0).float()  # (B,H,W)
    covered = [regrid(garment, GRID)] * net.num_exits
    on_garment = [(each * regrid(garment, GRID)).flatten(1).sum(1).mean().item() for each in attention]
    print(
        "attention on the garment:", " / ".join(f"{share:.2f}" for share in on_garment), f"; its area {garment.mean():.2f}"
    )
    rows = []
    for name, replace in list_fills(images.min().item()).items():
        shares = judge(net, images, {"attention": attention, "relevance": relevance, "the garment itself": covered}, replace)
        rows += [[name if i == 0 else "", kind, " / ".join(values)] for i, (kind, values) in enumerate(shares.items())]
    print("\n".join(table(["deleted cells become", "", "exit 0 to final"], rows)))


if __name__ == "__main__":
    main()
