"""Web pictures: what is told from junk, what a kill leaves, how fast and in how much memory.

Commands:
    python benchmarks/curation.py separate --data-dir FOLDER   (prepared TensorFlow Datasets: imagenet2012, cifar10)
    python benchmarks/curation.py kill --data-dir FOLDER
    python benchmarks/curation.py speed --data-dir FOLDER
    python benchmarks/curation.py duplicates

separate: the reference is 160 of ImageNet's pictures. The web is the other 40, pictures of CIFAR-10, copies of both at
other sizes and JPEG qualities, copies of evaluation pictures, and drawn junk. Precision and recall of "a picture, not
junk", recall of copies, and a contact sheet to look at, for the bundled models and for features made by hand.
kill: a run in two processes is killed ten times at random; its files are compared with those of a run left alone.
speed: pictures a second of one core against decoding with Pillow alone and decoding and features, alternating; peak
memory of 1 and of 50 shards.
duplicates: time and memory of finding the duplicates among 10 million hashes.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from PIL import Image
from timing import print_machine
from web_pictures import data_set, hostile, load_color_statistics, make_web, prepared, write_tars

import keras_igpt as igpt
from keras_igpt.curation import Reference, Rules, Similarity, curate, load_features
from keras_igpt.curation.duplicates import duplicates
from keras_igpt.curation.inspection import Inspector
from keras_igpt.curation.pictures import Outcome
from keras_igpt.curation.records import Records

REFERENCE = 160
CENTROIDS = 32
SHARDS = 60
COPIES, EVALUATION = 400, 1000  # of CIFAR-10's pictures
EXTRACTORS = {
    "bundled AR model": partial(load_features, "igpt_cifar10_8x8"),
    "bundled BERT model": partial(load_features, "igpt_cifar10_8x8_bert"),
    "colours and edges": load_color_statistics,
}
TWO_PROCESSES = ["--direct_running_mode", "multi_processing", "--direct_num_workers", "2"]
RULES = (Rules(), Rules(photographs=False))
JUDGED_JUNK = (Outcome.PLAIN, Outcome.ROUGH, Outcome.GRAPHIC, Outcome.DISSIMILAR)


def similarity(data_dir: str, features: partial | object) -> Similarity:
    computed = features().of(data_set(prepared(data_dir, "imagenet2012", "train"), range(REFERENCE), 64))
    return Similarity(Reference.fit(computed, CENTROIDS, source=features), features)


def evaluation(data_dir: str, cifar: int) -> list[igpt.ImageFiles]:
    sets = (("imagenet2012", "validation", 40), ("cifar10", "test", cifar))
    return [data_set(prepared(data_dir, name, split), range(count), 32) for name, split, count in sets]


def outcomes(folder: Path) -> dict[str, tuple[Outcome, float]]:
    """What became of each picture, and its score, by name."""
    found = {}
    for path in sorted(folder.glob("[0-9]*.npz")):
        records = Records.load(path)
        for row in range(len(records)):
            name = Path(records.key(row)).stem
            found[name] = (Outcome(records.outcomes[row]), float(records.scores[row]))
    return found


def separate(options: argparse.Namespace) -> None:
    work = Path(options.folder)
    counts = {"reference": REFERENCE, "cifar": options.cifar, "junk": options.junk}
    counts |= dict.fromkeys(("copies", "evaluation"), min(COPIES, options.cifar))
    shutil.rmtree(work, ignore_errors=True)
    pictures = make_web(options.data_dir, counts, options.seed) + hostile()
    write_tars(pictures, work / "web", 8)
    cut = work / "web" / "00007.tar"
    with open(cut, "r+b") as file:
        file.truncate(cut.stat().st_size - 20_000)
    palette = igpt.ImageGPTCausalLM.from_preset("igpt_cifar10_8x8").palette
    for name, features in EXTRACTORS.items():
        for rules in RULES:
            output = work / f"{name.replace(' ', '-')}{'' if rules.photographs else '-similarity-alone'}"
            start = similarity(options.data_dir, features)
            report = curate(work / "web", output, palette, 32, start, evaluation(options.data_dir, EVALUATION), rules)
            print(f"\n## {name}{'' if rules.photographs else ', similarity alone'}: {output}")
            print(f"threshold {report['threshold']:.3f}; {report['counts']}; faults {report['shards_with_faults']}")
            judge(outcomes(output))


def judge(found: dict[str, tuple[Outcome, float]]) -> None:
    """Prints what was told apart."""
    kinds: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for name, (outcome, _) in found.items():
        kinds[name.rpartition("-")[0]][outcome.name.lower()] += 1
    for kind, counter in sorted(kinds.items()):
        print(f"  {kind}: {dict(counter)}")
    photographs = {name for name in found if name.startswith(("imagenet", "cifar"))}
    copies = {name for name in found if name.startswith("copy-of-")}
    planted = {name for name in found if name.startswith("evaluation")}
    kept = {name for name, (outcome, _) in found.items() if outcome == Outcome.KEPT}
    taken = [name for name in photographs if found[name][0] not in JUDGED_JUNK]
    pairs = [(name, name.removeprefix("copy-of-")) for name in copies]
    pairs = [pair for pair in pairs if all(found[name][0] in (Outcome.KEPT, Outcome.DUPLICATE) for name in pair)]
    once = sum(not kept >= set(pair) for pair in pairs)
    precision, recall = len(kept & (photographs | copies)) / len(kept), len(taken) / len(photographs)
    print(f"  precision {precision:.3f}, recall {recall:.3f}")
    print(f"  evaluation copies removed: {len(planted - kept)} of {len(planted)}")
    print(f"  copies of which one was removed: {once} of {len(pairs)}")


def kill(options: argparse.Namespace) -> None:
    """Kills all processes of a run ten times, at random."""
    work = Path(options.folder)
    if options.child:
        palette = igpt.ImageGPTCausalLM.from_preset("igpt_cifar10_8x8").palette
        start = Similarity(work / "reference.npz", EXTRACTORS["bundled AR model"])
        report = curate(work / "web", options.child, palette, 32, start, pipeline_options=TWO_PROCESSES)
        print(json.dumps(report["this_run"]))
        return
    shutil.rmtree(work, ignore_errors=True)
    counts = {"reference": REFERENCE, "cifar": options.cifar, "copies": 100, "evaluation": 0, "junk": 20}
    write_tars(make_web(options.data_dir, counts), work / "web", SHARDS)
    similarity(options.data_dir, EXTRACTORS["bundled AR model"]).loaded_reference.save(work / "reference.npz")
    command = [sys.executable, __file__, "kill", "--folder", str(work), "--child"]

    def run(output: Path, limit: float | None, stage: str = "npz") -> str | None:
        start = time.monotonic()
        process = subprocess.Popen(
            [*command, str(output)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        if limit is not None:
            # Once a shard more is done: before it there is nothing to lose.
            before = finished(output, stage)
            while finished(output, stage) == before and process.poll() is None:
                time.sleep(0.02)
            time.sleep(limit)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate()
        print(f"  {time.monotonic() - start:.0f} s", end="")
        return None if process.returncode else printed.splitlines()[-1]

    whole = run(work / "whole", None)
    print(f"; never killed: {whole}")
    seconds, generator, output = json.loads(whole)["seconds"], random.Random(0), work / "killed"
    done = {"npz": 0, "json": 0}
    for number in range(10):
        # The last two while shards are written, which is soon done.
        stage, limit = ("npz", seconds / 12) if number < 8 else ("json", 0.02)
        ended = run(output, generator.uniform(0, limit), stage)
        now = {suffix: finished(output, suffix) for suffix in done}
        print(f"; kill {number}: {now['npz']} shards inspected, {now['json']} written, ended {ended is not None}")
        if ended is not None:
            break
        assert all(now[suffix] >= done[suffix] for suffix in done), "finished shards are never done again"
        done = now
    last = json.loads(run(output, None))
    print(f"; the rest: {last}")
    expected = {"shards_inspected": SHARDS - done["npz"], "shards_written": SHARDS - done["json"]}
    assert {name: last.get(name, 0) for name in expected} == expected, expected
    differing = [path.name for path in (work / "whole").iterdir() if digest(path) != digest(output / path.name)]
    assert not differing, differing
    assert len(list((work / "whole").iterdir())) == len(list(output.iterdir()))
    print(f"equal bytes in {len(list(output.iterdir()))} files; only unfinished shards were done again: {expected}")


def finished(output: Path, suffix: str) -> int:
    """Shards that have been inspected (npz) or written (json)."""
    return len(list(output.glob(f"work/[0-9]*.{suffix}")))


def digest(path: Path) -> str:
    """Of a file's bytes; of a report without what the last run did."""
    content = path.read_bytes()
    if path.name == "report.json":
        content = json.dumps({**json.loads(content), "this_run": None}).encode()
    return hashlib.sha256(content).hexdigest()


def speed(options: argparse.Namespace) -> None:
    """Seconds of a core, alternating; and the memory of processes of their own."""
    work = Path(options.folder)
    if options.child:
        start = Similarity(work / "reference.npz", load_color_statistics)
        tars = sorted((work / "web").glob("*.tar"))[: int(options.child)]
        curate(tars, work / f"out{options.child}", palette_of(64), 64, start, rules=Rules(threshold=0.0))
        print(peak_memory())
        return
    shutil.rmtree(work, ignore_errors=True)
    data, files = options.data_dir, web_files(options.data_dir)
    similarity(data, load_color_statistics).loaded_reference.save(work / "reference.npz")
    write_tars([(f"p-{k}", files[k % len(files)]) for k in range(50 * 256)], work / "web", 50)
    for name in ("bundled AR model", "colours and edges"):
        time_contestants(work, files, name, similarity(data, EXTRACTORS[name]), options.rounds)
    for shards in (1, 50, 1, 50):
        command = [sys.executable, __file__, "speed", "--folder", str(work), "--child", str(shards)]
        shutil.rmtree(work / f"out{shards}", ignore_errors=True)
        printed = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
        ).stdout
        print(f"{shards} shards: {printed.splitlines()[-1]} MB at most")


def peak_memory() -> int:
    """Megabytes of this process at most; `getrusage` counts those of the process that started it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


def web_files(data_dir: str) -> list[bytes]:
    """ImageNet's pictures as img2dataset stores them: shorter side 256 pixels, JPEG of quality 95."""
    reader, files = prepared(data_dir, "imagenet2012", "train"), []
    for number in range(len(reader)):
        picture = Image.open(io.BytesIO(reader.read(number)[0])).convert("RGB")
        scale, file = 256 / min(picture.size), io.BytesIO()
        picture.resize([round(scale * side) for side in picture.size]).save(file, "JPEG", quality=95)
        files.append(file.getvalue())
    print(f"{len(files)} files of {np.mean([len(file) for file in files]) / 1000:.0f} kB")
    return files


def palette_of(num_colors: int) -> igpt.ColorPalette:
    colors = np.random.default_rng(0).permutation(1 << 12)[:num_colors]
    return igpt.ColorPalette.from_colors(
        np.stack([colors >> 8, colors >> 4 & 15, colors & 15], -1).astype("uint8") * 17
    )


def time_contestants(work: Path, files: list[bytes], name: str, start: Similarity, rounds: int) -> None:
    tar = work / f"speed-{name.replace(' ', '-')}"
    write_tars([(f"p-{k}", file) for k, file in enumerate(files)], tar, 1)
    from keras_igpt.curation.settings import Job
    from keras_igpt.curation.shards import find_shards

    hashes = np.random.default_rng(0).integers(0, 2**64, (20_000, 2), np.uint64)
    job = Job(str(tar), palette_of(512), 64, start, Rules(duplicate_bits=None), hashes, -1.0)
    job.palette.encode(np.zeros((20, 64, 64, 3), "uint8"))  # builds its table, once a worker
    inspector, features, (shard,) = Inspector(job), start.load_features(), find_shards(tar / "00000.tar")
    squares = np.zeros((len(files), features.image_size, features.image_size, 3), "uint8")

    def inspect() -> None:
        shutil.rmtree(job.work, ignore_errors=True)
        inspector.inspect(shard)

    contestants = {
        "decoding, Pillow alone": lambda: [Image.open(io.BytesIO(file)).convert("RGB") for file in files],
        "features alone": lambda: features(squares),
        "inspection of a shard": inspect,
    }
    seconds = collections.defaultdict(list)
    for number in range(rounds + 1):
        for contestant, run in contestants.items():
            began = time.process_time()
            run()
            if number:
                seconds[contestant].append((time.process_time() - began) / len(files))
    print(f"\n| {name}: | ms a picture and core, median | quartiles | pictures a second |\n|---|---|---|---|")
    for contestant, values in seconds.items():
        low, middle, high = 1000 * np.percentile(values, [25, 50, 75])
        print(f"| {contestant} | {middle:.2f} | {low:.2f} to {high:.2f} | {1000 / middle:.0f} |")
    alone, computed, all_of_it = (np.median(values) for values in seconds.values())
    print(f"inspection / (decoding + features): {all_of_it / (alone + computed):.2f}")


def time_duplicates(options: argparse.Namespace) -> None:
    """Finds the duplicates among random hashes, of which one in a hundred is a copy."""
    generator = np.random.default_rng(0)
    for count in (options.hashes // 10, options.hashes):
        hashes = generator.integers(0, 2**64, (count, 2), np.uint64)
        hashes[: count // 100] = hashes[-(count // 100) :] ^ np.uint64(1 << 20)
        began = time.process_time()
        found = int(duplicates(hashes, 12).sum())
        print(
            f"{count:,} hashes: {found:,} copies, {time.process_time() - began:.1f} s of a core, {peak_memory():,} MB"
        )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("separate", "kill", "speed", "duplicates"))
    parser.add_argument("--data-dir", help="folder of prepared TensorFlow Datasets")
    parser.add_argument("--folder", default="curation_output", help="folder to work in, which is emptied")
    parser.add_argument("--cifar", type=int, default=4000, help="pictures of CIFAR-10")
    parser.add_argument("--junk", type=int, default=200, help="pictures of junk of each kind")
    parser.add_argument("--hashes", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    print_machine()
    {"separate": separate, "kill": kill, "speed": speed, "duplicates": time_duplicates}[options.what](options)


if __name__ == "__main__":
    main()
