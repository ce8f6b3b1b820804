"""What only a GPU can show, in one command of at most eight minutes: a line PASS or FAIL for each promise.

    python tests/gpu/check.py [FOLDER] [--device cuda] [--minutes 8]

Every check runs the program as a user does, on the demo's images and two small teachers, and compares with the same on the
CPU. What there is time left for goes to `bench`. `--device cpu` runs the whole of it without a GPU: then it shows only that
the script works.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import load_file, save_file

from unic_pipe import FeatureCache
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.stages.demo.data import write_samples
from unic_pipe.stages.distill.metrics import read_metrics

CONFIG = """\
samples:
  block_rows: 64
  datasets:
    train: {source: "../images/shapes-train-000000.tar"}
    val: {source: "../images/digits-val-*.tar"}
views: {recipe: unic, count: 2}
teachers:
  cnn: {encoder: efficientnet-lite0, image_size: 64}
  vit:
    encoder: checkpoint:../weights/vit.safetensors
    architecture: vit_tiny_patch16_224
    model_args: {img_size: 64}
    image_size: 64
    mean: [0.5, 0.5, 0.5]
    std: [0.5, 0.5, 0.5]
students:
  small:
    architecture: vit_tiny_patch16_224
    model_args: {img_size: 64, depth: 4}
    image_size: 64
    drop_path: 0.0
    ladder: {hidden: 64, last_hidden: 128}
    optimizer: {epochs: 2, warmup_epochs: 0, batch: 64, lr: 0.001}
distill: {validation: val, log_every: 1}
"""
RATIOS = {
    "extraction": "extract_ratio",
    "distillation": "distill_ratio",
    "from the cache instead of live": "live_speedup",
}
"""What `bench` says, by its name in the report."""
TEACHERS, TOKENS = ("cnn", "vit"), ("cls", "patch")
FEATURES, BF16_DB, LOSS, WEIGHTS = 2e-3, 20.0, 0.02, 2e-3
"""Allowed: error of features in standard deviations, SNR of bf16 features, relative error of a loss, error of weights."""


class Failed(Exception):
    """A promise that does not hold; its text says what was found."""


class Checks:
    """Runs the checks one after the other while there is time, and prints a line for each."""

    def __init__(self, root: Path, device: str, minutes: float) -> None:
        self.root, self.device = root, device
        self.end, self.failed = time.monotonic() + 60 * minutes, 0

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def check(self, title: str, run: Callable[[], str]) -> None:
        """Print what `run` found, or why it failed."""
        if self.left < 20:
            print(f"SKIP {title}: no time left", flush=True)
            return
        begin, verdict = time.monotonic(), "PASS"
        try:
            found = run()
        except (Failed, subprocess.TimeoutExpired) as error:
            verdict, found, self.failed = "FAIL", str(error), self.failed + 1
        except Exception as error:  # the others are still worth their time
            verdict, found, self.failed = "FAIL", f"{type(error).__name__}: {error}", self.failed + 1
        print(f"{verdict} {title}: {found} ({time.monotonic() - begin:.0f} s)", flush=True)

    def folder(self, name: str) -> Path:
        """A working folder beside the others, with the configuration."""
        folder = self.root / name
        if not folder.exists():
            folder.mkdir(parents=True)
            (folder / "unic-pipe.yaml").write_text(CONFIG)
            self.pipe(folder, "index")
        return folder

    def pipe(self, folder: Path, *arguments: str, device: str | None = None, launcher: tuple[str, ...] = ()) -> str:
        """What a command of unic-pipe printed on stdout. Raises Failed: it ended with an error."""
        command = [sys.executable, *launcher, "-m", "unic_pipe.cli.main", *arguments, "--config", str(folder)]
        command += ["--device", device] if device else []
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(self.left, 1), check=False)
        if done.returncode:
            raise Failed(f"unic-pipe {' '.join(arguments)}: exit code {done.returncode}: {done.stderr[-400:].strip()}")
        return done.stdout

    # Extraction

    def on_device(self) -> str:
        """Features made on the device are those of the CPU."""
        self.pipe(self.folder("cpu"), "extract", device="cpu")
        self.pipe(self.folder("device"), "extract", device=self.device)
        return below(error(self.folder("cpu"), self.folder("device")), FEATURES, "of a standard deviation")

    def device_views(self) -> str:
        """`compute.views: device` makes the same views."""
        folder = self.folder("views")
        self.pipe(folder, "extract", "--set", "compute.views=device", device=self.device)
        return below(error(self.folder("cpu"), folder), FEATURES, "of a standard deviation")

    def compiled_features(self) -> str:
        """`compute.compile` changes rounding alone, and what is compiled anew gives the same bytes."""
        once, again = self.folder("compiled"), self.folder("compiled-again")
        for folder in (once, again):
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(self.root / f"code-of-{folder.name}")
            self.extract_compiled(folder)
        below(error(once, again, self.compiling), 0.0, "of a standard deviation between two compilations")
        return below(error(self.folder("device"), once, self.compiling), FEATURES, "of a standard deviation")

    def compiled_device_views(self) -> str:
        """The same with `compute.views: device`."""
        folder = self.folder("compiled-views")
        self.extract_compiled(folder, "--set", "compute.views=device")
        return below(error(self.folder("device"), folder, self.compiling), FEATURES, "of a standard deviation")

    @property
    def compiling(self) -> tuple[str, ...]:
        """Teachers that are compiled: a CNN takes a CPU minutes."""
        return TEACHERS if self.device.startswith("cuda") else ("vit",)

    def extract_compiled(self, folder: Path, *arguments: str) -> None:
        """Features of compiled encoders."""
        chosen = [word for teacher in self.compiling for word in ("--teacher", teacher)]
        self.pipe(folder, "extract", *chosen, "--set", "compute.compile=true", *arguments, device=self.device)

    def bf16(self) -> str:
        """Autocast in bf16 keeps features well above the cache's 15 dB."""
        folder = self.folder("bf16")
        self.pipe(folder, "extract", "--set", "compute.dtype=bfloat16", device=self.device)
        found = {teacher: -20 * np.log10(error(self.folder("cpu"), folder, (teacher,))) for teacher in TEACHERS}
        said = ", ".join(f"{teacher} {db:.1f} dB" for teacher, db in found.items())
        if min(found.values()) < BF16_DB:
            raise Failed(f"{said}; at least {BF16_DB:.0f} dB wanted")
        return said

    def types(self) -> str:
        """Every type can be timed on the device, and what each teacher is worth is said."""
        settings = ("--set", f"compute.device={self.device}", "--set", "cache.codec=auto")
        report = json.loads(self.pipe(self.folder("cpu"), "teachers", "--measure", "--json", *settings))
        for each in report["measured"]:
            if each["remark"]:
                raise Failed(f"{each['teacher']}: {each['remark']}")
        ways = [
            (e["teacher"], t["name"], t["speedup"], min(t["snr_db"].values()))
            for e in report["measured"]
            for t in e["trials"]
        ]
        chosen = ", ".join(f"{e['teacher']} {e['chosen']}" for e in report["measured"])
        return "; ".join([chosen, *(f"{teacher} {name} {by:.2f} x, {db:.0f} dB" for teacher, name, by, db in ways)])

    def extraction_goes_on(self) -> str:
        """Killed in the middle and run again, extraction leaves the same features."""
        folder = self.folder("killed")
        self.stopped(folder, "extract", signal.SIGKILL, lambda: any(folder.glob("features/*/**/*.json")))
        self.pipe(folder, "extract", device=self.device)
        return below(error(self.folder("device"), folder), 0.0, "of a standard deviation")

    # Training

    def training(self) -> str:
        """A training on the device has the losses of one on the CPU, and its pinned copies change nothing."""
        folder = self.folder("device")
        shutil.copytree(folder, self.root / "train-cpu", symlinks=True)
        self.pipe(self.root / "train-cpu", "distill", device="cpu")
        self.pipe(folder, "distill", device=self.device)
        return below(apart(losses(self.root / "train-cpu"), losses(folder)), LOSS, "of the loss")

    def compiled(self) -> str:
        """`distill.compile` changes rounding alone."""
        folder = self.copy("compiled")
        self.pipe(folder, "distill", "--set", "distill.compile=true", device=self.device)
        return below(apart(losses(self.folder("device")), losses(folder)), LOSS, "of the loss")

    def bf16_training(self) -> str:
        """A student in bf16 follows the one in float32."""
        folder = self.copy("bf16")
        self.pipe(folder, "distill", "--set", "students.small.dtype=bfloat16", device=self.device)
        return below(apart(losses(self.folder("device")), losses(folder)), 2.5 * LOSS, "of the loss")

    def training_goes_on(self) -> str:
        """Stopped after a checkpoint and run again, a training ends with the same weights."""
        folder = self.copy("stopped")
        self.stopped(folder, "distill", signal.SIGTERM, lambda: any(folder.glob("students/*/checkpoints/*")))
        self.pipe(folder, "distill", device=self.device)
        return below(weights_apart(self.folder("device"), folder), 0.0, "between weights")

    def launched(self) -> str:
        """One process that a launcher started: NCCL (gloo on a CPU) is set up, and nothing changes."""
        folder = self.copy("launched")
        torchrun = (
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "1",
            "--no-python",
            sys.executable,
        )
        self.pipe(folder, "distill", device=self.device, launcher=torchrun)
        return below(weights_apart(self.folder("device"), folder), WEIGHTS, "between weights")

    def shared_out(self) -> str:
        """Weights and moments shared out over processes (FSDP2): two of them where there are two devices."""
        if self.device.startswith("cuda") and torch.cuda.device_count() < 2:
            return f"one rank: {below(one_rank_fsdp(self.device), 1e-6, 'between gradients')}"
        folder = self.copy("sharded")
        self.pipe(folder, "distill", "--devices", "2", "--set", "distill.shard=always", device=self.device)
        return f"two ranks: {below(weights_apart(self.folder('device'), folder), WEIGHTS, 'between weights')}"

    def bench(self) -> str:
        """What the pieces allow beside what the stages take."""
        report = json.loads(self.pipe(self.folder("device"), "bench", "--quick", "--json", device=self.device))
        found = {title: report[key] for title, key in RATIOS.items() if report[key] is not None}
        if not found:
            raise Failed("nothing was measured")
        return ", ".join(f"{title} {value:.2f}" for title, value in found.items())

    def copy(self, name: str) -> Path:
        """The folder with features from the device, without its students."""
        copied = self.root / f"train-{name}"
        shutil.copytree(self.folder("device"), copied, symlinks=True, ignore=shutil.ignore_patterns("students"))
        return copied

    def stopped(self, folder: Path, stage: str, how: signal.Signals, when: Callable[[], bool]) -> None:
        """Run a stage and end it by a signal as soon as `when` holds (or let it end)."""
        command = [sys.executable, "-m", "unic_pipe.cli.main", stage, "--config", str(folder), "--device", self.device]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not when():
            time.sleep(0.05)
        process.send_signal(how)
        process.wait(timeout=max(self.left, 1))


def below(found: float, allowed: float, unit: str) -> str:
    """Say what was found. Raises Failed: it is more than allowed, or no number."""
    said = f"error {found:.2g} {unit}, {allowed:g} allowed"
    if not found <= allowed:
        raise Failed(said)
    return said


def error(first: Path, second: Path, teachers: tuple[str, ...] = TEACHERS) -> float:
    """Largest root mean squared difference of two folders' features, in standard deviations, by teacher and token."""
    worst = 0.0
    for teacher in teachers:
        caches = [FeatureCache.open(folder / f"features/train-{teacher}") for folder in (first, second)]
        for token in TOKENS:
            a_ND, b_ND = (
                np.concatenate([c.read_block(0, token, n).values.reshape(-1) for n in sorted(c.records(0, token))])
                for c in caches
            )
            worst = max(worst, float(np.sqrt(np.mean(np.square(a_ND - b_ND))) / a_ND.std()))
    return worst


def losses(folder: Path) -> list[float]:
    """Of every step."""
    return [row["loss"] for row in read_metrics(LocalStore(folder / "students/small")) if "loss" in row]


def apart(first: list[float], second: list[float]) -> float:
    """Mean relative difference of two series of losses."""
    if len(first) != len(second):
        raise Failed(f"{len(first)} steps against {len(second)}")
    return float(np.mean(np.abs(np.array(first) / np.array(second) - 1)))


def weights_apart(first: Path, second: Path) -> float:
    """Largest difference between two exported students' weights."""
    a, b = (load_file(next((folder / "students/small/export").glob("*.safetensors"))) for folder in (first, second))
    return max(float((a[name].float() - b[name].float()).abs().max()) for name in a)


def one_rank_fsdp(device: str) -> float:
    """Difference between the gradients of a sharded and a whole layer, on one rank of NCCL."""
    from torch.distributed.fsdp import fully_shard

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "RANK": "0", "WORLD_SIZE": "1"}
    torch.distributed.init_process_group("nccl", device_id=torch.device(device, 0))
    torch.manual_seed(0)
    whole, x = torch.nn.Linear(64, 64).to(device), torch.randn(8, 64, device=device)
    whole(x).square().mean().backward()
    assert whole.weight.grad is not None
    expected, shared = whole.weight.grad.clone(), fully_shard(whole)
    shared.zero_grad()
    shared(x).square().mean().backward()
    found = shared.weight.grad.full_tensor()
    torch.distributed.destroy_process_group()
    return float((found - expected).abs().max())


def prepare(root: Path) -> None:
    """The demo's images, and a small ViT with random weights."""
    write_samples(root / "images")
    torch.manual_seed(0)
    (root / "weights").mkdir(exist_ok=True)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0)
    save_file(model.state_dict(), root / "weights/vit.safetensors")


def main() -> int:
    """Run every check; the exit code says whether all of them passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("gpu-check"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0)
    given = parser.parse_args()
    root = given.folder.resolve()
    root.mkdir(parents=True)
    checks = Checks(root, given.device, given.minutes)
    name = torch.cuda.get_device_name() if given.device.startswith("cuda") else "no GPU: this shows only that it runs"
    print(f"{given.device} ({name}), PyTorch {torch.__version__}", flush=True)
    prepare(root)
    for title, run in (
        ("extraction equals the CPU's", checks.on_device),
        ("views made on the device", checks.device_views),
        ("encoders, compiled twice", checks.compiled_features),
        ("encoders, compiled, views made on the device", checks.compiled_device_views),
        ("features in bf16", checks.bf16),
        ("what each type is worth", checks.types),
        ("extraction, killed and run again", checks.extraction_goes_on),
        ("training equals the CPU's", checks.training),
        ("training, compiled", checks.compiled),
        ("training in bf16", checks.bf16_training),
        ("training, stopped and run again", checks.training_goes_on),
        ("training, one process by a launcher", checks.launched),
        ("training, sharded", checks.shared_out),
        ("bench: efficiency", checks.bench),
    ):
        checks.check(title, run)
    return min(checks.failed, 1)


if __name__ == "__main__":
    sys.exit(main())
