import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("apache_beam")

import curation_process as small
from curation_process import PHOTOGRAPHS, PLANTED, SHARDS, photograph, squares

import keras_igpt as igpt
from keras_igpt.commands.main import main as keras_igpt_main
from keras_igpt.commands.main import make_parser
from keras_igpt.curation import PictureFeatures, Rules, Similarity
from keras_igpt.curation.command import main, parse
from keras_igpt.curation.pictures import Outcome
from keras_igpt.curation.records import Records
from keras_igpt.data.token_shards import TokenShards


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    return small.write_web(tmp_path_factory.mktemp("web") / "tars")


@pytest.fixture(scope="module")
def whole(web):
    """A finished set."""
    small.run(web, web.parent / "whole")
    return web.parent / "whole"


def outcomes(folder):
    found = {}
    for path in sorted(folder.glob("[0-9]*.npz")):
        records = Records.load(path)
        names = [records.key(row).removesuffix(".png") for row in range(len(records))]
        found |= {
            (int(path.stem), name): Outcome(outcome) for name, outcome in zip(names, records.outcomes, strict=True)
        }
    return found


def contents(folder):
    """Bytes by name; of the report all but what the last run did."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    report = json.loads(found.pop("report.json"))
    del report["this_run"]
    return found, report


def test_every_picture_is_kept_or_counted_under_its_reason(whole):
    report = json.loads((whole / "report.json").read_text())
    assert report["pictures"] == sum(report["counts"].values()) == SHARDS * (PHOTOGRAPHS + len(PLANTED))
    # Of a copy and its picture the first one stays, in whatever shard.
    expected = dict.fromkeys(map(str.lower, Outcome.__members__), 0) | {
        "kept": SHARDS * PHOTOGRAPHS,
        **dict.fromkeys(PLANTED.values(), SHARDS),
    }
    assert report["counts"] == expected
    found = outcomes(whole)
    for shard in range(SHARDS):
        for name, outcome in PLANTED.items():
            assert name == "copy" or found[shard, name].name.lower() == outcome
    assert [found[shard, "copy"] == Outcome.KEPT for shard in range(SHARDS)] == [True] * (SHARDS - 1) + [False]
    assert [found[shard, "photograph0"] == Outcome.KEPT for shard in range(SHARDS)] == [True] + [False] * (SHARDS - 1)
    assert report["this_run"]["shards_inspected"] == report["this_run"]["shards_written"] == SHARDS
    for name in ("contact_sheet.png", "scores.png"):
        assert (whole / name).read_bytes().startswith(b"\x89PNG")
    assert not (whole / "work").exists()


def test_tokens_are_those_of_the_kept_centre_squares(whole):
    tokens = TokenShards(whole)
    assert (tokens.image_size, tokens.palette, len(tokens)) == (16, small.palette(), SHARDS * PHOTOGRAPHS)
    first = Records.load(whole / "000000.npz")
    kept = [first.key(row) for row in np.flatnonzero(first.outcomes == Outcome.KEPT)]
    assert kept == [*(f"photograph{k}.png" for k in range(PHOTOGRAPHS)), "copy.png"]
    expected = small.palette().encode(igpt.resize_images(squares(map(photograph, range(PHOTOGRAPHS)), 32), 16))
    np.testing.assert_array_equal(tokens[np.arange(PHOTOGRAPHS)], expected)
    report = tokens.shards[0].report
    assert report["source"][0] == "0.tar"
    assert report["counts"] == first.counts()
    scores = first.scores[first.outcomes == Outcome.KEPT]
    assert report["scores"]["least"] == pytest.approx(scores.min(), abs=1e-5)
    assert scores.min() >= tokens.report["threshold"] > first.scores[first.outcomes == Outcome.DISSIMILAR].max()


def test_a_finished_set_is_left_alone(web, whole, monkeypatch):
    before = contents(whole)
    monkeypatch.setattr("keras_igpt.curation.pipeline.run_pipeline", lambda *arguments: pytest.fail("ran"))
    # It may be read-only. By the module's name, which is also that of its function.
    monkeypatch.setattr(sys.modules[small.curate.__module__], "held", lambda *arguments: pytest.fail("wrote"))
    report = small.run(web, whole)
    assert contents(whole) == before
    assert report["counts"]["kept"] == SHARDS * PHOTOGRAPHS


def test_a_run_that_was_killed_in_several_processes_ends_with_the_same_bytes(web, whole):
    output = web.parent / "killed"
    tests = str(Path(small.__file__).parent)
    command = [sys.executable, "-c", "import curation_process; curation_process.main()", str(web), str(output)]
    paths = os.pathsep.join([tests, str(Path(igpt.__file__).parent.parent)])
    killed = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, start_new_session=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    finished = {path.name: path.stat().st_mtime_ns for path in (output / "work").glob("[0-9]*.npz")}
    assert 0 < len(finished) < SHARDS
    report = small.run(web, output)
    assert report["this_run"]["shards_inspected"] == SHARDS - len(finished)
    assert contents(output) == contents(whole)


def test_a_run_that_ends_while_it_writes_goes_on(web, whole, monkeypatch):
    from keras_igpt.curation import inspection

    output, write = web.parent / "half", inspection.write_token_shard

    def fail_at_the_second(folder, file, *arguments):
        if file == "000001.npy":
            raise OSError("the disk is full")
        return write(folder, file, *arguments)

    monkeypatch.setattr(inspection, "write_token_shard", fail_at_the_second)
    with pytest.raises(Exception, match="the disk is full"):
        small.run(web, output)
    with pytest.raises(FileNotFoundError):
        TokenShards(output)
    written = len(list((output / "work").glob("[0-9]*.json")))
    monkeypatch.undo()
    done = small.run(web, output)["this_run"]
    assert (done.get("shards_inspected", 0), done["shards_written"]) == (0, SHARDS - written)
    assert contents(output) == contents(whole)


def test_a_share_is_that_of_the_highest_scores(web):
    rules = Rules(share=0.25, duplicate_bits=None)
    report = small.run(web, web.parent / "share", exclude=(), rules=rules)
    records = [Records.load(path) for path in sorted((web.parent / "share").glob("[0-9]*.npz"))]
    scores = np.concatenate([one.scores for one in records])
    kept = np.concatenate([one.outcomes for one in records]) == Outcome.KEPT
    scored = ~np.isnan(scores)
    threshold = np.float32(report["threshold"])
    assert scores[kept].min() == threshold > scores[scored & ~kept].max()
    # Of equal scores all are kept.
    assert (scores > threshold).sum() < round(0.25 * scored.sum()) <= kept.sum() == report["counts"]["kept"]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"palette": igpt.ColorPalette.from_colors(np.eye(3, dtype="uint8"))}, "palette"),
        ({"image_size": 8}, "image_size is 8 here and was 16"),
        ({"exclude": ()}, "exclude"),
        ({"rules": Rules(threshold=0.5)}, r"rules\.threshold is 0\.5 here and was 0\.9"),
        ({"rules": Rules(threshold=0.9, duplicate_bits=None)}, r"rules\.duplicate_bits"),
        ({"similarity": "other reference"}, "reference"),
        ({"similarity": "other features"}, "features"),
        ({"shards": 1}, "shards"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_settings_are_noticed(web, whole, changed, named):
    from keras_igpt.curation import Reference

    if "similarity" in changed:
        other = Reference.fit(np.random.default_rng(0).random((20, 3)), 2)
        features = small.load_mean_colors
        changed = {
            "other reference": {"similarity": Similarity(other, features)},
            "other features": {"similarity": Similarity(small.reference(), "igpt_cifar10_8x8")},
        }[changed["similarity"]]
    shards = web / "0.tar" if changed.pop("shards", None) else web
    with pytest.raises(ValueError, match=f"give another one, or remove it.*{named}"):
        small.run(shards, whole, **changed)


def test_what_cannot_be_begun_is_refused_before_any_work(web, tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ValueError, match="another thing"):
        small.run(web, tmp_path)
    with pytest.raises(ValueError, match="`similarity` must be Similarity"):
        small.run(web, tmp_path / "new", similarity=small.reference())
    with pytest.raises(ValueError, match="at least 32x32"):
        small.run(
            web, tmp_path / "new", exclude=[igpt.LabeledImages(np.zeros((1, 8, 8, 3), "uint8"), np.zeros(1, int))]
        )
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"`exclude` must be sets with pictures\. Received: .*empty'?\)?, where none"):
        small.run(web, tmp_path / "new", exclude=[tmp_path / "empty"])
    with pytest.raises(ValueError, match="must not both be given"):
        Rules(threshold=0.5, share=0.5)
    assert not (tmp_path / "new").exists()


def test_one_process_writes_a_set(web, tmp_path, monkeypatch):
    seen = []

    def run_second(*arguments):
        seen.append(sorted(path.name for path in tmp_path.iterdir()))
        with pytest.raises(ValueError, match="`output` must be a folder that no other process is writing to"):
            small.run(web, tmp_path)
        seen.append(sorted(path.name for path in tmp_path.iterdir()))
        raise KeyboardInterrupt

    monkeypatch.setattr("keras_igpt.curation.pipeline.run_pipeline", run_second)
    with pytest.raises(KeyboardInterrupt):
        small.run(web, tmp_path)
    assert seen[0] == seen[1] == [".lock", "settings.json", "work"]


def test_where_nothing_is_kept_is_said(web, tmp_path):
    # As a process leaves it that is killed while it writes the settings of a new folder.
    (tmp_path / "none" / ".partial-settings.json-abc").mkdir(parents=True)
    with pytest.raises(ValueError, match="none kept"):
        small.run(web / "0.tar", tmp_path / "none", rules=Rules(min_side=1000))


def test_features_that_do_not_fit_the_reference_end_the_run(web, tmp_path):
    def load():
        return PictureFeatures(lambda images: images.reshape(len(images), -1), 4)

    with pytest.raises(Exception, match=r"`features` must have shape \(B, 3\)"):
        small.run(web / "0.tar", tmp_path / "other", similarity=Similarity(small.reference(), load))


def test_the_threshold_is_a_quantile_of_the_reference_unless_another_rule_is_given(monkeypatch, web, tmp_path):
    given = []
    monkeypatch.setattr("keras_igpt.curation.pipeline.run_pipeline", lambda job, *_: given.append(job) or {})
    for number, rules in enumerate([None, Rules(quantile=0.5), Rules(threshold=0.25), Rules(share=0.5)]):
        with pytest.raises(FileNotFoundError):  # nothing ran
            small.run(web, tmp_path / str(number), rules=rules)
    reference = small.reference()
    assert [job.threshold for job in given] == [reference.threshold(0.02), reference.threshold(0.5), 0.25, None]


def test_the_command_line(web, tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    for number in range(12):
        photograph(number).save(tmp_path / "pictures" / f"{number}.png")
    small.palette().save(tmp_path / "palette.npy")
    reference, output = str(tmp_path / "reference.npz"), str(tmp_path / "out")
    fit = ["fit", str(tmp_path / "pictures"), "--model", "igpt_cifar10_8x8", "--centroids", "4", "--output", reference]
    main(fit)
    assert "12 pictures in 4 centroids" in capsys.readouterr().out
    for command, given in ((main, fit), (keras_igpt_main, ["curate", *fit]), (keras_igpt_main, ["describe", "x"])):
        with pytest.raises(SystemExit):
            command([*given, "--runner", "DirectRunner"])
        assert "unrecognized arguments: --runner DirectRunner" in capsys.readouterr().err
    arguments = ["--model", "igpt_cifar10_8x8", "--palette", str(tmp_path / "palette.npy"), "--image-size", "16"]
    rules = ["--share", "1", "--exclude", str(tmp_path / "pictures")]
    curate = ["curate", str(web / "0.tar"), "--output", output, "--reference", reference, *arguments, *rules]
    assert parse(make_parser(), ["curate", *curate, "--runner", "X"]).pipeline_options == ["--runner", "X"]
    with pytest.raises(SystemExit, match=r"curate: Options must be those of .* Received: --treshold 0\.5$"):
        keras_igpt_main(["curate", *curate, "--treshold", "0.5"])
    assert parse(make_parser(), ["curate", *curate, "--exclude", "b", "--exclude", "c"]).exclude[1:] == ["b", "c"]
    # Not the first of them alone.
    for stray in (["--exclude", "b", "c"], ["--runner=X", "c"], ["--runner", "X", "c", "--region", "d"]):
        with pytest.raises(SystemExit):
            keras_igpt_main(["curate", *curate, *stray])
        assert capsys.readouterr().err.endswith("unrecognized arguments: c\n")
    with pytest.raises(SystemExit, match=r"curate: --threshold and --share must not both be given.*--share 1\.0$"):
        keras_igpt_main(["curate", *curate, "--threshold", "0.5"])
    keras_igpt_main(["curate", *curate])
    # The photographs are those to exclude, and the copy is of one.
    assert set(outcomes(Path(output))[0, f"photograph{k}"] for k in range(PHOTOGRAPHS)) == {Outcome.EVALUATION}
    assert len(TokenShards(output)) == 2  # the cold one and an evaluation picture
