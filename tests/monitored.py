"""Run folders of compressed actors, as the runtime leaves them, with numbers as they occur."""

from __future__ import annotations

import json

import numpy as np

from shoal.monitor import timing
from tests.test_report import make_run

LEVELS = ("prune+distil+quantise", "quantise", "identity")


def metrics(path, coarse=True):
    """Adds what the monitor tells to every line of ``metrics.jsonl``."""
    rng = np.random.default_rng(3)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for i, row in enumerate(rows):
        early = coarse and 14 <= i < 22
        full = coarse and 22 <= i < 40
        kl = (0.085 if early else 0.0004 if full else 0.006) * float(rng.uniform(0.7, 1.3))
        row |= {
            "updates": row["step"] // 20,
            "kl_compression": None if i < 2 else kl,
            "kl_staleness": None if i < 2 else 0.012 * (1 + i / 40) * float(rng.uniform(0.6, 1.4)),
            "ess": None if i < 2 else (0.44 if early else 0.93) + float(rng.normal()) * 0.015,
            "clip_fraction": None if i < 2 else (0.31 if early else 0.12) + float(rng.normal()) * 0.01,
            "weight_mean": 1.0 + float(rng.normal()) * 0.02,
            "chi2": (0.9 if early else 0.06) * float(rng.uniform(0.7, 1.4)),
            "action_agreement": None if i < 2 else (0.86 if early else 1.0 if full else 0.975),
            "staleness": 3.2 + float(rng.normal()) * 0.4,
            "publish_share": 0.011 + 0.004 * float(rng.uniform()),
            "inference_us": (1293.0 if full else 131.0) * float(rng.uniform(0.97, 1.06)),
            "actor_inference_share": 0.60 if full else 0.17 + float(rng.normal()) * 0.01,
            "packed_bytes": 33_703_968 if full else 2_188_400,
        }
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


ACTOR = {
    "engine": "onnx", "engines_us": {"numba": 3100.0, "onnx": 1293.0, "numpy": 1410.0, "jax": 1913.0}, "batch": 1,
    "inference_us": {"median": 131.0, "p95": 188.0},
    "split": {"inference_s": 14.2, "env_s": 46.1, "wait_s": 3.4, "load_s": 2.2, "other_s": 12.1}, "wall_s": 78.0,
    "staleness": {"median": 3, "p95": 7, "max": 19},
    "staleness_histogram": {"0": 12, "1": 160, "2": 620, "3": 1010, "4": 720, "5": 330, "6": 140, "7": 80, "8": 31,
                            "9": 12, "10": 5, "11": 0, "12": 3, "13": 0, "14": 1, "15": 0, "16-31": 2},
    "rollouts": 3126, "dropped": 0,
    "amdahl": {"full_us": 1293.0, "packed_us": 131.0},  # the rest follows
}  # fmt: skip
LEARNER = {
    "split": {"wait_s": 21.9, "update_s": 16.1, "publish_s": 0.5, "other_s": 0.5}, "wall_s": 39.0,
    "publish_share": 0.0128,
}  # fmt: skip
COMPRESSION = {
    "name": "chain", "level": LEVELS[0], "bytes_full": 33_703_968, "bytes_packed": 2_188_400, "bytes_per_s": 911_000.0,
    "compressed_share": 0.998, "compress_s": {"median": 0.118, "p95": 0.205},
    "publish_latency_s": {"median": 0.142, "p95": 0.29, "compress": 0.118, "transfer": 0.0021, "load": 0.0106},
    "publishes": 162, "refused": 0, "kl": 0.0057, "agreement": 0.974, "return_full": 481.2, "return_compressed": 478.1,
    "decisions": [
        {"update": 330, "from": LEVELS[2], "to": LEVELS[1],
         "cause": "KL of compression 0.0008 < 0.01 and ESS 0.93 > 0.8, 10 checks in a row"},
        {"update": 660, "from": LEVELS[1], "to": LEVELS[0],
         "cause": "KL of compression 0.006 < 0.01 and ESS 0.92 > 0.8, 10 checks in a row"},
        {"update": 764, "from": LEVELS[0], "to": LEVELS[2],
         "cause": "action agreement 0.47 < 0.5: identity at once"},
        {"update": 1360, "from": LEVELS[2], "to": LEVELS[0],
         "cause": "KL of compression 0.0004 < 0.01 and ESS 0.93 > 0.8, 10 checks in a row"},
    ],
}  # fmt: skip
CORRECTION = {
    "name": "vtrace", "kl_compression": 0.0061, "kl_staleness": 0.0157, "kl_total": 0.0218, "kl_k3": 0.0059,
    "ess": 0.871, "clip_fraction": 0.143, "weight_mean": 0.998, "chi2": 0.148, "dlogp": 0.0421, "rejected_low": 0.0,
    "rejected_high": 0.0, "log_rho": {"mean": -0.0218, "std": 0.31, "max": 2.94},
    "alarms": ["mean exp |log pi - log mu| 1.07 is above 1.05: the acting policy has drifted"],
}  # fmt: skip


def changed(given, **changes):
    """An object of the summary with some values replaced; ``split_inference_s`` is `inference_s` inside `split`."""
    made = json.loads(json.dumps(given))
    for key, value in changes.items():
        outer, _, inner = key.partition("__")
        if inner:
            made[outer][inner] = value
        else:
            made[key] = value
    return made


def predicted(actor, learner, packed=True):
    """The object `actor` with what follows from its times, those of the learner, and of two actors."""
    one = {name: seconds / 2 for name, seconds in actor["split"].items()}
    full_us, packed_us = actor["amdahl"]["full_us"], actor["amdahl"]["packed_us"]
    stages = timing.measured_stages([one, one], learner["split"])
    return actor | {
        "amdahl": timing.amdahl(timing.predict(stages, full_us / packed_us, packed=packed), full_us, packed_us),
        "wall_s": sum(actor["split"].values()),
    }


def make(path, *, actor=ACTOR, learner=LEARNER, compression=COMPRESSION, correction=CORRECTION, coarse=True, **changes):
    """A run folder of the preset `accerl`."""
    level = (compression or {}).get("name", "identity")
    if actor and learner:
        actor = predicted(actor, learner, level != "identity")
    objects = {"actor": actor, "learner": learner, "compression": compression, "correction": correction}
    made = make_run(path, preset="accerl", workers={"of": 2}, **(objects | changes))
    config = json.loads((made / "config.json").read_text())
    config["parts"] |= {"runtime": {"name": "actor_learner", "workers": 2}, "compressor": {"name": level}}
    (made / "config.json").write_text(json.dumps(config))
    metrics(made, coarse)
    return made


def full(path, **changes):
    """The baseline: the same at full precision."""
    actor = changed(
        ACTOR, split__inference_s=140.2, amdahl__packed_us=1293.0, inference_us={"median": 1293.0, "p95": 1480.0},
    )  # fmt: skip
    learner = changed(LEARNER, split__wait_s=84.9)
    compression = changed(
        COMPRESSION, name="identity", level="full precision", bytes_packed=33_703_968, compressed_share=0.0, kl=0.0,
        agreement=1.0, return_compressed=481.2, decisions=[],
    )  # fmt: skip
    given = {"actor": actor, "learner": learner, "compression": compression, "coarse": False, "train_s": 11.1}
    return make(path, **(given | changes))
