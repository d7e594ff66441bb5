"""Which noise lets MAD-AD's mask head see lesions: ``python benchmarks/madad_noise.py --data-root soop_flair --out noise``.

One fit of ``latent`` trains an autoencoder, and MAD-AD starts from it with each noise and seed, so that nothing differs
but these. Maps are made by repairing, by one pass of the mask probability, and as the mean of both; beside them stand the
distances of the latents themselves, without diffusion. Autoencoders: ``learnt`` (4 channels, as in the paper but small)
and ``brightness`` (preset ``tiny``). Prints Markdown as it goes, and goes on where it was stopped.

    python benchmarks/madad_noise.py --dataset phantom --modality T1 --codec brightness --seeds 0 --out noise-t1
    python benchmarks/madad_noise.py --data-root soop_flair --codec learnt --set steps=300 --set mask_weight=0.1 --out noise
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import numpy as np

SCORES = ("repair", "probability", "both")
DISTANCES = ("norm", "origin", "component", "mahalanobis")
# Parameters on top of the preset.
CODECS: dict[str, dict[str, Any]] = {"brightness": {}, "learnt": {"ae_base": False, "latent_channels": 4}}


def interval(number: Any) -> dict[str, float | None]:
    """Value and ends of a number of a record or of an evaluation."""
    return {"value": number.value, "low": number.low, "high": number.high}


def cells(run: Any) -> dict[str, float]:
    """What one pass of the mask head flags (p > .5) of the brain's latent cells in the test split: cells that are at least
    half lesion, and cells without any.
    """
    import torch
    from torch.nn.functional import adaptive_avg_pool2d

    from adbench.methods.common.image_ops import resize
    from adbench.methods.common.preprocess import preprocess
    from adbench.methods.madad.diffusion import STEPS, allowed_cells

    method, test = run.method(), run.data.test
    p = method.params
    hits: dict[str, list[np.ndarray]] = {"lesion": [], "free": []}
    with torch.inference_mode():
        for start in range(0, len(test), 32):
            where = np.arange(start, min(start + 32, len(test)))
            seen = preprocess(test.batch(where).to(method.ctx.device), p.image_size, p.standardise)
            mean = method._codec.encode(seen.image * 2 - 1)[0]
            probability = method._heads(mean * method._scale, torch.full((len(where),), STEPS, device=mean.device))[1]
            size = (mean.shape[-2], mean.shape[-1])
            lesion = torch.from_numpy(test.lesions(where)).float()[:, None].to(mean.device)
            share = adaptive_avg_pool2d(resize(lesion, seen.image.shape[-2:]), size)
            inside = allowed_cells(seen.brain, size, share=p.background_share)
            flagged = (probability > 0.5).cpu().numpy()
            hits["lesion"].append(flagged[(inside & (share >= 0.5)).cpu().numpy()])
            hits["free"].append(flagged[(inside & (share == 0)).cpu().numpy()])
    return {name: float(np.concatenate(parts).mean()) for name, parts in hits.items()}


def table(rows: dict[str, dict[int, Any]], seeds: list[int]) -> str:
    """Rows by name and seed as Markdown: the AUPRC of each seed, and their mean."""
    lines = [f"| row | {' | '.join(f'seed {seed}' for seed in seeds)} | mean |", "|---|" + "--:|" * (len(seeds) + 1)]
    for name, found in rows.items():
        values = [found[seed]["value"] for seed in seeds if seed in found]
        shown = [
            f"{e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}]" if (e := found.get(seed)) else "" for seed in seeds
        ]
        lines.append(f"| {name} | {' | '.join(shown)} | {np.mean(values):.3f} |")
    return "\n".join(lines)


def main() -> None:
    import adbench

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="folder")
    parser.add_argument("--data-root", help="folder of the dataset")
    parser.add_argument("--modality", default="FLAIR")
    parser.add_argument("--out", type=Path, required=True, help="where runs and figures are kept")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated; the first one is that of the autoencoder")
    parser.add_argument("--codec", default=",".join(CODECS), help="comma-separated")
    parser.add_argument("--noise", default="matched,offset,white", help="comma-separated; empty: only the latents")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter of MAD-AD in every row, e.g. steps=300",
    )
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    seeds = [int(seed) for seed in args.seeds.split(",")]
    data = {"modality": args.modality, "preset": args.preset, "device": args.device, "out": args.out}
    data |= {"data_root": args.data_root} if args.data_root else {}
    own = dict(text.split("=", 1) for text in args.set)
    rows: dict[str, dict[int, Any]] = {}
    flags: dict[str, dict[int, Any]] = {}
    for codec in args.codec.split(","):
        distances = adbench.run(
            "latent", args.dataset, set={"latent": {**CODECS[codec], "distance": DISTANCES}}, seed=seeds[0], **data
        )
        for run in distances:
            row = rows.setdefault(f"latent[{run.record.method.params['distance']}], {codec}", {})
            row[seeds[0]] = interval(run.record.metrics["auprc"])
        print(f"\n{table(rows, seeds)}", flush=True)
        for noise in filter(None, args.noise.split(",")):
            values = {**CODECS[codec], "noise": noise, "autoencoder": str(distances[0].fit_folder)}
            values |= {"ae_steps": 0, "score": SCORES, **own}
            for seed in seeds:
                for run in adbench.run("madad", args.dataset, set={"madad": values}, seed=seed, **data):
                    row = rows.setdefault(f"MAD-AD[{noise}], {run.record.method.params['score']}, {codec}", {})
                    row[seed] = interval(run.record.metrics["auprc"])
                flags.setdefault(f"{noise}, {codec}", {})[seed] = cells(run)
                print(f"\n{table(rows, seeds)}", flush=True)
    if flags:
        print("\nCells with p > .5 in one pass, of those at least half lesion / of those without:\n")
        for name, found in flags.items():
            print(f"* {name}: " + ", ".join(f"{f['lesion']:.1%} / {f['free']:.1%}" for f in found.values()))


if __name__ == "__main__":
    main()
