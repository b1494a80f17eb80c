"""Predictions with Ray Data: a folder of images or Parquet files in, Parquet files out; a stopped job can be started again.

    python examples/ray_predict.py --bundle runs/x --data photos --out answers
    python examples/ray_predict.py --bundle runs/x --data shards --column image --out answers --actors 8

The input is cut into shards: every Parquet file is one, and so are every --shard images of a folder. A shard that is done
has its own folder in --out (written beside it first, and renamed when it is whole), and is not computed again. On a cluster,
--data, --out and --bundle are on a file system that all machines see; ``ray job submit`` or RAY_ADDRESS says where it is.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path

import ray

from exitlens.data.files import list_images
from exitlens.ray import Predictor


def list_shards(data: Path, size: int) -> Iterator[tuple[str, ray.data.Dataset]]:
    """Name and rows of every shard, in an order that does not change."""
    files = sorted(data.rglob("*.parquet"))
    for file in files:
        yield file.relative_to(data).with_suffix("").as_posix().replace("/", "-"), ray.data.read_parquet(str(file))
    images = [] if files else [str(path) for path in list_images(data)]
    for at in range(0, len(images), size):
        yield (
            f"images-{at // size:06}",
            ray.data.from_items([{"file": name, "image": name} for name in images[at : at + size]]),
        )


def main() -> None:
    """Answers every shard that is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--column", default="image")
    parser.add_argument("--shard", type=int, default=10_000, help="images of a folder in a shard")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="CPUs of an actor")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--skip-bad", action="store_true")
    given = parser.parse_args()
    bundle = str(Path(given.bundle).resolve())
    how = {"skip_bad": given.skip_bad, "threads": given.threads}
    given.out.mkdir(parents=True, exist_ok=True)
    for name, rows in list_shards(given.data.resolve(), given.shard):
        done = given.out / name
        if done.exists():
            print(f"{name}: there already")
            continue
        unfinished = given.out / f".{name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        answers = rows.map_batches(
            Predictor,
            fn_constructor_args=(bundle, given.column),
            fn_constructor_kwargs=how,
            batch_size=given.batch_size,
            compute=ray.data.ActorPoolStrategy(size=given.actors),
            num_cpus=given.threads,
        )
        answers.write_parquet(str(unfinished.resolve()))
        unfinished.rename(done)
        print(f"{name}: done")


if __name__ == "__main__":
    main()
